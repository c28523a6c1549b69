"""The learning rate of every run, from the sweeps, by a rule that is fixed in advance: no rate is chosen by hand.

At a swept size the optimum is the vertex of the parabola in log rate through the best try and its two neighbours. If the best
try is at the edge, another rate beyond it is tried. Every run takes its rate from the power law in parameters through the
optima of its arm, by least squares in logarithms (Porian et al. 2024, arXiv:2406.19146, find such laws). A check tries half and
twice that rate at the largest budget. Regret is what a rate costs by these parabolas, as a share of the loss.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_prep.files import write_json_atomically
from pipeline.run_folder import METRICS, read_status
from pipeline.scaling.ladder.ladder import Ladder, PlannedRun
from pipeline.scaling.ladder.planned_runs import CHECK_FACTORS
from pipeline.scaling.ladder.recipe import SweepConfig
from pipeline.scaling.ladder.run_configs import runs_of, sweep_folder
from pipeline.tracking.metrics import read_metrics

SWEEP_FILE, CHECK_FILE = "sweep.json", "check.json"


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The outcome of one sweep."""

    arm: str
    size: str
    num_parameters: int
    rate: float
    tries: dict[str, float | None]
    """Last validation loss by rate, None if it diverged."""

    @property
    def curvature(self) -> float | None:
        """c of log loss = lowest + c (log rate - log optimum)^2 from the best try and its neighbours; None if one diverged."""
        return _parabola({float(rate): math.inf if loss is None else loss for rate, loss in self.tries.items()})[1]


@dataclass(frozen=True, kw_only=True)
class Check:
    """The rate of the power law against half and twice of it, at the largest budget."""

    arm: str
    size: str
    rate: float
    """Of the power law, with which the ladder's run was trained."""
    tries: dict[str, float | None]
    """Last validation loss by rate, that of the ladder's run included; None if it diverged."""
    optimum: float
    """The vertex of the parabola through the three, or the best of them if it is half or twice the rate."""

    @property
    def cost(self) -> float:
        """What the rate of the power law costs against the best of the three, as a share of the loss; 0 if it is the best."""
        losses = [loss for loss in self.tries.values() if loss is not None]
        own = self.tries[f"{self.rate:.6g}"]
        return math.inf if own is None else own / min(losses) - 1


@dataclass(frozen=True, kw_only=True)
class RateLaw:
    """log rate = intercept + exponent x log parameters, through the optima of an arm."""

    intercept: float
    exponent: float
    """0 for an arm that is swept at one size."""
    residual: float | None
    """Standard deviation of log rate around the law; None for fewer than three optima."""

    def rate(self, num_parameters: int) -> float:
        return math.exp(self.intercept + self.exponent * math.log(num_parameters))


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
    """The optimum between the neighbours of the best try, which is not at the edge; the best try if a neighbour diverged."""
    return _parabola(tries, in_log=False)[0]


def _parabola(tries: Mapping[float, float], in_log: bool = True) -> tuple[float, float | None]:
    """(optimal rate, curvature) of the parabola in log rate through the best try and its neighbours.

    Without three finite losses there, or if the best try is at the edge, it is the best try, and there is no curvature.
    `in_log` fits the logarithm of the loss, whose curvature is a share of the loss."""
    rates = sorted(tries)
    at = rates.index(min(rates, key=lambda rate: tries[rate]))
    near = rates[at - 1 : at + 2] if 0 < at < len(rates) - 1 else []
    if len(near) < 3 or not all(math.isfinite(tries[rate]) for rate in near) or len({tries[rate] for rate in near}) == 1:
        return rates[at], None
    y = [math.log(tries[rate]) if in_log else tries[rate] for rate in near]
    left, right = math.log(near[1] / near[0]), math.log(near[1] / near[2])
    top = left**2 * (y[1] - y[2]) - right**2 * (y[1] - y[0])
    bottom = left * (y[1] - y[2]) - right * (y[1] - y[0])
    curvature = ((y[2] - y[1]) / -right - (y[1] - y[0]) / left) / (left - right)
    return math.exp(math.log(near[1]) - top / bottom / 2), curvature


