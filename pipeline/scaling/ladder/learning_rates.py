"""The learning rate of every run, from the sweeps, by a rule that is fixed in advance: no rate is chosen by hand.

At a swept size the optimum is the vertex of the parabola in log rate through the best try and its two neighbours. If the best
try is at the edge, another rate beyond it is tried. At other sizes the rate follows the power law through the two optima
(Porian et al. 2024, arXiv:2406.19146, find such laws).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.files import write_json_atomically
from pipeline.run_folder import METRICS, read_status
from pipeline.scaling.ladder.ladder import Ladder, PlannedRun
from pipeline.scaling.ladder.recipe import SweepConfig
from pipeline.scaling.ladder.run_configs import runs_of, sweep_folder
from pipeline.tracking.metrics import read_metrics

SWEEP_FILE = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The outcome of one sweep."""

    arm: str
    size: str
    num_parameters: int
    rate: float
    tries: dict[str, float | None]
    """Last validation loss by rate, None if it diverged."""


def next_rate(tries: Mapping[float, float], sweep: SweepConfig) -> float | None:
    """The rate to try next; None if the best of `tries` (loss by rate, infinite if it diverged) is not at the edge.

    Raises ValueError if the best one is still at the edge after the last try.
    """
    rates = sorted(tries)
    best = min(rates, key=lambda rate: tries[rate])
    if rates[0] < best < rates[-1]:
        return None
    if len(rates) >= sweep.most:
        raise ValueError(
            f"the best of {len(rates)} learning rates from {rates[0]:.3g} to {rates[-1]:.3g} still lies at the edge, "
            f"{best:.3g}: give other learning_rate.values"
        )
    is_low = best == rates[0] or math.isinf(tries[best])
    return rates[0] / sweep.factor if is_low else rates[-1] * sweep.factor


def vertex(tries: Mapping[float, float]) -> float:
    """The optimum between the neighbours of the best try, which is not at the edge; the try itself if a neighbour diverged."""
    rates = sorted(tries)
    at = rates.index(min(rates, key=lambda rate: tries[rate]))
    x = [math.log(rate) for rate in rates[at - 1 : at + 2]]
    y = [tries[rate] for rate in rates[at - 1 : at + 2]]
    if not all(map(math.isfinite, y)) or y[0] == y[1] == y[2]:
        return rates[at]
    left, right = x[1] - x[0], x[1] - x[2]
    top = left**2 * (y[1] - y[2]) - right**2 * (y[1] - y[0])
    bottom = left * (y[1] - y[2]) - right * (y[1] - y[0])
    return math.exp(x[1] - top / bottom / 2)


def tries_of(folder: Path, run: PlannedRun, rates: tuple[float, ...]) -> dict[float, float]:
    """Last validation loss of every completed try by its rate, infinite if it diverged."""
    found: dict[float, float] = {}
    for rate in rates:
        run_folder = runs_of(folder) / sweep_folder(run, rate)
        if has_diverged(run_folder):
            found[rate] = math.inf
        elif read_status(run_folder) == "finished":
            losses = [row["validation_loss"] for row in read_metrics(run_folder / METRICS) if row.get("source") == "all"]
            found[rate] = math.inf if losses[-1] is None else float(losses[-1])
    return found


def has_diverged(run_folder: Path) -> bool:
    """Whether a run failed because its steps were not finite, and not for a reason that another start may remove."""
    if read_status(run_folder) != "failed":
        return False
    rows = read_metrics(run_folder / METRICS)
    steps = [row for row in rows if "source" not in row]
    validated = [row["validation_loss"] for row in rows if row.get("source") == "all"]
    has_bad_end = bool(validated) and validated[-1] is None  # weights that the last update made infinite
    return bool(steps) and (has_bad_end or steps[-1].get("skipped") in ("not finite", "spike"))


def write_optimum(folder: Path, run: PlannedRun, tries: Mapping[float, float]) -> Optimum:
    """Store the optimum of a sweep whose best try is not at the edge."""
    shown = {f"{rate:.6g}": loss if math.isfinite(loss) else None for rate, loss in sorted(tries.items())}
    found = Optimum(arm=run.arm, size=run.size, num_parameters=run.num_parameters, rate=vertex(tries), tries=shown)
    path = _sweep_file(folder, run)
    path.parent.mkdir(exist_ok=True)
    write_json_atomically(path, asdict(found))
    return found


def read_optimum(folder: Path, run: PlannedRun) -> Optimum | None:
    """The stored optimum of a sweep, None if it is not complete."""
    path = _sweep_file(folder, run)
    return Optimum(**json.loads(path.read_bytes())) if path.is_file() else None


def rate_for(folder: Path, ladder: Ladder, run: PlannedRun) -> float:
    """The learning rate of a main run. Raises ValueError while the sweeps of its arm are not done."""
    if ladder.recipe.fixed_learning_rate is not None:
        return ladder.recipe.fixed_learning_rate
    sweeps = ladder.sweeps_of(run)
    optima = [read_optimum(folder, sweep) for sweep in sweeps]
    waiting = [sweep.name for sweep, optimum in zip(sweeps, optima, strict=True) if optimum is None]
    if waiting:
        raise ValueError(
            f"{run.name} takes its learning rate from {' and '.join(waiting)}: `fnet-t5 scaling run {folder} --only "
            f"{waiting[0]}` first"
        )
    return power_law([(found.num_parameters, found.rate) for found in optima if found is not None], run.num_parameters)


def power_law(optima: list[tuple[int, float]], num_parameters: int) -> float:
    """The rate at a size, on the line through two optima in logarithms."""
    (n1, rate1), (n2, rate2) = ((math.log(n), math.log(rate)) for n, rate in optima)
    return math.exp(rate1 + (rate2 - rate1) * (math.log(num_parameters) - n1) / (n2 - n1))


def _sweep_file(folder: Path, run: PlannedRun) -> Path:
    return runs_of(folder) / run.name / SWEEP_FILE
