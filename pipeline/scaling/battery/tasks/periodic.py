"""Gap filling in periodic text: a random pattern repeats, a gap is marked, and the decoder writes what is missing.

    pattern a b c:    encoder  a b c a b | c a b c …        decoder  c a        (| marks the gap)

Period, pattern and place are random. The place does not matter for the answer, only what stands around the gap, at a distance
that is a multiple of the period. On one side of the gap there are at least two whole periods, so the period is determined by
the input (Fine & Wilf 1965), and so is the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.cost.flops import Lengths
from pipeline.objectives.counter_rng import CounterRNG
from pipeline.scaling.battery.tasks.task_rows import (
    FIRST_SYMBOL,
    GAP,
    NUM_SYMBOLS,
    Chance,
    Ints,
    TaskRows,
    after_start,
    symbols,
)


@dataclass(frozen=True)
class PeriodicGap:
    """`length` is that of the encoder with the mark. An eighth of it is missing; periods are longer, up to a quarter of it."""

    length: int

    @property
    def lengths(self) -> Lengths:
        return Lengths(self.length, self.length // 8)

    @property
    def vocab_size(self) -> int:
        return FIRST_SYMBOL + NUM_SYMBOLS

    def rows(self, seed: str, samples: Ints) -> TaskRows:
        rng = CounterRNG(seed, "battery/periodic_gap", samples)
        missing, longest = self.length // 8, self.length // 4
        periods = missing + 1 + rng.below(np.full(len(samples), longest - missing))  # (B, 1)
        before = rng.below(np.full(len(samples), self.length))  # (B, 1): tokens before the gap
        pattern = symbols(rng.uniform(longest), NUM_SYMBOLS) + FIRST_SYMBOL
        places = np.arange(self.length)[None]
        read = np.take_along_axis(pattern, (places + np.where(places > before, missing - 1, 0)) % periods, axis=1)
        read[places == before] = GAP
        written = np.take_along_axis(pattern, (before + np.arange(missing)[None]) % periods, axis=1)
        return TaskRows(read, after_start(written), written)

    def chance(self) -> Chance:
        """A gap is shorter than the period, so its symbols are uniform and independent."""
        return Chance(1 / NUM_SYMBOLS, float(NUM_SYMBOLS) ** -(self.length // 8))
