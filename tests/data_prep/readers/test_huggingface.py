"""Hugging Face datasets as input, from local folders and offline: the output equals that of the same JSON lines."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.config import PrepareConfig
from data_prep.files import sha256_file
from data_prep.prepare import PrepareError, prepare
from data_prep.readers.huggingface import DatasetError, parse_dataset
from data_prep.readers.input_files import expand, plan
from data_prep.units.job_progress import Progress

datasets = pytest.importorskip("datasets")

_ROWS: list[dict[str, str | None]] = [
    {"content": f"text {i} — {'word ' * (i % 40)}\u2028🙂 {i * i}", "domain": "odd" if i % 2 else "even"} for i in range(900)
]
_ROWS[500]["content"] = None


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def _json_folder(folder: Path) -> None:
    folder.mkdir()
    for number in range(2):
        rows = _ROWS[number * 450 : (number + 1) * 450]
        (folder / f"train-{number}.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    (folder / "test.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in _ROWS[:30]))


def _parquet_folder(folder: Path) -> None:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(_ROWS), folder / "train.parquet", row_group_size=100)
    pq.write_table(pa.Table.from_pylist(_ROWS[:30]), folder / "test.parquet")


def _saved_folder(folder: Path) -> None:
    label = datasets.ClassLabel(names=["even", "odd"])
    features = datasets.Features({"content": datasets.Value("string"), "domain": label})
    rows = [{**row, "domain": label.str2int(row["domain"])} for row in _ROWS]
    splits = {name: datasets.Dataset.from_list(part, features) for name, part in (("train", rows), ("test", rows[:30]))}
    datasets.DatasetDict(splits).save_to_disk(folder)


def _config(folder: Path, tokenizer_file: Path, **kwargs: Any) -> PrepareConfig:
    fields = {
        "input": [f"datasets://{folder}?split=train&text=content&source=domain"],
        "test": [f"datasets://{folder}?split=test&text=content&source=domain"],
        "output": folder.parent / "data",
        "tokenizer": tokenizer_file,
        "max_bad_share": 0.01,
        "unit_bytes": 10_000,
        "workers": 2,
    }
    return PrepareConfig.model_validate({**fields, **kwargs})


def _tokens(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.suffix in (".bin", ".idx", ".npy")}


@pytest.fixture(scope="module")
def lines(ray: None, tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same documents prepared from JSON lines."""
    folder = tmp_path_factory.mktemp("lines")
    for name, rows in (("train", _ROWS), ("test", _ROWS[:30])):
        records = [{"text": row["content"], "meta": {"pile_set_name": row["domain"]}} for row in rows]
        (folder / f"{name}.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    files = {"input": [f"{folder}/train.jsonl"], "test": [f"{folder}/test.jsonl"]}
    prepare(_config(folder, tokenizer_file, **files, output=folder / "out"))
    return folder / "out"


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("make", [_json_folder, _saved_folder, pytest.param(_parquet_folder, marks=pytest.mark.slow)])
def test_output_equals_that_of_the_same_documents_as_json_lines(
    lines: Path, tokenizer_file: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "raw")

    def interrupt(progress: Progress) -> None:
        if progress.units_done == 2:
            raise KeyboardInterrupt

    config = _config(tmp_path / "raw", tokenizer_file)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, interrupt)
    manifest = prepare(config)
    assert manifest.retokenized_units <= 4
    assert _tokens(config.output) == _tokens(lines)
    assert manifest.splits["train"].sources.keys() == {"even", "odd"}
    (rejected,) = [json.loads(line) for line in (config.output / "quarantine.jsonl").read_text().splitlines()]
    assert rejected == {
        "file": "raw?text=content&source=domain",
        "line": 501,
        "reason": "text is not a string",
        "first_bytes": rejected["first_bytes"],
    }
    assert all(len(record.version or "") == 64 for record in manifest.inputs)
    assert prepare(config) == manifest


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_changed_dataset_is_refused_on_resume(tokenizer_file: Path, tmp_path: Path) -> None:
    _json_folder(tmp_path / "raw")

    def interrupt(progress: Progress) -> None:
        if progress.stage == "assemble train":
            raise KeyboardInterrupt

    config = _config(tmp_path / "raw", tokenizer_file)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, interrupt)
    path = tmp_path / "raw" / "train-1.jsonl"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"text 700", b"text 007"))
    with pytest.raises(PrepareError, match=r"another run: input raw\?text=content&source=domain has other bytes"):
        prepare(config)
    with pytest.raises(PrepareError, match=r"another run: .*raw\?text=domain&source=domain is new"):
        prepare(_config(tmp_path / "raw", tokenizer_file, input=[f"datasets://{tmp_path}/raw?text=domain&source=domain"]))
    path.write_bytes(before)
    assert prepare(config).retokenized_units == 0