def tries_of(folder: Path, run: PlannedRun, rates: tuple[float, ...]) -> dict[float, float]:
    """Last validation loss of every completed try by its rate, infinite if it diverged."""
    found: dict[float, float] = {}
    for rate in rates:
        run_folder = runs_of(folder) / sweep_folder(run, rate)
        if has_diverged(run_folder):
            found[rate] = math.inf
        elif read_status(run_folder) == "finished":
            found[rate] = _last_loss(run_folder)
    return found


def _last_loss(run_folder: Path) -> float:
    losses = [row["validation_loss"] for row in read_metrics(run_folder / METRICS) if row.get("source") == "all"]
    return math.inf if losses[-1] is None else float(losses[-1])


def has_diverged(run_folder: Path) -> bool:
    """Whether a run failed because its steps were not finite, and not for a reason that another start may remove."""
    if read_status(run_folder) != "failed":
        return False
    rows = read_metrics(run_folder / METRICS)
    steps = [row for row in rows if "source" not in row]
    validated = [row for row in rows if row.get("source") == "all" and row.get("validation_target_tokens") != 0]
    has_bad_end = bool(validated) and validated[-1]["validation_loss"] is None  # weights that the last update made infinite
    return bool(steps) and (has_bad_end or steps[-1].get("skipped") in ("not finite", "spike"))


def write_optimum(folder: Path, run: PlannedRun, tries: Mapping[float, float]) -> Optimum:
    """Store the optimum of a sweep whose best try is not at the edge."""
    found = Optimum(arm=run.arm, size=run.size, num_parameters=run.num_parameters, rate=vertex(tries), tries=_shown(tries))
    path = _sweep_file(folder, run)
    path.parent.mkdir(exist_ok=True)
    write_json_atomically(path, asdict(found))
    return found


def _shown(tries: Mapping[float, float]) -> dict[str, float | None]:
    return {f"{rate:.6g}": loss if math.isfinite(loss) else None for rate, loss in sorted(tries.items())}


def read_optimum(folder: Path, run: PlannedRun) -> Optimum | None:
    """The stored optimum of a sweep, None if it is not complete."""
    path = _sweep_file(folder, run)
    return Optimum(**json.loads(path.read_bytes())) if path.is_file() else None


def rate_for(folder: Path, ladder: Ladder, run: PlannedRun) -> float:
    """The learning rate of a main run. Raises ValueError while the sweeps of its arm are not done."""
    if ladder.recipe.fixed_learning_rate is not None:
        return ladder.recipe.fixed_learning_rate
    return rate_law(folder, ladder, run).rate(run.num_parameters)


def rate_law(folder: Path, ladder: Ladder, run: PlannedRun) -> RateLaw:
    """The law of a run's arm. Raises ValueError while the sweeps are not done."""
    sweeps = ladder.sweeps_of(run)
    optima = [read_optimum(folder, sweep) for sweep in sweeps]
    waiting = [sweep.name for sweep, optimum in zip(sweeps, optima, strict=True) if optimum is None]
    if waiting:
        raise ValueError(
            f"{run.name} takes its learning rate from {' and '.join(waiting)}: `fnet-t5 scaling run {folder} --only "
            f"{waiting[0]}` first"
        )
    return power_law([(found.num_parameters, found.rate) for found in optima if found is not None])


def power_law(optima: Sequence[tuple[int, float]]) -> RateLaw:
    """The line of least squares through (parameters, optimal rate) in logarithms; for one size the rate itself."""
    n, rate = (np.log(np.array(column, dtype=np.float64)) for column in zip(*optima, strict=True))
    spread = float(((n - n.mean()) ** 2).sum())
    exponent = float(((n - n.mean()) * (rate - rate.mean())).sum()) / spread if spread else 0.0
    intercept = float(rate.mean() - exponent * n.mean())
    free = len(optima) - 2
    squares = float(((rate - intercept - exponent * n) ** 2).sum())
    return RateLaw(intercept=intercept, exponent=exponent, residual=math.sqrt(squares / free) if free > 0 else None)


