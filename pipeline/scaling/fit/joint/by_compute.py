"""The compute multiplier by compute: FLOPs of an arm / FLOPs of the baseline at equal loss, with its 95 % band.

Each arm is at its best size, within the compute that it was trained with, and at most a factor of two beyond its sizes (the
results say where it is beyond them). Where one arm's loss lies outside of what the other reached, the multiplier is refused,
with the reason.

The FLOPs of a token by size are interpolated between the arm's sizes (in logarithms) and follow a power law beyond them. A
power law throughout has errors of some percent, and they would be errors of the multiplier.

Shapes: P sets of coefficients, Q budgets, S sizes of a grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.scaling.fit.frontier import token_cost
from pipeline.scaling.fit.intervals import Interval
from pipeline.scaling.fit.joint.clusters import Estimate, estimate
from pipeline.scaling.fit.joint.regret import Regrets, interval_with_regret
from pipeline.scaling.fit.joint.surfaces import JointFit, JointModel
from pipeline.scaling.fit.points import Floats

_SIZES, _SEARCH, _SHOWN = 161, 257, 17
_BEYOND = float(np.log(2.0))


@dataclass(frozen=True, kw_only=True)
class NotCovered:
    """A range of an arm's compute at which no multiplier is given."""

    arm: str
    low: float
    high: float
    """In FLOPs."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class MultiplierBand:
    """The multiplier by compute: arrays (Q,), by ascending compute. Bounds hold at each budget by itself."""

    flops: Floats
    """Of the baseline."""
    arm_flops: Floats
    value: Floats
    low: Floats
    high: Floats
    not_covered: tuple[NotCovered, ...]
    beyond_sizes: tuple[str, ...]
    """Arms whose best size lies outside of their trained sizes somewhere in this range."""

    @property
    def at_largest(self) -> Interval:
        """The multiplier at the largest compute that both arms cover."""
        return Interval(float(self.value[-1]), float(self.low[-1]), float(self.high[-1]))


@dataclass(frozen=True)
class Frontiers:
    """Best losses of the arms of a joint fit at a budget, and their compute to a loss."""

    model: JointModel

    def _terms(self, coefficients: Floats, arm: int) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """On a grid of sizes: E (P, 1, 1), the size's term (P, 1, S), log of the data's term at one token (P, 1, S), beta, and
        the log of the FLOPs of a token (S,)."""
        log_n, cost, ratio = self.sizes(arm)
        log_a, log_b, log_e, alpha, beta, kappa = self.model.of_arm(coefficients, arm).T[:, :, None, None]
        return np.exp(log_e), np.exp(log_a - alpha * log_n), log_b - kappa * ratio, beta, cost

    def sizes(self, arm: int) -> tuple[Floats, Floats, Floats]:
        """A grid of log N over the arm's sizes, the log of the FLOPs of a token there, and log r (`surfaces.py`): each (S,)."""
        own = self.model.places.runs.take(self.model.places.arm == arm)
        log_n = np.log(own.num_parameters)
        grid = np.linspace(log_n.min() - _BEYOND, log_n.max() + _BEYOND, _SIZES)
        return grid, token_cost(own, grid), self.model.log_cost_ratio_at(arm, grid)

    def loss(self, coefficients: Floats, arm: int, log_c: Floats) -> Floats:
        """The lowest loss of a budget over the sizes: (P, K), (Q,) → (P, Q)."""
        return self._losses(coefficients, arm, log_c).min(axis=-1)

    def is_beyond(self, coefficients: Floats, arm: int, log_c: Floats) -> bool:
        """Whether the best size of a budget (Q,) lies outside of the arm's trained sizes, for coefficients (K,)."""
        log_n, known = self.sizes(arm)[0], np.log(self.model.places.runs.num_parameters[self.model.places.arm == arm])
        best = log_n[self._losses(coefficients[None], arm, log_c)[0].argmin(axis=-1)]
        step = log_n[1] - log_n[0]
        return bool((best < known.min() - step).any() or (best > known.max() + step).any())

    def _losses(self, coefficients: Floats, arm: int, log_c: Floats) -> Floats:
        """(P, K), (Q,) → (P, Q, S)."""
        e, of_size, log_data, beta, cost = self._terms(coefficients, arm)
        return e + of_size + np.exp(log_data - beta * (log_c[None, :, None] - cost))

    def log_compute(self, coefficients: Floats, arm: int, loss: Floats) -> Floats:
        """The least compute that reaches a loss: (P, K), (P, Q) → (P, Q). Infinite if none does."""
        e, of_size, log_data, beta, cost = self._terms(coefficients, arm)
        of_data = loss[:, :, None] - e - of_size
        with np.errstate(divide="ignore", invalid="ignore"):
            log_d = np.where(of_data > 0, (log_data - np.log(of_data)) / beta, np.inf)
        least: Floats = (cost + log_d).min(axis=-1)
        return least

    def log_multiplier(self, coefficients: Floats, arms: tuple[int, int], log_c: Floats) -> Floats:
        """log(compute of the second arm / compute of the first) at the first's loss at log_c: (P, Q)."""
        return self.log_compute(coefficients, arms[1], self.loss(coefficients, arms[0], log_c)) - log_c

    def log_difference(self, coefficients: Floats, arms: tuple[int, int], log_c: Floats) -> Floats:
        """log(loss of the second arm / loss of the first) at equal compute: (P, Q)."""
        second, first = (self.loss(coefficients, arm, log_c) for arm in (arms[1], arms[0]))
        return np.log(second / first)


