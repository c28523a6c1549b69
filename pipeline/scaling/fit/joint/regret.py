"""Learning rates that were not the best, as uncertainty of what is concluded from the losses.

A run with another rate than the best ended above the loss that its arm and size can reach, by its regret g >= 0 (relative loss,
read from the parabola of a sweep). Regret has one sign, so it is no noise that averages out, and it moves a comparison in one
direction: down for an arm that was tuned badly, up if that was the baseline. Which share of an estimated regret was really lost
is not known, so a share from 0 to 1 of each arm's is allowed. For a statistic s with the influence w = ds / d(log loss) of each
run

    shift of an arm   = - sum over its runs of w g             (log loss y of the best rate = measured y - g)
    error of a shift  =   sum over its runs of |w| u           (u: standard error of g; the runs of one arm share a sweep)
    interval          = s + sum of the negative shifts - h ... s + sum of the positive shifts + h
    h^2               = (t * error of s)^2 + (1.96 * errors of the shifts)^2

The interval is the union of the intervals for all shares: the ends are at shares of 0 and 1, because s is linear in them (to
first order). The estimate itself is not moved. The idea of an asymmetric loss for undertuned runs is that of OLMo-core's ladder
(issue 574).

Shapes: Q statistics, R places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pipeline.scaling.fit.joint.clusters import Estimate
from pipeline.scaling.fit.joint.surfaces import JointFit, Places
from pipeline.scaling.fit.points import Floats


@dataclass(frozen=True)
class Regret:
    """What the learning rate of a run cost, in relative loss, and its standard error."""

    loss: float
    error: float = 0.0


@dataclass(frozen=True)
class Regrets:
    """The regrets of the places of a joint fit: (R,), (R,)."""

    loss: Floats
    error: Floats


def place_regrets(places: Places, regrets: Mapping[str, Regret | float]) -> Regrets:
    """Regrets by place, means over its runs, from those by run (as in `Point.run`); 0 for runs without one.

    Raises ValueError for a regret that is negative or no number.
    """
    by_name = {name: one if isinstance(one, Regret) else Regret(float(one)) for name, one in regrets.items()}
    for name, one in by_name.items():
        if not (one.loss >= 0 and one.error >= 0 and np.isfinite(one.loss) and np.isfinite(one.error)):
            raise ValueError(f"the regret of {name} is {one.loss} with error {one.error}: it must be 0 or more")
    found = [[by_name.get(run, Regret(0.0)) for run in runs] for runs in places.seeds]
    return Regrets(
        np.log1p([float(np.mean([one.loss for one in runs])) for runs in found]),
        np.array([float(np.mean([one.error for one in runs])) for runs in found]),
    )


def regret_shifts(fit: JointFit, found: Estimate, regret: Regrets | None) -> tuple[Floats, Floats, Floats]:
    """How much lower and higher the statistics may be because of regret, and the standard error of that: each (Q,), >= 0."""
    down, up, variance = (np.zeros_like(found.value) for _ in range(3))
    if regret is None:
        return down, up, variance
    for arm in range(len(fit.model.places.arms)):
        own = fit.model.places.arm == arm
        shift = -found.influence[:, own] @ regret.loss[own]
        down, up = down + np.maximum(-shift, 0), up + np.maximum(shift, 0)
        variance += (np.abs(found.influence[:, own]) @ regret.error[own]) ** 2
    return down, up, np.sqrt(variance)


def interval_with_regret(fit: JointFit, found: Estimate, regret: Regrets | None) -> tuple[Floats, Floats]:
    """The 95 % interval of the statistics, widened by regret: low (Q,) and high (Q,)."""
    down, up, error = regret_shifts(fit, found, regret)
    width = np.hypot(found.half_width(), stats.norm.ppf(0.975) * error)
    return found.value - down - width, found.value + up + width
