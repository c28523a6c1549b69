"""The results of the battery: one JSON file a run, in a folder that may move to another machine.

    DIR/RUN.json           settings and their hash, the hash of the test rows, scores, and the validations in training
    DIR/results.parquet    the same of many runs, as a report writes them: a folder that holds a copy of it resumes from there

A file is written when its run is complete, and never changed. It holds no path and nothing of the machine's state.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.files import atomic_write, sha256_bytes
from pipeline.scaling.battery.settings import BatteryRun, run_name
from pipeline.scaling.battery.tasks.by_name import TASKS
from pipeline.scaling.battery.tasks.task_rows import TaskRows

RESULTS = "results.parquet"
_OWN_TO_A_RUN = ("task", "arm", "size", "length", "seed", "learning_rate", "rows", "model")
"""Settings in which the runs of one folder may differ."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One validation."""

    step: int
    loss: float
    """Nats per target, the mean of the training batches since the last validation."""
    tokens: float
    """Share of targets of held-out rows that are right."""
    solved: float
    """Share of held-out rows in which all are."""


@dataclass(frozen=True, kw_only=True)
class BatteryOutcome:
    """The result of one run."""

    settings: dict[str, Any]
    settings_sha256: str
    rows_sha256: str
    """Of the test rows, so that results of different generators are not mixed."""
    steps: int
    diverged: bool
    tokens: float
    """Share of targets of test rows that are right."""
    solved: float
    """Share of test rows in which all are."""
    shuffled_tokens: float
    """As `tokens`, with the encoder's tokens of each row in a random order."""
    shuffled_solved: float
    num_parameters: int
    flops: float
    """Training FLOPs, 3 x forward."""
    seconds: float
    """Of the processor, for training and tests."""
    curve: tuple[CurvePoint, ...]

    @property
    def name(self) -> str:
        return run_name(*(self.settings[key] for key in ("task", "length", "arm", "size", "seed")))

    @property
    def task(self) -> str:
        return str(self.settings["task"])

    @property
    def arm(self) -> str:
        return str(self.settings["arm"])

    @property
    def size(self) -> str:
        return str(self.settings["size"])

    @property
    def length(self) -> int:
        return int(self.settings["length"])


def rows_sha256(rows: TaskRows) -> str:
    return sha256_bytes(b"".join(np.ascontiguousarray(part, dtype="<i8").tobytes() for part in rows))


def write_outcome(folder: Path, run: BatteryRun, outcome: BatteryOutcome) -> None:
    with atomic_write(folder / f"{run.name}.json") as file:
        file.write(json.dumps(asdict(outcome), indent=1).encode() + b"\n")


def write_table(path: Path, outcomes: Sequence[BatteryOutcome]) -> None:
    """Write results.parquet."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{**asdict(one), "name": one.name, "settings": json.dumps(one.settings)} for one in outcomes]
    with atomic_write(path) as file:
        parquet.write_table(pa.Table.from_pylist(rows), file, compression="zstd")


def read_outcomes(folder: Path) -> list[BatteryOutcome]:
    """All results of a folder, by name. Raises ValueError, naming the file, for one that cannot be read."""
    found = {one.name: one for one in _read_table(folder / RESULTS)}
    for path in sorted(folder.glob("*.json")):
        outcome = _read_file(path)
        found[outcome.name] = outcome
    return [found[name] for name in sorted(found)]


def check_outcomes(folder: Path, runs: Sequence[BatteryRun]) -> set[str]:
    """Names of `runs` whose results are in the folder.

    Raises ValueError if a result there was made with other settings or other rows: then the results cannot be compared.
    """
    planned = {run.name: run for run in runs}
    outcomes = read_outcomes(folder)
    for outcome in outcomes:
        run = planned.get(outcome.name, runs[0])
        keys = [key for key in run.settings if outcome.name in planned or key not in _OWN_TO_A_RUN]
        differing = [
            f"{key} ({outcome.settings.get(key)} there, {run.settings[key]} now)"
            for key in keys
            if outcome.settings.get(key) != run.settings[key]
        ]
        if differing:
            raise ValueError(
                f"{outcome.name} in {folder} was made with other settings: {', '.join(differing)}; give another --output, or "
                "undo the difference"
            )
    check_rows(outcomes)
    return {outcome.name for outcome in outcomes} & set(planned)


def check_rows(outcomes: Iterable[BatteryOutcome]) -> None:
    """Raise ValueError if this version of the tasks makes other test rows than those of a result."""
    now: dict[tuple[str, int, int], str] = {}
    for outcome in outcomes:
        key = outcome.task, outcome.length, int(outcome.settings["test_rows"])
        if key not in now:
            now[key] = rows_sha256(TASKS[key[0]](key[1]).rows("test", np.arange(key[2])))
        if outcome.rows_sha256 != now[key]:
            raise ValueError(
                f"{outcome.name} was tested on other rows than this version makes for {outcome.task} at length "
                f"{outcome.length}: give another --output"
            )


def _read_table(path: Path) -> list[BatteryOutcome]:
    if not path.is_file():
        return []
    from pyarrow import ArrowException, parquet

    try:
        rows = parquet.read_table(path).to_pylist()
        for row in rows:
            row["settings"] = json.loads(row["settings"])
            del row["name"]
        return [_outcome(row) for row in rows]
    except (ArrowException, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no table of the battery's results ({error}): move it away") from error


def _read_file(path: Path) -> BatteryOutcome:
    try:
        return _outcome(json.loads(path.read_bytes()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no result of the battery ({error}): move it away, and its run is made again") from error


def _outcome(values: dict[str, Any]) -> BatteryOutcome:
    points = tuple(CurvePoint(**point) for point in values.pop("curve"))
    outcome = BatteryOutcome(**values, curve=points)
    outcome.name  # noqa: B018  a result without the settings that name it is an error here
    return outcome