def test_meta_columns_are_read_as_in_the_pile(tmp_path: Path) -> None:
    rows = [{"text": ["a", "b"], "meta": {"pile_set_name": "ArXiv"}}, {"text": ["c"], "meta": None}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "x")
    (found,) = expand([f"datasets://{tmp_path}/x"])
    assert b"".join(found.lines()).splitlines() == [orjson.dumps(row) for row in rows]  # type: ignore[union-attr]


def test_names_contain_the_settings_and_no_local_path(tmp_path: Path) -> None:
    _json_folder(tmp_path / "raw")
    shutil.copytree(tmp_path / "raw", tmp_path / "more")
    config = PrepareConfig.model_validate(
        {
            "input": [f"datasets://{tmp_path}/raw?text=content", f"{tmp_path}/more/test.jsonl"],
            "test": [f"datasets://{tmp_path}/raw?text=content&split=test"],
            "output": tmp_path / "data",
        }
    )
    assert [file.name for file in plan(config)] == ["more/test.jsonl", "raw?text=content", "raw?split=test&text=content"]
    hub = parse_dataset("datasets://allenai/c4?config=en&split=validation&revision=1588ec4")
    assert hub.parts == ("datasets://", "allenai", "c4?config=en&split=validation&revision=1588ec4")
    assert str(hub) == "datasets://allenai/c4?config=en&split=validation&revision=1588ec4"


def test_errors_name_the_dataset_and_the_remedy(tmp_path: Path) -> None:
    _json_folder(tmp_path / "raw")
    for query, message in (
        ("?columns=a", r"unknown setting 'columns'; known: config, split, text"),
        ("?text=", "text has no value"),
        ("?text=body", r"no column 'body'; there are content, domain"),
        ("?text=content&source=lang", r"no column 'lang'"),
        ("?text=content&split=dev", r"dev.*(train|test)"),
        ("?text=content&config=en", r"'en' not found"),
    ):
        with pytest.raises(DatasetError, match=message):
            expand([f"datasets://{tmp_path}/raw{query}"])
    with pytest.raises(DatasetError, match="no such folder"):
        expand([f"datasets://{tmp_path}/none"])
    with pytest.raises(DatasetError, match="no name"):
        expand(["datasets://?split=train"])
    with pytest.raises(DatasetError, match=r"datasets://nobody/nothing: .*check name, config, split and the network"):
        expand(["datasets://nobody/nothing"])
    _saved_folder(tmp_path / "saved")
    with pytest.raises(DatasetError, match="no split 'dev'; there are train, test"):
        expand([f"datasets://{tmp_path}/saved?split=dev&text=content"])
    (tmp_path / "raw" / "train-1.jsonl").write_bytes(b'{"content": "a", "domain": "b"}\n{broken\n')
    (found,) = expand([f"datasets://{tmp_path}/raw?text=content"])
    with pytest.raises(DatasetError, match=r"raw\?text=content: JSON parse error"):
        list(found.lines())  # type: ignore[union-attr]


def test_text_as_bytes_and_sources_of_other_types_are_read(tmp_path: Path) -> None:
    table = pa.table({"body": [b"caf\xc3\xa9", b"\xff"], "day": pa.array([2**62, 0], pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "x.parquet")
    (found,) = expand([f"datasets://{tmp_path}?text=body&source=day"])
    first, second = b"".join(found.lines()).splitlines()  # type: ignore[union-attr]
    assert orjson.loads(first) == {"text": "café", "meta": {"pile_set_name": str(2**62)}}
    assert b"\xff" in second
    with pytest.raises(DatasetError, match=r"column 'day' has values of type timestamp\[us\], not text: set .text=…"):
        expand([f"datasets://{tmp_path}?text=day"])
