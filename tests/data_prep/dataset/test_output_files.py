"""Files that are not ours are neither deleted nor replaced, by prepare, merge or pack."""

import shutil
from pathlib import Path

import pytest

from data_prep.config import PackingConfig, PrepareConfig
from data_prep.dataset.manifest import load_manifest, verify
from data_prep.dataset.merge import merge
from data_prep.dataset.output_files import ForeignFilesError, OutputFolder, is_own_output
from data_prep.dataset.repack import pack_folder
from data_prep.prepare import prepare

_NANOGPT = ("train.bin", "val.bin", "tokenizer.json", "train.rows_64.npy", "quarantine.jsonl")


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _config(corpus: Path, output: Path, **kwargs: object) -> PrepareConfig:
    fields = {"input": [f"{corpus}/2.jsonl"], "output": output, "packing": {"lengths": [64]}, "vocab_size": 400}
    return PrepareConfig.model_validate({**fields, **kwargs})


@pytest.mark.parametrize("name", _NANOGPT)
def test_prepare_refuses_a_folder_with_files_of_others_and_changes_nothing(corpus: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"months of work")
    (tmp_path / ".train.bin.1.0123abcd.tmp").write_bytes(b"mine")
    before = _contents(tmp_path)
    with pytest.raises(ForeignFilesError, match=rf"holds {name}, which this program did not make.*another --output"):
        prepare(_config(corpus, tmp_path))
    assert _contents(tmp_path) == before


def test_a_folder_called_work_that_is_not_ours_is_kept(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "notes.txt").write_text("mine")
    with pytest.raises(ForeignFilesError, match=r"\.work holds files that this program did not make"):
        prepare(_config(corpus, tmp_path))
    OutputFolder(tmp_path).end()
    assert _contents(tmp_path) == {".work/notes.txt": b"mine"}


def test_the_given_tokenizer_may_be_in_the_output_folder(ray: None, corpus: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    there = tmp_path / "tokenizer.json"
    shutil.copy(tokenizer_file, there)
    with pytest.raises(ValueError, match="no file matches"):
        prepare(_config(corpus, tmp_path, tokenizer=there, input=[f"{corpus}/none.jsonl"]))
    config = _config(corpus, tmp_path, tokenizer=there, val_share=0, test_share=0)

    def interrupt(progress: object) -> None:
        if getattr(progress, "stage", "") == "pack train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config, interrupt)
    prepare(config)
    assert there.read_bytes() == tokenizer_file.read_bytes()
    assert verify(tmp_path) == []
    assert not (tmp_path / ".work").exists()


def test_only_what_a_begun_run_wrote_is_deleted(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path)
    output.begin()
    output.claim(["train.bin"])
    for name in ("train.bin", ".train.bin.77.0123abcd.tmp", ".train.bin.bak.tmp", ".val.bin.77.0123abcd.tmp", "notes.txt"):
        (tmp_path / name).touch()
    OutputFolder(tmp_path).begin()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".work", ".train.bin.bak.tmp", ".val.bin.77.0123abcd.tmp", "notes.txt"}
    (tmp_path / "val.bin").touch()
    with pytest.raises(ForeignFilesError, match=r"val\.bin appeared during the run"):
        output.claim(["val.bin"])
    with pytest.raises(ForeignFilesError, match=r"holds val\.bin"):
        OutputFolder(tmp_path).begin()
    assert (tmp_path / "val.bin").exists()


def test_merge_and_pack_refuse_files_of_others(ray: None, corpus: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    config = _config(corpus, tmp_path / "a", tokenizer=tokenizer_file)
    prepare(config)
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "tokenizer.json").write_bytes(b"mine")
    with pytest.raises(ForeignFilesError, match=r"holds tokenizer\.json"):
        merge([tmp_path / "a"], tmp_path / "both", PackingConfig(lengths=[64]))
    assert _contents(tmp_path / "both") == {"tokenizer.json": b"mine"}
    (tmp_path / "a" / "train.rows_128.npy").write_bytes(b"mine")
    with pytest.raises(ForeignFilesError, match=r"holds train\.rows_128\.npy"):
        pack_folder(tmp_path / "a", [128])
    assert (tmp_path / "a" / "train.rows_128.npy").read_bytes() == b"mine"
    (tmp_path / "a" / "train.rows_128.npy").unlink()
    # What a killed `pack` left is replaced.
    OutputFolder(tmp_path / "a", same=load_manifest(tmp_path / "a").files).begin()
    OutputFolder(tmp_path / "a").claim(["train.rows_128.npy"])
    (tmp_path / "a" / "train.rows_128.npy").write_bytes(b"half")
    pack_folder(tmp_path / "a", [128])
    assert verify(tmp_path / "a") == []
    assert prepare(config).splits == load_manifest(tmp_path / "a").splits


def test_quarantine_files_of_datasets_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "quarantine.jsonl").touch()
    assert not is_own_output(tmp_path / "quarantine.jsonl")
    (tmp_path / "manifest.json").touch()
    assert is_own_output(tmp_path / "quarantine.jsonl")
    assert not is_own_output(tmp_path / "other.jsonl")