def covered(fit: JointFit, arms: tuple[int, int]) -> tuple[Floats, tuple[NotCovered, ...]]:
    """Log compute of the first arm at which both arms reach the same losses, (Q,), and what is left out of each arm's range.

    Raises ValueError if there is no such compute.
    """
    frontiers, places = Frontiers(fit.model), fit.model.places
    ranges = [places.log_range(arm) for arm in arms]
    names = [places.arms[arm] for arm in arms]
    grid = np.linspace(*ranges[0], _SEARCH)
    needed = grid + frontiers.log_multiplier(fit.coefficients[None], arms, grid)[0]
    inside = np.flatnonzero((needed >= ranges[1][0]) & (needed <= ranges[1][1]))
    if not len(inside):
        better, worse = (names[1], names[0]) if needed[-1] < ranges[1][0] else (names[0], names[1])
        raise ValueError(
            f"{names[1]} and {names[0]} have no loss in common: {better} at its smallest budget is better than {worse} at its "
            f"largest; add smaller budgets of {better}, or larger ones of {worse}"
        )
    low, high = grid[inside[0]], grid[inside[-1]]
    reached = needed[inside[0]], needed[inside[-1]]
    step = grid[1] - grid[0]
    left_out = [
        NotCovered(arm=names[side], low=float(np.exp(start)), high=float(np.exp(end)), reason=reason)
        for side, start, end, reason in (
            (0, ranges[0][0], low, f"{names[1]} reaches these losses below its smallest budget"),
            (0, high, ranges[0][1], f"{names[1]} does not reach these losses within its largest budget"),
            (1, ranges[1][0], reached[0], f"{names[0]} reaches these losses below its smallest budget"),
            (1, reached[1], ranges[1][1], f"{names[0]} does not reach these losses within its largest budget"),
        )
        if end - start > 2 * step
    ]
    return np.linspace(low, high, _SHOWN), tuple(left_out)


def multiplier_estimate(fit: JointFit, arms: tuple[int, int], log_c: Floats) -> Estimate:
    """log of the multiplier of the second arm over the first at the first's compute, (Q,), with errors."""
    frontiers = Frontiers(fit.model)
    return estimate(fit, lambda coefficients: frontiers.log_multiplier(coefficients, arms, log_c))


def difference_estimate(fit: JointFit, arms: tuple[int, int]) -> tuple[float, Estimate]:
    """log(loss of the second arm / loss of the first) at their best sizes, at the largest compute that both were trained with.

    Returns the log of this compute and the estimate (Q = 1). Raises ValueError if their ranges of compute do not meet.
    """
    ranges = [fit.model.places.log_range(arm) for arm in arms]
    at = min(high for _, high in ranges)
    if at < max(low for low, _ in ranges):
        names = " and ".join(fit.model.places.arms[arm] for arm in arms)
        raise ValueError(f"{names} were trained with budgets that do not overlap: add budgets that both have")
    frontiers = Frontiers(fit.model)
    log_c = np.array([at])
    return at, estimate(fit, lambda coefficients: frontiers.log_difference(coefficients, arms, log_c))


def multiplier_band(fit: JointFit, arms: tuple[int, int], regret: Regrets | None = None) -> MultiplierBand:
    """The multiplier of the second arm over the first, the band widened by `regret`.

    Raises ValueError if no compute is covered by both.
    """
    log_c, left_out = covered(fit, arms)
    found = multiplier_estimate(fit, arms, log_c)
    low, high = interval_with_regret(fit, found, regret)
    frontiers, names = Frontiers(fit.model), fit.model.places.arms
    budgets = log_c, log_c + found.value
    beyond = [names[arm] for arm, at in zip(arms, budgets, strict=True) if frontiers.is_beyond(fit.coefficients, arm, at)]
    return MultiplierBand(
        flops=np.exp(log_c),
        arm_flops=np.exp(log_c + found.value),
        value=np.exp(found.value),
        low=np.exp(low),
        high=np.exp(high),
        not_covered=left_out,
        beyond_sizes=tuple(beyond),
    )
