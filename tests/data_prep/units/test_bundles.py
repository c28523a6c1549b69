"""Many small files as one unit give the bytes of files that are units of their own, also with odd files among them."""

import gzip
import json
import os
from pathlib import Path

import pytest

from data_prep.config import PrepareConfig
from data_prep.dataset.manifest import Manifest
from data_prep.files import sha256_file
from data_prep.prepare import PrepareError, prepare
from data_prep.readers.input_files import plan
from data_prep.units import bundles
from data_prep.units.job_progress import Progress

pytestmark = pytest.mark.usefixtures("ray")

_UNIT_BYTES = 80_000
_TOO_LARGE = {20, 41}  # by size, and by what it expands to


def _bytes(number: int) -> bytes:
    if number == 20:
        return b"".join(json.dumps({"text": f"big {k} " * 50}).encode() + b"\n" for k in range(300))
    if number == 41:
        return gzip.compress(json.dumps({"text": "z" * 500}).encode() * 900)
    if number == 33:
        return b""
    records = [{"text": f"doc {number} {j} " * 5, "meta": {"pile_set_name": f"s{j % 3}"}} for j in range(3)]
    lines = [*map(json.dumps, records), *(["{broken"] if number % 7 == 0 else [])]
    data = "\n".join(lines).encode()
    return gzip.compress(data) if number % 5 == 0 else data


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(60):
        is_packed = number == 41 or (number % 5 == 0 and number != 20)
        (folder / f"{number:03}.jsonl{'.gz' if is_packed else ''}").write_bytes(_bytes(number))
    return folder


def _config(raw: Path, output: str, **kwargs: object) -> PrepareConfig:
    fields = {
        "input": [f"{raw}/*"],
        "output": raw.parent / output,
        "tokenizer": "bytes",
        "val_share": 0.1,
        "test_share": 0.1,
        "max_bad_share": 0.5,
        "unit_bytes": _UNIT_BYTES,
        "deduplicate": True,
    }
    return PrepareConfig.model_validate({**fields, **kwargs})


def _hashes(config: PrepareConfig) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in config.output.iterdir() if path.name != "manifest.json"}


def _content(manifest: Manifest) -> dict[str, object]:
    varying = {"command", "stage_seconds", "retokenized_units", "manifest_sha256", "units", "engine"}
    return manifest.model_dump(exclude=varying)


@pytest.fixture
def alone(raw: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Manifest, dict[str, str]]:
    """Every file as a unit of its own."""
    config = _config(raw, "alone")
    with monkeypatch.context() as patch:
        patch.setattr(bundles, "_MIN_FILES", 1000)
        return prepare(config), _hashes(config)


class _Stop(BaseException):
    pass


def test_bundles_give_the_bytes_of_single_files_after_any_interruption(
    raw: Path, alone: tuple[Manifest, dict[str, str]]
) -> None:
    manifest = prepare(_config(raw, "data", workers=2))
    assert _content(manifest) == _content(alone[0])
    assert _hashes(_config(raw, "data")) == alone[1]
    assert manifest.retokenized_units == 0
    assert 5 < manifest.units < 20 < 60 < alone[0].units

    config = _config(raw, "resumed")
    for num_units in (1, 5, 30, 60):

        def stop(progress: Progress, num_units: int = num_units) -> None:
            if progress.units_done >= num_units:
                raise _Stop

        with pytest.raises(_Stop):
            prepare(config, stop)
    # A record whose part file is damaged: all files of the bundle are done again.
    part = min((config.output / ".work" / "units").glob("*.part"))
    part.write_bytes(b"x" + part.read_bytes()[1:])
    assert prepare(config).retokenized_units == 1
    assert _hashes(config) == alone[1]


def test_an_unreadable_file_of_a_bundle_is_named_skipped_and_read_later(
    raw: Path, alone: tuple[Manifest, dict[str, str]]
) -> None:
    away = raw.parent / "011.jsonl"

    def move(progress: Progress) -> None:
        if progress.stage == "tokenizer":
            (raw / "011.jsonl").rename(away)

    with pytest.raises(PrepareError, match=r"011\.jsonl: No such file.*Then rerun.*on_unreadable=skip"):
        prepare(_config(raw, "data"), move)
    away.rename(raw / "011.jsonl")
    prepare(_config(raw, "data"))
    assert _hashes(_config(raw, "data")) == alone[1]
    manifest = prepare(_config(raw, "skipping", on_unreadable="skip"), move)
    assert list(manifest.skipped_inputs) == ["011.jsonl"]
    assert manifest.records == alone[0].records - 3


def test_a_file_of_a_bundle_that_changes_is_skipped_and_a_touched_one_is_not(
    raw: Path, alone: tuple[Manifest, dict[str, str]]
) -> None:
    def touch(progress: Progress) -> None:
        if progress.units_done > 10:
            os.utime(raw / "003.jsonl", ns=(1, 1))

    prepare(_config(raw, "touched"), touch)
    assert _hashes(_config(raw, "touched")) == alone[1]

    def change(progress: Progress) -> None:
        if progress.units_done > 10:
            (raw / "003.jsonl").write_bytes(_bytes(3).replace(b"doc", b"dok"))

    manifest = prepare(_config(raw, "changed", on_unreadable="skip"), change)
    assert list(manifest.skipped_inputs) == ["003.jsonl"]
    assert manifest.records == alone[0].records - 3


def test_files_are_bundled_in_their_order_up_to_the_limits(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = plan(_config(raw, "data"))
    found, others = bundles.bundled(files, _UNIT_BYTES)
    assert [file.index for file in others] == [20]
    assert sorted(file.index for bundle in found for file in bundle) == sorted({*range(60)} - {20})
    for bundle in found:
        numbers = [file.index for file in bundle]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        assert sum(file.bytes for file in bundle) <= _UNIT_BYTES // 2
    monkeypatch.setattr(bundles, "_MAX_FILES", 7)
    assert max(map(len, bundles.bundled(files, 10**9)[0])) == 7
    assert bundles.bundled(files[:10], 10**9) == ([], files[:10])


def test_output_does_not_depend_on_the_sizes_of_internal_blocks(
    raw: Path, alone: tuple[Manifest, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of copies, buckets of hashes and pieces of an index, whose ends a small corpus never reaches."""
    monkeypatch.setattr("data_prep.units.assemble._COPIED_AT_ONCE", 50)
    monkeypatch.setattr("data_prep.units.dedup._BUCKET_DOCUMENTS", 17)
    monkeypatch.setattr("data_prep.dataset.indexed_dataset._BLOCK", 13)
    monkeypatch.setattr("data_prep.files._CHUNK_BYTES", 100)
    assert _content(prepare(_config(raw, "data"))) == _content(alone[0])
    assert _hashes(_config(raw, "data")) == alone[1]
