import shutil
from pathlib import Path

import pytest

from data_prep.config import PrepareConfig
from data_prep.dataset.output_files import is_own_output
from data_prep.readers.input_files import HashSplit, InputError, expand, make_plan, plan


def _config(folder: Path, **kwargs: object) -> PrepareConfig:
    return PrepareConfig.model_validate({"input": [f"{folder}/train/*.jsonl"], "output": folder / "out", **kwargs})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("train/10.jsonl", "train/2.jsonl", "train/deep/0.jsonl", "val.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_files_are_sorted_and_named_relative_to_their_common_folder(folder: Path) -> None:
    units = plan(_config(folder, val=[f"{folder}/val.jsonl"]))
    assert [(unit.index, unit.split, unit.name) for unit in units] == [
        (0, "train", "train/10.jsonl"),
        (1, "train", "train/2.jsonl"),
        (2, "val", "val.jsonl"),
    ]
    everything = plan(_config(folder, input=[f"{folder}/train/**/*.jsonl", f"{folder}/train/2.jsonl"]))
    assert [unit.name for unit in everything] == ["10.jsonl", "2.jsonl", "deep/0.jsonl"]
    assert {unit.split for unit in everything} == {None}


def test_errors_name_the_file(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no file matches '.*/none/\*'"):
        plan(_config(folder, test=[f"{folder}/none/*"]))
    with pytest.raises(InputError, match=r"2\.jsonl is matched for both train and val"):
        plan(_config(folder, val=[f"{folder}/train/2.jsonl"]))
    (folder / "train" / "notes.csv").touch()
    with pytest.raises(InputError, match=r"notes\.csv.*known endings"):
        plan(_config(folder, input=[f"{folder}/train/*"]))


def test_hash_split_has_its_shares_and_depends_only_on_text_and_seed() -> None:
    texts = [str(i).encode() for i in range(20_000)]
    splits = [HashSplit(0.1, 0.2, seed=0)(text) for text in texts]
    assert splits.count("val") / len(texts) == pytest.approx(0.1, abs=0.01)
    assert splits.count("test") / len(texts) == pytest.approx(0.2, abs=0.01)
    assert splits == [HashSplit(0.1, 0.2, seed=0)(text) for text in texts]
    assert splits != [HashSplit(0.1, 0.2, seed=1)(text) for text in texts]


def test_a_wrong_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        _config(tmp_path, inputs=["x"])
    with pytest.raises(ValueError, match="leave no document for training"):
        _config(tmp_path, val_share=0.5, test_share=0.5)
    with pytest.raises(ValueError, match="has a length twice"):
        _config(tmp_path, packing={"lengths": [640, 640]})


def test_folders_and_broken_links_are_named(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").touch()
    (tmp_path / "part.parquet").mkdir()
    (tmp_path / "plain").mkdir()
    assert expand([f"{tmp_path}/**/*.jsonl"]) == [tmp_path / "good.jsonl"]
    for pattern in ("*.parquet", "plain", "*"):
        with pytest.raises(ValueError, match=r"(part\.parquet|plain): a folder; name the files in it"):
            expand([f"{tmp_path}/{pattern}"])
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"gone\.jsonl: a broken link"):
        expand([f"{tmp_path}/*.jsonl"])


def test_a_file_is_read_once_whatever_its_names(tmp_path: Path) -> None:
    raw = tmp_path / "train"
    raw.mkdir()
    (raw / "b.jsonl").write_text('{"text": "b"}')
    (raw / "a.jsonl").symlink_to(raw / "b.jsonl")
    (raw / "hard.jsonl").hardlink_to(raw / "b.jsonl")
    (raw / "again").symlink_to(raw)
    found = make_plan(_config(tmp_path, input=[f"{raw}/**/*.jsonl"]))
    assert [file.path for file in found.files] == [raw / "b.jsonl"]
    (note,) = found.notes
    assert "names are links to other inputs" in note
    assert expand([f"{raw}/a.jsonl"]) == [raw / "a.jsonl"]


@pytest.mark.parametrize("kind", ["link", "hard link", "folder", "copy"])
def test_validation_is_not_training_under_another_name(tmp_path: Path, kind: str) -> None:
    raw = tmp_path / "train"
    raw.mkdir()
    (raw / "a.jsonl").write_text('{"text": "a"}' * 10_000)
    (raw / "c.jsonl").write_text('{"text": "c"}' * 10_000)
    val = tmp_path / "val.jsonl"
    if kind == "link":
        val.symlink_to(raw / "a.jsonl")
    elif kind == "hard link":
        val.hardlink_to(raw / "a.jsonl")
    elif kind == "folder":
        (tmp_path / "other").symlink_to(raw)
        val = tmp_path / "other" / "a.jsonl"
    else:
        shutil.copy(raw / "a.jsonl", val)
    words = "has the same bytes as" if kind == "copy" else "is the same file as"
    with pytest.raises(InputError, match=rf"{val}, matched for val, {words} {raw}/a\.jsonl of train; remove one"):
        plan(_config(tmp_path, val=[str(val)]))
    (raw / "a.jsonl").unlink()
    if kind == "copy":
        assert len(plan(_config(tmp_path, val=[str(val)]))) == 2


def test_a_name_that_exists_is_no_glob(tmp_path: Path) -> None:
    (tmp_path / "data[1].jsonl").touch()
    (tmp_path / "data1.jsonl").touch()
    assert expand([f"{tmp_path}/data[1].jsonl"]) == [tmp_path / "data[1].jsonl"]
    assert expand([f"{tmp_path}/data[12].jsonl"]) == [tmp_path / "data1.jsonl"]


def test_outputs_of_prepare_are_no_inputs(tmp_path: Path) -> None:
    for name in ("raw.jsonl", "out/quarantine.jsonl", "out/manifest.json", "out/train.bin", "out/own.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    config = _config(tmp_path, input=[f"{tmp_path}/raw.jsonl", f"{tmp_path}/out/*"])
    assert [file.name for file in make_plan(config, is_own_output).files] == ["out/own.jsonl", "raw.jsonl"]
    with pytest.raises(InputError, match="matches only files of a finished or begun dataset"):
        make_plan(_config(tmp_path, input=[f"{tmp_path}/out/q*"]), is_own_output)
