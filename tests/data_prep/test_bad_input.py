"""Every kind of bad input: good records are kept, bad ones are located and counted, and nothing is lost silently."""

import gzip
import json
import lzma
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer

from data_prep.config import PrepareConfig
from data_prep.dataset.indexed_dataset import TokenFile
from data_prep.dataset.manifest import Manifest
from data_prep.prepare import PrepareError, prepare
from data_prep.readers.input_files import InputError
from data_prep.units import counts
from data_prep.units.job_progress import Progress

pytestmark = pytest.mark.usefixtures("ray")

_LINES = [orjson.dumps({"text": f"document {i} {i * i} {i**3}"}) + b"\n" for i in range(4000)]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "good.jsonl").write_bytes(b"".join(_LINES[:50]))
    return folder


def _config(raw: Path, tokenizer_file: Path, **kwargs: object) -> PrepareConfig:
    fields = {
        "input": [f"{raw}/*"],
        "output": raw.parent / "data",
        "tokenizer": tokenizer_file,
        "val_share": 0,
        "test_share": 0,
        "max_bad_share": 0.5,
        "unit_bytes": 30_000,
        "workers": 2,
    }
    return PrepareConfig.model_validate({**fields, **kwargs})


def _quarantine(config: PrepareConfig) -> list[dict[str, object]]:
    return [json.loads(line) for line in (config.output / "quarantine.jsonl").read_text().splitlines()]


def _reconcile(manifest: Manifest) -> int:
    kept = sum(split.total.documents for split in manifest.splits.values())
    assert manifest.records == kept + sum(manifest.rejected.values()) + sum(manifest.dropped.values())
    return kept


_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "zst": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
    "gz": gzip.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        ("zst", "truncated"),
        ("gz", "corrupt"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in [("zst", "corrupt"), ("gz", "truncated"), ("xz", "truncated")]
        ),
        pytest.param("xz", "corrupt", marks=pytest.mark.slow),
    ],
)
def test_the_good_part_of_a_damaged_file_is_kept(
    raw: Path, tokenizer_file: Path, tokenizer: Tokenizer, suffix: str, damage: str
) -> None:
    good, bad = (_PACKERS[suffix](b"".join(lines)) for lines in (_LINES[:2000], _LINES[2000:]))
    bad = bad[:-3] if damage == "truncated" else bad[:20] + bytes(byte ^ 0x55 for byte in bad[20:60]) + bad[60:]
    (raw / f"a.jsonl.{suffix}").write_bytes(good + bad)
    config = _config(raw, tokenizer_file)
    manifest = prepare(config)
    assert manifest.rejected == {damage: 1}
    (rejected,) = _quarantine(config)
    kept = _reconcile(manifest)
    (note,) = manifest.notes
    assert note.startswith(f"a.jsonl.{suffix} is {damage}: ")
    assert f"line {rejected['line']}" in note
    assert ("may be wrong" in note) == (damage == "corrupt")
    assert (rejected["file"], rejected["reason"], rejected["line"]) == (f"a.jsonl.{suffix}", damage, kept - 50 + 1)
    assert kept >= 2050
    data = TokenFile(config.output / "train")
    assert tokenizer.decode(data[1999][:-1].tolist()) == orjson.loads(_LINES[1999])["text"]
    assert tokenizer.decode(data[kept - 51][:-1].tolist()) == orjson.loads(_LINES[kept - 51])["text"]


def test_bad_lines_are_located_in_the_file_for_any_unit_size(raw: Path, tokenizer_file: Path) -> None:
    bad = {
        100: (b'{"text": "\xff"}\n', "invalid UTF-8"),
        1000: (b"{broken\n", "invalid JSON"),
        1500: (b'{"text": 3}\n', "text is not a string"),
        2000: (b'{"text": ""}\n', "empty text"),
        3000: (b'{"no": "text"}\n', "no text key"),
        3500: (orjson.dumps({"text": "long " * 2000}) + b"\n", "record too long"),
    }
    lines = [bad[number][0] if number in bad else line for number, line in enumerate(_LINES, 1)]
    lines[2500] = b"\r\n"
    (raw / "a.jsonl").write_bytes(b"".join(lines))
    (raw / "b.jsonl.zst").write_bytes(_PACKERS["zst"](b"".join(lines)))
    config = _config(raw, tokenizer_file, max_record_bytes=5000)
    manifest = prepare(config)
    assert [(bad_one["file"], bad_one["line"], bad_one["reason"]) for bad_one in _quarantine(config)] == [
        (name, number, reason) for name in ("a.jsonl", "b.jsonl.zst") for number, (_, reason) in bad.items()
    ]
    assert _reconcile(manifest) == 2 * (4000 - 6 - 1) + 50
    assert manifest.blank_lines == 2
    with pytest.raises(PrepareError, match=r"12 of 8048 records are bad, above max_bad_share 0\.001: a\.jsonl line 100: inv"):
        prepare(_config(raw, tokenizer_file, max_record_bytes=5000, max_bad_share=0.001, output=raw.parent / "strict"))


