"""A report from folders: it collects runs, fits scaling laws, and adds the cost of inference where it was measured."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.scaling.analysis import analyse
from pipeline.scaling.fit.points import Excluded
from pipeline.scaling.ladder.ladder import LADDER_FILE
from pipeline.scaling.report.page import ReportSection, write_report
from pipeline.scaling.report.tables import Table
from pipeline.scaling.report.words import answer
from pipeline.scaling.results import Collected, collect
from pipeline.tracking.mlflow_session import RUN_ID_FILE, tracking_uri

_SHOWN = 3
"""Reasons in an error."""


@dataclass(frozen=True)
class ReportFiles:
    """A written report: its answer in sentences, the runs that it excluded and why, and its files."""

    answer: list[str]
    excluded: tuple[Excluded, ...]
    files: list[Path]


def make_report(runs: Sequence[Path], output: Path, baseline: str | None, inference: Path | None, command: str) -> ReportFiles:
    """Write the report of ladders and run folders into `output`; `command` is shown in it.

    Raises ValueError if no run is left to report, or if the runs cannot be compared.
    """
    extra = [] if inference is None else [_inference_section(inference)]
    collected = collect(runs)
    if not collected.sets:
        reasons = "; ".join(f"{one.run}: {one.reason}" for one in collected.excluded[:_SHOWN])
        if len(collected.excluded) > _SHOWN:
            reasons += f"; and {len(collected.excluded) - _SHOWN} more"
        raise ValueError(f"no run is left to report ({reasons or 'none was given'}): complete runs first")
    baseline = baseline or _baseline(collected)
    analyses = [analyse(results, baseline) for results in collected.sets]
    files = write_report(output, collected, analyses, command, extra)
    return ReportFiles(answer(collected.sets[0], analyses[0]), collected.excluded, files)


def log_to_mlflow(runs: Sequence[Path], files: Sequence[Path]) -> None:
    """Add the files to the MLflow run of every ladder that has one; an unreachable server is only reported on stderr."""
    for folder in runs:
        path = folder / RUN_ID_FILE
        if not ((folder / LADDER_FILE).is_file() and path.is_file()):
            continue
        from mlflow.tracking import MlflowClient

        try:
            client = MlflowClient(tracking_uri=tracking_uri())
            for file in files:
                client.log_artifact(path.read_text().strip(), str(file), "report")
        except Exception as error:
            print(f"The report is not in MLflow ({type(error).__name__} at {tracking_uri()})", file=sys.stderr)


def _baseline(collected: Collected) -> str:
    """The ladders', or t5, or the first arm."""
    named = [ladder.recipe.baseline for _, ladder in collected.ladders]
    arms = [point.arm for point in collected.sets[0].checked.points]
    return next((name for name in (*named, "t5") if name in arms), arms[0])


def _inference_section(path: Path) -> ReportSection:
    from launch.bench.inference_record import columns, read_records, tables

    records = read_records(path)
    first = records[0]
    note = (
        f"Random weights, {first.size}, {first.precision}, {first.device} with {first.threads} threads; {first.machine}. "
        "Ratios are to t5 in the same round. docs/inference.md describes each column."
    )
    made = [
        Table(title=f"Inference, {title}", note=note, columns=columns(records), rows=tuple(rows))
        for title, rows in tables(records)
    ]
    return ReportSection(title="Inference cost", tables=tuple(made))
