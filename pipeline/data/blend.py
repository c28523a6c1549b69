"""The source of each sample in a weighted blend: always the source that is furthest behind its share.

Largest-error blending, as in Megatron's blended data sets: sample i goes to the source d with the largest
weight_d * (i + 1) - (samples of d so far). No source is ever a whole sample ahead of or, for two sources, behind its share.
With weights as multiples of 1/Q the choice has period Q: after Q samples every error is a whole number above -1, and they
add up to 0, so all are 0. One period is stored, from which any sample is found in constant time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

PERIOD = 1 << 14
"""Longest period. Weights that need a longer one are rounded to multiples of 1/PERIOD."""


class Blend:
    """The blend of sources with these weights, in the order given."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.shares = np.array(whole_shares(weights), dtype=np.int64)  # (D,) samples of each source in a period
        self.period = int(self.shares.sum())
        self._source = _largest_error(self.shares.tolist())  # (Q,)
        self._before = np.zeros(self.period, dtype=np.int64)  # (Q,) samples of its own source before each, in the period
        for source, share in enumerate(self.shares):
            self._before[self._source == source] = np.arange(share)

    def __call__(self, samples: Ints) -> tuple[Ints, Ints]:
        """The source of each sample (B,), and which of that source's own samples it is (B,)."""
        periods, places = np.divmod(samples, self.period)
        sources = self._source[places]
        return sources, periods * self.shares[sources] + self._before[places]

    def taken(self, position: int) -> Ints:
        """How many of the samples before `position` each source has (D,)."""
        periods, rest = divmod(position, self.period)
        return periods * self.shares + np.bincount(self._source[:rest], minlength=len(self.shares))


def whole_shares(weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to the weights: exact if they add up to at most PERIOD, else rounded by largest remainder.

    Raises ValueError for a weight that is not positive, or too small to be represented.
    """
    if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"blend weights are {list(weights)}: each must be a positive number; leave out unwanted folders")
    total = math.fsum(weights)
    decimals = [Fraction(str(weight)) for weight in weights]  # 0.1 means a tenth, not its nearest binary number
    scale = math.lcm(*(weight.denominator for weight in decimals))
    whole = [int(weight * scale) for weight in decimals]
    if sum(whole) // math.gcd(*whole) <= PERIOD:
        return [weight // math.gcd(*whole) for weight in whole]
    exact = [weight / total * PERIOD for weight in weights]
    shares = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda source: (shares[source] - exact[source], source))
    for source in by_remainder[: PERIOD - sum(shares)]:
        shares[source] += 1
    if 0 in shares:
        raise ValueError(
            f"blend weight {weights[shares.index(0)]} is less than 1/{2 * PERIOD} of all: leave it out, or join the folders by "
            "`fnet-t5 data merge`"
        )
    divisor = math.gcd(*shares)
    return [share // divisor for share in shares]


def _largest_error(shares: list[int]) -> Ints:
    """One period: errors are kept as whole numbers, in units of 1/Q of a sample."""
    period = sum(shares)
    errors = [0] * len(shares)
    chosen = np.empty(period, dtype=np.int64)
    for sample in range(period):
        errors = [error + share for error, share in zip(errors, shares, strict=True)]
        source = errors.index(max(errors))
        errors[source] -= period
        chosen[sample] = source
    return chosen