@pytest.mark.parametrize("unit_bytes", [1, 45, 100, 1_000_000])
def test_a_byte_order_mark_is_one_only_at_the_start_of_a_file(raw: Path, tokenizer_file: Path, unit_bytes: int) -> None:
    """Not at the start of a block: what a line is does not depend on the size of units."""
    lines = [b"\xef\xbb\xbf" + orjson.dumps({"text": f"line {i}"}) + b"\n" for i in range(10)]
    (raw / "a.jsonl").write_bytes(b"".join(lines))
    (raw / "good.jsonl").unlink()
    config = _config(raw, tokenizer_file, unit_bytes=unit_bytes, max_bad_share=1)
    assert prepare(config).rejected == {"invalid JSON": 9}
    assert [bad["line"] for bad in _quarantine(config)] == [*range(2, 11)]


def test_two_records_on_one_line_are_counted_as_two(raw: Path, tokenizer_file: Path, tokenizer: Tokenizer) -> None:
    (raw / "good.jsonl").write_bytes(b'{"text": "first"}{"text": "second"}{"no": "text"}\n\n{"text": "third"}')
    config = _config(raw, tokenizer_file)
    manifest = prepare(config)
    assert (manifest.records, manifest.blank_lines, manifest.rejected) == (4, 1, {"no text key": 1})
    assert _reconcile(manifest) == 3
    data = TokenFile(config.output / "train")
    assert [tokenizer.decode(data[i][:-1].tolist()) for i in range(3)] == ["first", "second", "third"]


def test_too_many_sources_are_refused_before_all_work_is_done(
    raw: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counts, "MAX_SOURCES", 20)
    lines = [orjson.dumps({"text": "x", "meta": {"pile_set_name": f"https://page/{i}"}}) + b"\n" for i in range(1000)]
    (raw / "a.jsonl").write_bytes(b"".join(lines))
    config = _config(raw, tokenizer_file, unit_bytes=1000)
    with pytest.raises(PrepareError, match=r"more than 20 sources, one of them 'https://page/\d+': meta\.pile_set_name"):
        prepare(config)
    committed = sorted((config.output / ".work" / "units").glob("*.json"))
    assert len(committed) < 20
    # Those of committed units count: the next run does no further unit.
    with pytest.raises(PrepareError, match="more than 20 sources"):
        prepare(config)
    assert sorted((config.output / ".work" / "units").glob("*.json")) == committed


