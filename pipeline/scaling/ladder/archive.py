"""An archive of a ladder: its plan and the small results of its completed runs, without weights, to be committed or moved.

    ladder.json                 the plan, the data's absolute path cut to its last part; and small files of the ladder's folder
    runs/NAME/                  configuration, status, metrics, scores and further small files of a run, its last position, and
                                archived.json in the place of the tokenizer and of the data

An archive is a ladder folder: `scaling report` reads it, and `scaling run` trains what is missing in it. A run of several ends
is archived when all of them are complete, because a branch needs the weights of its plateau.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_prep.files import atomic_write, readable_json, sha256_file
from data_prep.tokenization.tokenizer import TOKENIZER_FILE
from pipeline.run_folder import LATEST, METRICS, POSITION, STATE, STATUS, checkpoints_of, read_status
from pipeline.scaling.ladder.ladder import (
    DATA_PATH_FILE,
    LADDER_FILE,
    Ladder,
    PlannedRun,
    chain,
    read_ladder,
    stored_sha256,
    without_absolute_path,
)
from pipeline.scaling.ladder.learning_rates import has_diverged
from pipeline.scaling.ladder.run_configs import runs_of
from pipeline.scaling.ladder.states import state_of
from pipeline.scaling.runs import ARCHIVED_FILE, distinct_tokens
from pipeline.tracking.metrics import read_metrics
from pipeline.tracking.mlflow_session import RUN_ID_FILE

_CONFIG = "config.json"
_LEFT_OUT = (TOKENIZER_FILE, "config.yaml", DATA_PATH_FILE, RUN_ID_FILE)
"""Files that say nothing about results, or only about this machine; archived.json stands for the tokenizer."""
_PARTS = ("floors",)
"""Folders of a ladder with small files of all its runs."""
_SUFFIXES = (".json", ".jsonl", ".txt", ".parquet", "")
_TRAINING_ROWS = 40
"""Rows of metrics between the validations that are kept, about this many of each run."""


@dataclass(frozen=True, kw_only=True)
class Archived:
    """What `archive` did."""

    runs: tuple[str, ...]
    """Run folders that the archive holds now."""
    incomplete: tuple[str, ...]
    """Planned runs that are not complete in the ladder: of these only completed tries of sweeps are archived."""
    kept: tuple[str, ...]
    """Files of the archive that differ from the ladder's: they were not replaced."""
    large: tuple[str, ...]
    """Files of the ladder that are larger than the limit: they were left out."""
    num_bytes: int


def archive(folder: Path, output: Path, max_bytes: int) -> Archived:
    """Copy plan and results of a ladder into `output`, which may hold an archive of the same plan: what is missing is added.

    Files of more than `max_bytes` are left out. Raises ValueError if `output` holds anything else.
    """
    ladder = read_ladder(folder)
    _check_output(folder, output)
    output.mkdir(parents=True, exist_ok=True)
    copy = _Copy(output=output, max_bytes=max_bytes)
    for path in (*_small_files(folder), *(path for part in _PARTS for path in _small_files(folder / part))):
        if path.name != LADDER_FILE:
            copy.file(path, str(path.relative_to(folder)))
    _archive_plan(folder, output)
    incomplete = []
    for run in ladder.runs:
        if state_of(folder, ladder, run).state != "complete":
            incomplete.append(run.name)
        for name in _folders(folder, ladder, run):
            _archive_run(copy, ladder, runs_of(folder) / name, name)
    there = sorted(path.name for path in runs_of(output).glob("*") if path.is_dir())
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return Archived(
        runs=tuple(there), incomplete=tuple(incomplete), kept=tuple(copy.kept), large=tuple(copy.large), num_bytes=size
    )


class _Copy:
    """Writes files into an archive. A file that is there is never replaced."""

    def __init__(self, *, output: Path, max_bytes: int) -> None:
        self._output, self._max_bytes = output, max_bytes
        self.kept: list[str] = []
        self.large: list[str] = []

    def file(self, path: Path, name: str) -> None:
        """A file of the ladder, under its `name` in the archive."""
        if path.stat().st_size > self._max_bytes:
            self.large.append(f"{name} ({path.stat().st_size / 1000:,.0f} kB)")
        else:
            self.bytes(path.read_bytes(), name)

    def bytes(self, content: bytes, name: str) -> None:
        target = self._output / name
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as file:
                file.write(content)
        elif target.read_bytes() != content:
            self.kept.append(name)


def _check_output(folder: Path, output: Path) -> None:
    if output.resolve() == folder.resolve():
        raise ValueError(f"--output {output} is the ladder itself: give another folder")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / LADDER_FILE).is_file():
        raise ValueError(f"--output {output} holds other files and no archive of a ladder: give another folder")
    if not _extends(folder, output) and not _extends(output, folder):
        raise ValueError(f"--output {output} holds the archive of another plan: give another folder")


