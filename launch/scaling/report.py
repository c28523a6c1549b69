"""A report from folders: it collects runs, fits scaling laws, and adds the cost of inference where it was measured."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.scaling.analysis import AnalysisOptions, analyse
from pipeline.scaling.fit.points import Excluded
from pipeline.scaling.input_checks import before_order
from pipeline.scaling.ladder.ladder import LADDER_FILE
from pipeline.scaling.ladder.learning_rates import regrets
from pipeline.scaling.ladder.run_configs import runs_of
from pipeline.scaling.report.page import ReportedSet, opening, write_report
from pipeline.scaling.report.render_page import ReportSection
from pipeline.scaling.report.tables import Table
from pipeline.scaling.results import Collected, ResultSet, collect
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
    """Write the report of ladders, run folders and tables of earlier reports into `output`; `command` is shown in it.

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
    reported = [ReportedSet.of(results, analyse(results, baseline, _options(results, collected))) for results in collected.sets]
    files = write_report(output, collected, reported, command, extra)
    return ReportFiles(opening(reported), collected.excluded, files)


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


def _options(results: ResultSet, collected: Collected) -> AnalysisOptions:
    """What the plans state and the sweeps show: the smallest margin of equivalence, and what learning rates cost. Fits read
    only results that were taken after a model reads order."""
    margins = [ladder.recipe.equivalence_margin for _, ladder in collected.ladders]
    known = [margin for margin in margins if margin is not None]
    return AnalysisOptions(margin=min(known, default=None), left_out=before_order(results), regrets=_regrets(collected))


def _regrets(collected: Collected) -> dict[str, float]:
    """Relative loss that its learning rate cost, by the folder of each end."""
    found: dict[str, float] = {}
    for folder, ladder in collected.ladders:
        by_run = regrets(folder, ladder)
        found |= {
            str(runs_of(folder) / name): by_run[run.name]
            for run in ladder.runs
            if run.phase == "main" and run.name in by_run
            for _, name in run.folders()
        }
    return found


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
