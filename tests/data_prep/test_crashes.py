"""Kills at any time of the driver and its workers, and a full disk: the output has the same bytes."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import psutil
import pytest
import zstandard

from data_prep.config import PrepareConfig
from data_prep.dataset.manifest import load_manifest, verify
from data_prep.files import sha256_file
from data_prep.prepare import prepare
from tests.helpers.inline_ray import inline_ray

_PROGRAM = """
import sys
from data_prep.config import PrepareConfig
from data_prep.prepare import prepare
try:
    prepare(PrepareConfig.model_validate_json(sys.argv[1]))
except ValueError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
_WORKERS = 2
_STARTS = 4


def _config(corpus: Path, tokenizer_file: Path, output: Path, **kwargs: object) -> PrepareConfig:
    fields = {
        "input": [f"{corpus}/*.jsonl*"],
        "output": output,
        "tokenizer": tokenizer_file,
        "unit_bytes": 40_000,
        "workers": _WORKERS,
        "val_share": 0.05,
        "max_bad_share": 0.01,
    }
    return PrepareConfig.model_validate({**fields, **kwargs})


@pytest.fixture(scope="module")
def expected(big_corpus: Path, tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The output of an undisturbed run in this process, with whole files as units."""
    output = tmp_path_factory.mktemp("peace") / "data"
    with inline_ray(output.parent):
        prepare(_config(big_corpus, tokenizer_file, output, workers=1, unit_bytes=100_000_000))
    return _hashes(output)


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.name != "manifest.json"}


def _start(config: PrepareConfig) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, config.model_dump_json()],
        env={**environment, "PYTHONSAFEPATH": "1"},
        stderr=subprocess.PIPE,
    )


def _num_committed(output: Path) -> int:
    return len(list((output / ".work" / "units").glob("*.json")))


def _moments(process: subprocess.Popen[bytes], output: Path) -> Iterator[int]:
    """Yield the number of committed units repeatedly while the process runs."""
    while process.poll() is None:
        yield _num_committed(output)
        time.sleep(0.002)


def _kill_driver_at(config: PrepareConfig, num_units: int, seconds: float = 0) -> None:
    """Start a run and kill only its driver `seconds` after `num_units` units are committed.

    On a machine that is so busy that Ray does not start, the run is started again, as its message says.
    """
    for _ in range(_STARTS):
        errors = _killed_driver(config, num_units, seconds)
        if errors is None:
            return
        assert "Ray did not start" in errors, f"the run ended before it could be killed: {errors}"
    raise AssertionError(errors)


def _killed_driver(config: PrepareConfig, num_units: int, seconds: float) -> str | None:
    """What the run wrote to stderr, if it ended before it was killed."""
    process = _start(config)
    children: list[psutil.Process] = []
    for committed in _moments(process, config.output):
        if committed >= num_units:
            time.sleep(seconds)
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            break
    _, errors = process.communicate()
    # Workers die with the driver; two of Ray's agents would stay alive.
    for child in psutil.wait_procs(children, timeout=3)[1]:
        child.kill()
    return None if process.returncode == -9 else errors.decode()


def test_a_run_resumes_after_its_driver_was_killed(
    ray: None, big_corpus: Path, tokenizer_file: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    """The single frame at 80 %: at most 2 units per worker are repeated, and the bytes are the same."""
    config = _config(big_corpus, tokenizer_file, tmp_path / "data", input=[f"{big_corpus}/a.jsonl.zst"])
    alone = prepare(_config(big_corpus, tokenizer_file, tmp_path / "alone", input=config.input))
    _kill_driver_at(config, int(alone.units * 0.8))
    assert not (config.output / "manifest.json").exists()
    committed = _num_committed(config.output)
    assert committed >= int(alone.units * 0.8)
    manifest = prepare(config)
    assert manifest.units == alone.units > 20
    assert manifest.retokenized_units <= 2 * _WORKERS
    assert _hashes(config.output) == _hashes(tmp_path / "alone")
    assert verify(config.output) == []


@pytest.mark.slow
def test_an_addition_that_is_killed_leaves_its_base_and_has_the_bytes_of_one_run(
    real_ray: None, big_corpus: Path, tokenizer_file: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    base = _config(big_corpus, tokenizer_file, tmp_path / "base", input=[f"{big_corpus}/a.jsonl.zst"])
    prepare(base)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in base.output.iterdir()}
    config = _config(big_corpus, tokenizer_file, tmp_path / "data", base=base.output)
    for num_units in (3, 15):
        _kill_driver_at(config, num_units)
        assert not (config.output / "manifest.json").exists()
    manifest = prepare(config)
    assert manifest.retokenized_units <= 2 * 2 * _WORKERS
    assert _hashes(config.output) == expected
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in base.output.iterdir()} == before


@pytest.fixture(scope="module")
def num_units(
    big_corpus: Path, tokenizer_file: Path, expected: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> int:
    """The units of the runs that are killed."""
    output = tmp_path_factory.mktemp("units") / "data"
    with inline_ray(output.parent):
        manifest = prepare(_config(big_corpus, tokenizer_file, output))
    assert _hashes(output) == expected
    return manifest.units


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_drivers_killed_at_random_moments(
    real_ray: None, big_corpus: Path, tokenizer_file: Path, expected: dict[str, str], num_units: int, tmp_path: Path, seed: int
) -> None:
    """Moments are counted in committed units, so that they are spread over the work on a machine of any speed.

    Two of the drivers are killed after the last commit, while files are assembled.
    """
    moments = random.Random(seed)
    config = _config(big_corpus, tokenizer_file, tmp_path / "data")
    due = num_units if seed < 2 else moments.randrange(num_units)
    _kill_driver_at(config, due, seconds=moments.uniform(0, 0.05))
    assert not (config.output / "manifest.json").exists()
    manifest = prepare(config)
    assert manifest.retokenized_units <= 2 * _WORKERS
    assert _hashes(config.output) == expected
    assert verify(config.output) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_workers_and_readers_killed_at_random_moments(
    big_corpus: Path, tokenizer_file: Path, expected: dict[str, str], tmp_path: Path, seed: int
) -> None:
    moments = random.Random(seed)
    config = _config(big_corpus, tokenizer_file, tmp_path / "data")
    process = _start(config)
    kills = 0
    due = moments.randrange(0, 5)
    for committed in _moments(process, config.output):
        if committed >= due and kills < 2:
            actors = [child for child in psutil.Process(process.pid).children(recursive=True) if _is_actor(child)]
            if actors:
                moments.choice(actors).kill()
                kills += 1
                due = committed + moments.randrange(5, 20)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert kills > 0
    assert _hashes(config.output) == expected
    assert load_manifest(config.output).retokenized_units <= kills


def _is_actor(process: psutil.Process) -> bool:
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return title.startswith(("ray::_Worker", "ray::_ReaderActor"))


def test_four_workers_write_the_same_bytes_as_one(
    big_corpus: Path, tokenizer_file: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    config = _config(big_corpus, tokenizer_file, tmp_path / "data", workers=4)
    process = _start(config)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert _hashes(config.output) == expected


def test_a_damaged_commit_is_found_and_repeated(
    ray: None, big_corpus: Path, tokenizer_file: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    config = _config(big_corpus, tokenizer_file, tmp_path / "data")

    def interrupt(progress: object) -> None:
        if getattr(progress, "stage", "") == "assemble train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config, interrupt)
    units = config.output / ".work" / "units"
    first, second, third = sorted(units.glob("*.part"))[:3]
    changed = bytearray(first.read_bytes())
    changed[len(changed) // 2] ^= 1
    first.write_bytes(changed)
    second.unlink()
    third.with_suffix(".json").write_bytes(b"{")
    (units / f".{third.name}.1.abcd.tmp").write_bytes(b"left by a kill")
    notes: list[str] = []
    manifest = prepare(config, lambda progress: notes.append(progress.note or ""))
    assert any("2 committed units were damaged" in note for note in notes)
    assert manifest.retokenized_units == 3
    assert _hashes(config.output) == expected


def test_changed_input_of_an_unfinished_run_is_refused(ray: None, tokenizer_file: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    lines = [orjson.dumps({"text": f"document {i} " * 30}) for i in range(500)]
    compress = zstandard.ZstdCompressor(level=1, write_content_size=False).compress
    (raw / "a.jsonl").write_bytes(b"\n".join(lines))
    (raw / "b.jsonl.zst").write_bytes(compress(b"\n".join(lines)))
    config = _config(raw, tokenizer_file, tmp_path / "data", unit_bytes=20_000)

    def interrupt(progress: object) -> None:
        if getattr(progress, "stage", "") == "assemble train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config, interrupt)
    # The same bytes with another modification time, as after a copy, are the same input.
    os.utime(raw / "a.jsonl")
    with pytest.raises(KeyboardInterrupt):
        prepare(config, interrupt)
    before = (raw / "a.jsonl").read_bytes()
    (raw / "a.jsonl").write_bytes(before.replace(b"document 7 ", b"documemt 7 "))
    with pytest.raises(ValueError, match=r"another run: input a\.jsonl has other bytes"):
        prepare(config)
    (config.output / ".work" / "files" / "00000.json").unlink()
    with pytest.raises(ValueError, match=r"another run: input a\.jsonl has other bytes in unit 0"):
        prepare(config)
    (raw / "a.jsonl").write_bytes(before + b" ")
    with pytest.raises(
        ValueError, match=rf"input a\.jsonl was {len(before)} bytes for hash and is {len(before) + 1} bytes for hash"
    ):
        prepare(config)
    (raw / "a.jsonl").write_bytes(before)
    prepare(config)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB. Skips if the user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    result = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"mounting a small tmpfs is not allowed here: {result.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_run_resumes_after_a_full_disk(
    ray: None, big_corpus: Path, tokenizer_file: Path, expected: dict[str, str], small_disk: Path
) -> None:
    config = _config(big_corpus, tokenizer_file, small_disk / "data")
    with pytest.raises(ValueError, match=r"no space left for .*data.*rerun the same command to resume"):
        prepare(config)
    committed = _num_committed(config.output)
    assert committed > 5
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    manifest = prepare(config)
    assert manifest.retokenized_units <= 2 * _WORKERS
    assert _hashes(config.output) == expected