def check_rates(folder: Path, ladder: Ladder, run: PlannedRun) -> tuple[float, ...]:
    """What a check tries: half and twice the rate of the power law at its size."""
    rate = rate_law(folder, ladder, run).rate(run.num_parameters)
    return tuple(factor * rate for factor in CHECK_FACTORS)


def write_check(folder: Path, ladder: Ladder, run: PlannedRun) -> Check | None:
    """Compare a check's two tries with the ladder's run and store the result; None while one of the three is not finished."""
    rate = rate_law(folder, ladder, run).rate(run.num_parameters)
    tries = tries_of(folder, run, check_rates(folder, ladder, run))
    end = checked_end(folder, ladder, run)
    if len(tries) < len(CHECK_FACTORS) or read_status(end) != "finished":
        return None
    tries[rate] = _last_loss(end)
    found = Check(arm=run.arm, size=run.size, rate=rate, tries=_shown(tries), optimum=_parabola(tries)[0])
    path = runs_of(folder) / run.name / CHECK_FILE
    path.parent.mkdir(exist_ok=True)
    write_json_atomically(path, asdict(found))
    return found


def checked_end(folder: Path, ladder: Ladder, run: PlannedRun) -> Path:
    """The run folder that a check compares with: the ladder's run at that arm, size and budget."""
    for one in ladder.runs:
        is_same = (one.objective, one.arm, one.size, one.seed) == (run.objective, run.arm, run.size, run.seed)
        for end, name in one.folders() if one.phase == "main" and is_same else ():
            if end.budget == run.ends[0].budget:
                return runs_of(folder) / name
    raise ValueError(f"the ladder has no run that {run.name} could check: plan it again")


def read_check(folder: Path, run: PlannedRun) -> Check | None:
    """The stored result of a check, None if it is not complete."""
    path = runs_of(folder) / run.name / CHECK_FILE
    return Check(**json.loads(path.read_bytes())) if path.is_file() else None


def regrets(folder: Path, ladder: Ladder) -> dict[str, float]:
    """What its learning rate costs each main run, as a share of its loss, by the name of the run.

    log loss = lowest + c (log rate - log optimum)^2, with c the mean curvature of the arm's sweeps. Two parts of a run's
    distance from its optimum were measured: how far the optima of the sweeps lie from the law that its rate comes from (at a
    swept size its own distance, elsewhere the law's residual), and how far the optimum of the check lies from the law. They add
    in squares. Arms whose sweeps are not complete or give no curvature, and ladders with one fixed rate, are left out.
    """
    found: dict[str, float] = {}
    if ladder.recipe.fixed_learning_rate is not None:
        return found
    for run in ladder.runs:
        optima = [read_optimum(folder, sweep) for sweep in ladder.sweeps_of(run)]
        known = [one for one in optima if one is not None]
        curvatures = [one.curvature for one in known if one.curvature is not None]
        if run.phase != "main" or len(known) < len(optima) or not curvatures:
            continue
        law = rate_law(folder, ladder, run)
        own = [math.log(one.rate / law.rate(run.num_parameters)) for one in known if one.num_parameters == run.num_parameters]
        distance = own[0] if own else law.residual or 0.0
        checks = [read_check(folder, one) for one in ladder.runs if _checks(one, run)]
        shift = max((abs(math.log(one.optimum / one.rate)) for one in checks if one is not None), default=0.0)
        found[run.name] = sum(curvatures) / len(curvatures) * (distance**2 + shift**2)
    return found


def _checks(check: PlannedRun, run: PlannedRun) -> bool:
    return (check.phase, check.objective, check.arm) == ("check", run.objective, run.arm)


def _sweep_file(folder: Path, run: PlannedRun) -> Path:
    return runs_of(folder) / run.name / SWEEP_FILE
