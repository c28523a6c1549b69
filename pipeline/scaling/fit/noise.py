"""The noise of losses between seeds, and the differences that a design can detect.

Noise is measured in log loss, because it is proportional to the loss. Its estimate s^2 has f degrees of freedom, and every
interval of this package includes the error of this estimate: the variance of the noise is drawn first, from f s^2 / chi^2(f)
(for two arms from an inverse Wishart distribution with the same margins). For statistics that are linear in the noise,
percentiles of such draws are Student's t intervals. If s is taken as known, intervals are too narrow (docs/scaling.md has the
figures).

Shapes: B draws, R runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from pipeline.scaling.fit.points import Floats, Point

FEWEST_PAIRS = 8
"""With fewer pairs the correlation between arms is not estimated, but assumed to be 0."""
_CLOSEST = 1 - 1e-6


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """Standard deviation of log loss between runs that differ only in the seed."""

    deviation: float
    dof: int
    low: float
    high: float
    """95 % interval of the deviation."""


def noise_floor(points: Sequence[Point]) -> NoiseFloor:
    """The noise floor pooled over all places (arm, size, budget) with several seeds. Raises ValueError if there are none."""

    def place(point: Point) -> tuple[str, str, float]:
        return point.arm, point.size, point.budget

    squares, dof = 0.0, 0
    for _, group in groupby(sorted(points, key=place), key=place):
        logs = np.log([point.loss for point in group])
        squares += float(((logs - logs.mean()) ** 2).sum())
        dof += len(logs) - 1
    if dof == 0:
        raise ValueError("no place of the ladder has two seeds, so the noise is unknown: train one with 3 seeds")
    low, high = (math.sqrt(squares / stats.chi2.ppf(share, dof)) for share in (0.975, 0.025))
    return NoiseFloor(deviation=math.sqrt(squares / dof), dof=dof, low=low, high=high)


def smallest_difference(
    deviation: float, num_seeds: int, dof: float = math.inf, correlation: float = 0.0, power: float = 0.8
) -> float:
    """The smallest difference in log loss (about the relative difference) between two arms that a two-sided test at 5 % finds
    with probability `power`.

    Each arm has `num_seeds` runs with the standard deviation `deviation`, which is known with `dof` degrees of freedom. Runs
    of equal seeds have the correlation `correlation`.
    """
    error = deviation * math.sqrt(2 * (1 - correlation) / num_seeds)
    return error * _noncentrality(dof, power)


def _noncentrality(dof: float, power: float) -> float:
    """The size of an effect, in standard errors, that is found with probability `power`."""
    if math.isinf(dof):
        return float(stats.norm.ppf(0.975) + stats.norm.ppf(power))
    critical = stats.t.ppf(0.975, dof)

    def missing(effect: float) -> float:
        return float(stats.nct.sf(critical, dof, effect) - power)

    return float(optimize.brentq(missing, 0.0, 100.0))


def detectable_shift(draws: Floats, dof: float, power: float = 0.8) -> float:
    """The shift of a statistic that a design finds with probability `power`, from draws (B,) of it without a difference.

    The width of the middle 68.27 % of the draws is taken as two standard errors, so that outliers have no effect.
    """
    low, high = np.quantile(draws, stats.norm.cdf([-1.0, 1.0]))
    return float(high - low) / 2 * _noncentrality(dof, power)


def draw_noise(residuals: Floats, num_coefficients: int, num_draws: int, generator: np.random.Generator) -> Floats:
    """Noise like that of `residuals` (R,) around a least-squares fit of `num_coefficients` coefficients: (B, R)."""
    dof = len(residuals) - num_coefficients
    variance = float((residuals**2).sum()) / generator.chisquare(dof, num_draws)  # (B,)
    return np.sqrt(variance)[:, None] * generator.standard_normal((num_draws, len(residuals)))


def draw_paired_noise(
    residuals: tuple[Floats, Floats],
    pairs: NDArray[np.int64],
    num_coefficients: int,
    num_draws: int,
    generator: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Noise of two arms (B, R1), (B, R2) with the correlation of their residuals over `pairs` (Q, 2) of run numbers.

    Runs of one seed read the same text in the same order, so a part of their noise may be common and cancel in differences.
    The mean correlation of the draws is that of the residuals; with less than 8 pairs it is 0.
    """
    first, second = residuals
    if len(pairs) < FEWEST_PAIRS or not (first.any() and second.any()):
        return tuple(draw_noise(part, num_coefficients, num_draws, generator) for part in residuals)  # type: ignore[return-value]
    dof = min(len(first), len(second)) - num_coefficients
    in_first, in_second = pairs.T
    spread = [math.sqrt(float((part**2).sum()) / (len(part) - num_coefficients)) for part in residuals]
    cross = float(first[in_first] @ second[in_second])
    correlation = cross / math.sqrt(float((first[in_first] ** 2).sum() * (second[in_second] ** 2).sum()))
    correlation = min(max(correlation, -_CLOSEST), _CLOSEST)
    scale = dof * np.array([[1.0, correlation], [correlation, 1.0]])
    # dof + 1: the margins, and every difference of the two, are then the scaled inverse chi^2(dof) of one arm
    covariance = stats.invwishart.rvs(dof + 1, scale, size=num_draws, random_state=generator).reshape(num_draws, 2, 2)
    root = np.linalg.cholesky(covariance)  # (B, 2, 2)
    own = [generator.standard_normal((num_draws, len(part))) for part in residuals]
    noise_first = root[:, :1, 0] * own[0]
    shared = np.sqrt(root[:, 1, 0] ** 2 + root[:, 1, 1] ** 2)[:, None] * own[1]
    shared[:, in_second] = root[:, 1:2, 0] * own[0][:, in_first] + root[:, 1:2, 1] * own[1][:, in_second]
    return spread[0] * noise_first, spread[1] * shared