def _extends(folder: Path, other: Path) -> bool:
    """Whether the plan of a folder is that of another, or an extension of it."""
    return stored_sha256(other) in chain(json.loads((folder / LADDER_FILE).read_bytes()))


def _archive_plan(folder: Path, output: Path) -> None:
    if not (output / LADDER_FILE).is_file() or not _extends(output, folder):
        values = without_absolute_path(json.loads((folder / LADDER_FILE).read_bytes()))
        with atomic_write(output / LADDER_FILE) as file:
            file.write(json.dumps(values, indent=1).encode() + b"\n")


def _small_files(folder: Path) -> list[Path]:
    paths = (path for path in sorted(folder.glob("*")) if path.is_file() and not path.is_symlink())
    return [path for path in paths if path.suffix in _SUFFIXES and path.name not in _LEFT_OUT and path.name[0] != "."]


def _folders(folder: Path, ladder: Ladder, run: PlannedRun) -> Iterator[str]:
    """The run folders of a planned run that have a result: each try of a sweep, all ends of a main run or none."""
    if run.phase == "main":
        if state_of(folder, ladder, run).state == "complete":
            yield from (name for _, name in run.folders())
        return
    if (runs_of(folder) / run.name).is_dir():
        yield run.name
    for path in sorted(runs_of(folder).glob(f"{run.name}-lr*")):
        if read_status(path) == "finished" or has_diverged(path):
            yield path.name


def _archive_run(copy: _Copy, ladder: Ladder, source: Path, name: str) -> None:
    config_file = source / _CONFIG
    for path in _small_files(source):
        if path.name not in (_CONFIG, METRICS, STATUS, ARCHIVED_FILE):
            copy.file(path, f"runs/{name}/{path.name}")
    if not config_file.is_file():  # the folder of a sweep's result
        return
    config: dict[str, Any] = json.loads(config_file.read_bytes())
    copy.bytes(_archived(source, config, ladder.data_path), f"runs/{name}/{ARCHIVED_FILE}")
    path = ladder.planned.data.path
    blend = ladder.planned.data.model_dump(mode="json")["blend"]
    data = {**config["data"], "path": path.name if path.is_absolute() else str(path), "blend": blend}
    copy.bytes(readable_json({**config, "data": data}), f"runs/{name}/{_CONFIG}")
    copy.bytes(b"".join(orjson.dumps(row) + b"\n" for row in thinned(source, config)), f"runs/{name}/{METRICS}")
    for path, content in _position(source):
        copy.bytes(content, f"runs/{name}/{path.relative_to(source)}")
    copy.file(source / STATUS, f"runs/{name}/{STATUS}")  # last: without it a run counts as not started


def _archived(source: Path, config: Mapping[str, Any], data_path: Path) -> bytes:
    """What a report needs of files that are left out: the tokenizer's hash, and how many distinct tokens the data have."""
    path = source / ARCHIVED_FILE
    if path.is_file():
        return path.read_bytes()
    tokenizer = source / TOKENIZER_FILE
    values = {
        "tokenizer_sha256": sha256_file(tokenizer) if tokenizer.is_file() else None,
        "distinct_tokens": distinct_tokens({**config["data"], "path": str(data_path)}),
    }
    return readable_json(values)


def _position(source: Path) -> Iterator[tuple[Path, bytes]]:
    """The pointer to the last checkpoint, and its position.json without the losses that the spike detector remembers."""
    pointer = checkpoints_of(source) / LATEST
    path = checkpoints_of(source) / pointer.read_text().strip() / STATE / POSITION if pointer.is_file() else pointer
    if path.is_file():
        yield pointer, pointer.read_bytes()
        yield path, readable_json({**json.loads(path.read_bytes()), "guards": {}})


def thinned(source: Path, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of a run's metrics: all validations and skipped steps, the first, the last, the one with the most memory, and about
    40 others. Thinned rows are not thinned further."""
    rows = read_metrics(source / METRICS)
    train = config["train"]
    every = train["log_every"] * math.ceil(train["steps"] / train["log_every"] / _TRAINING_ROWS)
    most = max((row.get("memory_gb") or 0.0 for row in rows), default=0.0)
    peak = next((number for number, row in enumerate(rows) if most and row.get("memory_gb") == most), -1)
    return [
        row
        for number, row in enumerate(rows)
        if number in (0, len(rows) - 1, peak) or "source" in row or row.get("skipped") or row["step"] % every == 0
    ]
