"""Ladders with a known multiplier: the places of a design, a loss surface, and noise with the parts that were measured.

An arm with the multiplier M has at every size and compute C the loss that the baseline's surface has at C / M. Its multiplier
is M at every compute, whatever its sizes.

Shapes: B ladders, R runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.scaling.fit.frontier import token_cost
from pipeline.scaling.fit.joint.by_compute import covered, multiplier_estimate
from pipeline.scaling.fit.joint.surfaces import Places, fit_jointly
from pipeline.scaling.fit.points import Columns, Floats
from pipeline.scaling.fit.surface import log_loss


@dataclass(frozen=True, kw_only=True)
class PlannedResult:
    """The end of a planned run."""

    arm: str
    size: str
    budget: float
    seed: int
    num_parameters: float
    tokens: float
    flops: float


@dataclass(frozen=True, kw_only=True)
class LadderNoise:
    """Standard deviations of log loss by what they belong to."""

    size: float
    """Lack of fit that the runs of an arm and size share, such as that of a learning rate."""
    slope: float
    """Lack of fit of an arm and size that grows by this with every doubling of the budget, from the middle one."""
    place: float
    """Lack of fit of an arm, size and budget, which its seeds share."""
    plateau: float
    """Of a run: its ends share it."""
    end: float
    """Of each end."""

    def seeds_alone(self) -> LadderNoise:
        """Without lack of fit."""
        return LadderNoise(size=0.0, slope=0.0, place=0.0, plateau=self.plateau, end=self.end)


MEASURED = LadderNoise(size=0.0077, slope=0.0064, place=0.0077, plateau=0.0012, end=0.0029)
"""Restricted maximum likelihood on the 38 results of t5 and fnet_t5 in docs/reports/cpu-smoke/runs.csv, around a joint fit."""


@dataclass(frozen=True, kw_only=True)
class PredictedInterval:
    """What a design is expected to say about an arm with a known multiplier."""

    multiplier: float
    low: float
    high: float
    """The multiplier with the median half-width of its 95 % interval, at the largest compute that both arms cover."""
    refused: float
    """Share of the simulated ladders that gave no multiplier."""

    @property
    def half_width(self) -> float:
        """Relative: 0.1 is the multiplier times or divided by 1.1."""
        return self.high / self.multiplier - 1


def expected_losses(results: Sequence[PlannedResult], baseline: str, coefficients: Floats, multiplier: float) -> Floats:
    """Log losses without noise, (R,). `coefficients` (5,) are the baseline's, in the order of `surface.py`."""
    runs, is_baseline = _columns(results), np.array([one.arm == baseline for one in results])
    log_n = np.log(runs.num_parameters)
    of_compute = np.log(runs.flops / multiplier) - token_cost(runs.take(is_baseline), log_n)
    return log_loss(coefficients[None], log_n, np.where(is_baseline, np.log(runs.tokens), of_compute))[0]


def draw_ladder_noise(
    results: Sequence[PlannedResult], noise: LadderNoise, num_ladders: int, generator: np.random.Generator
) -> Floats:
    """Noise in log loss, (B, R)."""
    middle = np.exp(np.mean(np.log(sorted({one.budget for one in results}))))
    doublings = np.log2([one.budget / middle for one in results])

    def common(*names: str) -> Floats:
        numbers: dict[tuple[object, ...], int] = {}
        of_run = [numbers.setdefault(tuple(getattr(one, name) for name in names), len(numbers)) for one in results]
        return generator.standard_normal((num_ladders, len(numbers)))[:, of_run]

    drawn = noise.size * common("arm", "size") + noise.slope * doublings * common("arm", "size")
    drawn += noise.place * common("arm", "size", "budget") + noise.plateau * common("arm", "size", "seed")
    return drawn + noise.end * generator.standard_normal(drawn.shape)


def simulated_places(results: Sequence[PlannedResult], log_losses: Floats) -> Places:
    """The places of planned runs with these log losses (R,)."""
    groups: dict[tuple[str, str, float], list[int]] = {}
    for number, one in enumerate(results):
        groups.setdefault((one.arm, one.size, one.budget), []).append(number)
    arms = tuple(dict.fromkeys(one.arm for one in results))
    return Places(
        arms=arms,
        runs=_columns([results[of[0]] for of in groups.values()], [float(log_losses[of].mean()) for of in groups.values()]),
        arm=np.array([arms.index(arm) for arm, _, _ in groups], dtype=np.int64),
        sizes=tuple(size for _, size, _ in groups),
        seeds=tuple(tuple(f"{arm}-{size}-seed{results[one].seed}" for one in of) for (arm, size, _), of in groups.items()),
    )


def predicted_interval(
    results: Sequence[PlannedResult],
    coefficients: Floats,
    *,
    noise: LadderNoise = MEASURED,
    multiplier: float = 0.7,
    num_ladders: int = 40,
) -> PredictedInterval:
    """The interval that a ladder of these runs is expected to give. The first arm is the baseline, the second is the other.

    `coefficients` (5,) are the assumed surface of the baseline, in the order of `surface.py`. All constants are shared, as in
    nearly all ladders of this kind. Raises ValueError if more than half of the simulated ladders give no multiplier.
    """
    baseline = results[0].arm
    middle = expected_losses(results, baseline, coefficients, multiplier)
    drawn = middle + draw_ladder_noise(results, noise, num_ladders, np.random.default_rng(0))
    widths = []
    for log_losses in drawn:
        try:
            fit = fit_jointly(simulated_places(results, log_losses))
            log_c, _ = covered(fit, (0, 1))
        except ValueError as error:
            reason = str(error)
            continue
        widths.append(float(multiplier_estimate(fit, (0, 1), log_c[-1:]).half_width()[0]))
    if len(widths) < num_ladders / 2:
        raise ValueError(f"{num_ladders - len(widths)} of {num_ladders} simulated ladders give no multiplier: {reason}")
    width = float(np.median(widths))
    return PredictedInterval(
        multiplier=multiplier,
        low=float(multiplier * np.exp(-width)),
        high=float(multiplier * np.exp(width)),
        refused=1 - len(widths) / num_ladders,
    )


def _columns(results: Sequence[PlannedResult], log_losses: Sequence[float] | None = None) -> Columns:
    n, d, c = (np.array([getattr(one, name) for one in results], float) for name in ("num_parameters", "tokens", "flops"))
    return Columns(num_parameters=n, tokens=d, flops=c, loss=np.ones(len(n)) if log_losses is None else np.exp(log_losses))
