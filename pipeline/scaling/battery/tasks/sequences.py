"""Copy, reverse and sort: the decoder writes the symbols of the encoder in the same, the opposite or the ascending order.

Symbols of copy and reverse are independent, so most of them stand at several places. Those of sort are different. The answer of
sort does not depend on the order of the input: it is the control of the battery.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from models.cost.flops import Lengths
from pipeline.objectives.counter_rng import CounterRNG
from pipeline.scaling.battery.tasks.task_rows import FIRST_SYMBOL, NUM_SYMBOLS, Chance, Ints, TaskRows, after_start, symbols


@dataclass(frozen=True)
class Copy:
    length: int

    @property
    def lengths(self) -> Lengths:
        return Lengths(self.length, self.length)

    @property
    def vocab_size(self) -> int:
        return FIRST_SYMBOL + NUM_SYMBOLS

    def rows(self, seed: str, samples: Ints) -> TaskRows:
        rng = CounterRNG(seed, "battery/copy", samples)
        read = symbols(rng.uniform(self.length), NUM_SYMBOLS) + FIRST_SYMBOL
        return TaskRows(read, after_start(read), read)

    def chance(self) -> Chance:
        """Symbols are uniform and independent."""
        return Chance(1 / NUM_SYMBOLS, float(NUM_SYMBOLS) ** -self.length)


class Reverse(Copy):
    def rows(self, seed: str, samples: Ints) -> TaskRows:
        read, _, _ = super().rows(seed, samples)
        written = np.ascontiguousarray(read[:, ::-1])
        return TaskRows(read, after_start(written), written)


@dataclass(frozen=True)
class Sort:
    """A row holds half of the symbols."""

    length: int

    @property
    def lengths(self) -> Lengths:
        return Lengths(self.length, self.length)

    @property
    def vocab_size(self) -> int:
        return FIRST_SYMBOL + 2 * self.length

    def rows(self, seed: str, samples: Ints) -> TaskRows:
        rng = CounterRNG(seed, "battery/sort", samples)
        read = np.argsort(rng.keys(2 * self.length), axis=1, kind="stable")[:, : self.length] + FIRST_SYMBOL
        written = np.sort(read, axis=1)
        return TaskRows(read, after_start(written), written)

    def chance(self) -> Chance:
        """The likeliest next symbol is the one that follows the last: it is there with k / (symbols left) where k are to come,
        and every later one is less likely. Of n symbols among S, n / S are expected to follow their predecessor (or to be the
        first of all): adjacent pairs n(n - 1) / S, first symbol n / S, together n² / S of n."""
        return Chance(0.5, 1 / math.comb(2 * self.length, self.length))