def test_empty_files_are_named(raw: Path, tokenizer_file: Path) -> None:
    names = ["a.jsonl", "a.jsonl.gz", "a.jsonl.xz", "a.jsonl.zst", "a.txt"]
    for name in names:
        (raw / name).touch()
    config = _config(raw, tokenizer_file)
    assert prepare(config).rejected == {"empty file": 5}
    assert _quarantine(config) == [{"file": name, "line": 1, "reason": "empty file", "first_bytes": ""} for name in names]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("a.jsonl.gz", "vanishes"),
        ("a.jsonl", "changes"),
        pytest.param("a.jsonl", "vanishes", marks=pytest.mark.slow),
        pytest.param("a.jsonl.gz", "changes", marks=pytest.mark.slow),
        pytest.param("a.jsonl.gz", "is a dangling link", marks=pytest.mark.slow),
    ],
)
def test_an_unreadable_file_fails_the_job_or_is_excluded(raw: Path, tokenizer_file: Path, name: str, fault: str) -> None:
    data = b"".join(_LINES)
    (raw / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    target = raw.parent / "elsewhere"
    if fault == "is a dangling link":
        shutil.move(raw / name, target)
        (raw / name).symlink_to(target)

    def spoil(progress: Progress) -> None:
        if progress.stage == "tokenizer":
            if fault == "vanishes":
                (raw / name).unlink()
            elif fault == "changes":
                with open(raw / name, "ab") as file:
                    file.write(b"\n")
            else:
                target.unlink()

    config = _config(raw, tokenizer_file)
    message = rf"{name}: (No such file|changed during the job).*on_unreadable=skip"
    with pytest.raises(PrepareError, match=message):
        prepare(config, spoil)
    (raw / name).unlink(missing_ok=True)
    target.unlink(missing_ok=True)
    (raw / name).write_bytes(data)
    output = raw.parent / "skipping"
    manifest = prepare(_config(raw, tokenizer_file, on_unreadable="skip", output=output), _only(spoil, fault, raw / name))
    assert list(manifest.skipped_inputs) == [name]
    assert [record.name for record in manifest.inputs] == ["good.jsonl"]
    assert _reconcile(manifest) == 50


def _only(spoil: Callable[[Progress], None], fault: str, path: Path) -> Callable[[Progress], None]:
    """`spoil`, or for a dangling link: delete it after planning, at a stage before any input is read."""

    def listener(progress: Progress) -> None:
        if fault != "is a dangling link":
            spoil(progress)
        elif progress.stage == "tokenizer":
            path.unlink()

    return listener


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_a_touched_file_is_compared_and_only_other_bytes_fail_the_job(raw: Path, tokenizer_file: Path, name: str) -> None:
    path = raw / name
    data = b"".join(_LINES) if name.endswith("jsonl") else _PACKERS["zst"](b"".join(_LINES))
    path.write_bytes(data)

    def touch(progress: Progress) -> None:
        if progress.units_done == 2:
            os.utime(path, ns=(1, 1))

    config = _config(raw, tokenizer_file, unit_bytes=5000)
    assert _reconcile(prepare(config, touch)) == 4050
    assert prepare(config).skipped_inputs == {}

    def change(progress: Progress) -> None:
        if progress.units_done == 2:
            # What was read already; a change of what is read later is no contradiction.
            path.write_bytes(bytes(byte ^ 1 for byte in data[:30]) + data[30:])

    def fields(policy: str) -> dict[str, object]:
        return {"unit_bytes": 5000, "output": raw.parent / policy, "on_unreadable": policy}

    with pytest.raises(PrepareError, match=rf"{name}: (changed during the job, with the same size|unit \d+ has other)"):
        prepare(_config(raw, tokenizer_file, **fields("fail")), change)
    path.write_bytes(data)
    manifest = prepare(_config(raw, tokenizer_file, **fields("skip")), change)
    assert list(manifest.skipped_inputs) == [name]
    assert _reconcile(manifest) == 50


def test_all_units_of_a_skipped_file_are_discarded(raw: Path, tokenizer_file: Path) -> None:
    """Otherwise a resumed run would compare them with the file, which may be complete by then, and skip it again."""
    (raw / "a.jsonl").write_bytes(b"".join(_LINES))

    def change(progress: Progress) -> None:
        if progress.units_done == 4:
            with open(raw / "a.jsonl", "ab") as file:
                file.write(b"\n")
        if progress.stage == "assemble train":
            raise KeyboardInterrupt

    config = _config(raw, tokenizer_file, unit_bytes=5000, on_unreadable="skip")
    with pytest.raises(KeyboardInterrupt):
        prepare(config, change)
    assert {path.name.split(".")[0] for path in (config.output / ".work" / "units").glob("*.json")} == {"00001"}


def test_a_folder_without_a_match_is_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(InputError, match="no file matches"):
        prepare(_config(tmp_path / "raw", tokenizer_file))


def test_other_containers_give_the_same_documents(raw: Path, tokenizer_file: Path, tokenizer: Tokenizer) -> None:
    texts = [orjson.loads(line)["text"] for line in _LINES[:300]]
    (raw / "good.jsonl").unlink()
    (raw / "a.jsonl.xz").write_bytes(lzma.compress(b"".join(_LINES[:100])) + lzma.compress(b"".join(_LINES[100:200])))
    table = pa.table({"text": texts[200:299], "meta": [{"pile_set_name": "ArXiv"}] * 99, "other": range(99)})
    pq.write_table(table, raw / "b.parquet", row_group_size=10)
    (raw / "c.txt").write_text(texts[299])
    config = _config(raw, tokenizer_file)
    manifest = prepare(config)
    data = TokenFile(config.output / "train")
    assert [tokenizer.decode(data[i][:-1].tolist()) for i in range(len(data))] == texts
    assert {name: counts.documents for name, counts in manifest.splits["train"].sources.items()} == {
        "ArXiv": 99,
        "unknown": 201,
    }


def test_a_parquet_file_in_which_nothing_can_be_read_stops_the_job_or_is_skipped(raw: Path, tokenizer_file: Path) -> None:
    pq.write_table(pa.table({"text": ["a"] * 1000}), raw / "a.parquet")
    (raw / "a.parquet").write_bytes((raw / "a.parquet").read_bytes()[:-20])
    (raw / "b.txt").write_bytes(b'caf\xe9 "\n\\')
    with pytest.raises(PrepareError, match=r"a\.parquet: nothing in it can be read: .*on_unreadable=skip"):
        prepare(_config(raw, tokenizer_file))
    config = _config(raw, tokenizer_file, on_unreadable="skip")
    manifest = prepare(config)
    assert list(manifest.skipped_inputs) == ["a.parquet"]
    assert "nothing in it can be read" in manifest.skipped_inputs["a.parquet"]
    assert [(bad["file"], bad["reason"]) for bad in _quarantine(config)] == [("b.txt", "invalid UTF-8")]
    assert _reconcile(manifest) == 50
