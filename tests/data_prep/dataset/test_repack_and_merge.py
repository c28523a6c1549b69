"""Added row lengths and merged folders, compared with a folder that was prepared that way."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from data_prep.config import PackingConfig, PrepareConfig
from data_prep.dataset.manifest import ManifestError, load_manifest, verify
from data_prep.dataset.merge import MergeError, merge
from data_prep.dataset.repack import pack_folder
from data_prep.files import sha256_file
from data_prep.prepare import prepare
from data_prep.tokenization.tokenizer import save_tokenizer, train_tokenizer

pytestmark = pytest.mark.usefixtures("ray")


def _config(corpus: Path, output: Path, tokenizer_file: Path, **kwargs: object) -> PrepareConfig:
    fields = {"input": [f"{corpus}/*"], "output": output, "tokenizer": tokenizer_file, "max_bad_share": 0.1, "val_share": 0.1}
    return PrepareConfig.model_validate({**fields, **kwargs})


@pytest.fixture(scope="module")
def whole(ray: None, corpus: Path, tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "data"
    prepare(_config(corpus, output, tokenizer_file, packing={"lengths": [64, 640]}))
    return output


def _hashes(folder: Path, *suffixes: str) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.name.endswith(suffixes)}


def test_an_added_length_equals_a_prepared_one(corpus: Path, whole: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    prepare(_config(corpus, tmp_path / "data", tokenizer_file, packing={"lengths": [640]}))
    before = load_manifest(tmp_path / "data")
    manifest = pack_folder(tmp_path / "data", [64, 640])
    assert manifest.fingerprint(640) == before.fingerprint(640)
    assert manifest.splits == load_manifest(whole).splits
    assert _hashes(tmp_path / "data", ".npy", ".bin") == _hashes(whole, ".npy", ".bin")
    assert verify(tmp_path / "data") == []
    assert pack_folder(tmp_path / "data", [64]) == manifest
    with pytest.raises(ManifestError, match="rows of 64 tokens exist already, packed by best_fit"):
        pack_folder(tmp_path / "data", [64], "concatenate")


@pytest.mark.parametrize("block_documents", [7, 1 << 16])
def test_merged_folders_equal_the_folder_of_all_files(
    corpus: Path, whole: Path, tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_documents: int
) -> None:
    monkeypatch.setattr("data_prep.dataset.merge._BLOCK_DOCUMENTS", block_documents)
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, pattern in zip(folders, ("0*", "[12]*"), strict=True):
        prepare(_config(corpus, folder, tokenizer_file, input=[f"{corpus}/{pattern}"]))
    manifest = merge(folders, tmp_path / "both", PackingConfig(lengths=[64, 640]), "merge")
    assert _hashes(tmp_path / "both", ".npy", ".bin", ".idx", "tokenizer.json") == _hashes(
        whole, ".npy", ".bin", ".idx", "tokenizer.json"
    )
    assert manifest.splits == load_manifest(whole).splits
    assert manifest.records == load_manifest(whole).records
    assert manifest.rejected == {"invalid JSON": 1}
    assert b'"file":"first/0.jsonl.zst"' in (tmp_path / "both" / "quarantine.jsonl").read_bytes()
    assert verify(tmp_path / "both") == []
    with pytest.raises(MergeError, match="finished dataset"):
        merge(folders, tmp_path / "both", PackingConfig())
    with pytest.raises(MergeError, match="two folders have one name"):
        merge([folders[0], folders[0]], tmp_path / "twice", PackingConfig())


def test_folders_of_other_tokenizers_are_not_merged(corpus: Path, whole: Path, tmp_path: Path) -> None:
    other: Tokenizer = train_tokenizer(["another text"] * 3, 400)
    save_tokenizer(other, tmp_path / "other.json")
    prepare(_config(corpus, tmp_path / "other", tmp_path / "other.json", input=[f"{corpus}/2*"]))
    with pytest.raises(MergeError, match="another tokenizer"):
        merge([whole, tmp_path / "other"], tmp_path / "both", PackingConfig())
