"""The state of each run of a ladder, read from its folders alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.eval.suffix_bpb import ALL, read_suffix_bpb, suffix_bpb_file
from pipeline.run_folder import METRICS, read_status
from pipeline.scaling.ladder.ladder import Ladder, PlannedRun
from pipeline.scaling.ladder.learning_rates import checked_end, read_check, read_optimum
from pipeline.scaling.ladder.run_configs import runs_of
from pipeline.tracking.metrics import read_metrics

RunStatus = Literal["complete", "started", "failed", "ready", "waiting"]


@dataclass(frozen=True)
class RunState:
    run: PlannedRun
    state: RunStatus
    detail: str


def state_of(folder: Path, ladder: Ladder, run: PlannedRun) -> RunState:
    """The state of a run of the ladder in `folder`.

    A waiting run needs a learning rate from sweeps that are not done, or is a check whose main run is not done. A failed run is
    tried again by the next `scaling run`.
    """
    if run.phase == "check":
        return _state_of_check(folder, ladder, run)
    if run.phase == "sweep":
        found = read_optimum(folder, run)
        if found is not None:
            return RunState(run, "complete", f"learning rate {found.rate:.3g} of {len(found.tries)} tries")
        names = [path.name for path in runs_of(folder).glob(f"{run.name}-lr*")]
        return _unfinished(folder, run, names, "ready")
    names = [name for _, name in run.folders()]
    if all(suffix_bpb_file(runs_of(folder) / name) for name in names):
        bits = read_suffix_bpb(runs_of(folder) / names[-1])[ALL]["bits_per_byte"]
        return RunState(run, "complete", f"{bits:.4f} bits per byte at its largest budget")
    return _unfinished(folder, run, names, "ready" if sweeps_done(folder, ladder, run) else "waiting")


def _state_of_check(folder: Path, ladder: Ladder, run: PlannedRun) -> RunState:
    found = read_check(folder, run)
    if found is not None:
        words = "is the best of three" if not found.cost else f"costs {found.cost:.2%} against {found.optimum:.3g}"
        return RunState(run, "complete", f"learning rate {found.rate:.3g} {words}")
    names = [path.name for path in runs_of(folder).glob(f"{run.name}-lr*")]
    can_start = sweeps_done(folder, ladder, run) and read_status(checked_end(folder, ladder, run)) == "finished"
    return _unfinished(folder, run, names, "ready" if can_start else "waiting")


def sweeps_done(folder: Path, ladder: Ladder, run: PlannedRun) -> bool:
    return all(read_optimum(folder, sweep) is not None for sweep in ladder.sweeps_of(run))


def _unfinished(folder: Path, run: PlannedRun, names: list[str], otherwise: RunStatus) -> RunState:
    for name in reversed(names):
        path = runs_of(folder) / name
        status = read_status(path)
        if status is None:
            continue
        rows = read_metrics(path / METRICS)
        where = f"{name}: {status}" + (f" at step {rows[-1]['step']:,}" if rows else "")
        return RunState(run, "failed" if status == "failed" else "started", where)
    return RunState(run, otherwise, "")
