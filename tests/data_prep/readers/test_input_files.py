from pathlib import Path

import pytest

from data_prep.config import PrepareConfig
from data_prep.readers.input_files import HashSplit, InputError, expand, plan


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
