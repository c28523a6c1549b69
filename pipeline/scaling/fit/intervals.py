"""Intervals from bootstrap draws, which are refused if too many of them failed.

Shapes: B draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.scaling.fit.points import Floats

MOST_FAILED = 0.05
NUM_DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; a bound may be infinite."""

    value: float
    low: float
    high: float

    def exp(self) -> Interval:
        """The interval of the exponential."""
        return Interval(*(float(np.exp(bound)) for bound in (self.value, self.low, self.high)))


def check_failures(sound: NDArray[np.bool_], what: str) -> None:
    """Raise ValueError if over 5 % of the draws (B,) failed: those that remain would be a biased selection."""
    failed = 1 - float(sound.mean())
    if failed > MOST_FAILED:
        raise ValueError(
            f"{failed:.0%} of the bootstraps of {what} failed, over {MOST_FAILED:.0%}: the runs do not determine it; "
            "add sizes, budgets or seeds"
        )


def percentile(value: float, draws: Floats) -> Interval:
    """The middle 95 % of the draws. Infinite draws count as larger than all others."""
    low, high = _bounds(draws)
    return Interval(value, low, high)


def pivotal(value: float, draws: Floats, truth: float) -> Interval:
    """The interval from draws around a known `truth`: the errors of the method there, noise and bias, are subtracted."""
    low, high = _bounds(draws - truth)
    return Interval(value, value - high, value - low)


def _bounds(draws: Floats) -> tuple[float, float]:
    # no interpolation, which is undefined between a number and infinity
    low, high = np.quantile(draws, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)
