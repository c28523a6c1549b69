"""Multi-query associative recall from encoder to decoder (Zoology, Arora et al. 2023, arXiv:2312.04927).

The encoder reads pairs of a key and a value: k1 v1 k2 v2 … . The decoder reads every key once, in another order, and writes at
each key its value. Keys of a row are different, values are independent. A key says nothing about its value: they are bound only
by standing side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.cost.flops import Lengths
from pipeline.objectives.counter_rng import CounterRNG
from pipeline.scaling.battery.tasks.task_rows import FIRST_SYMBOL, NUM_SYMBOLS, Chance, Ints, TaskRows, symbols


@dataclass(frozen=True)
class Recall:
    """`length` is that of the encoder: half as many pairs. A row uses half of the keys."""

    length: int

    @property
    def lengths(self) -> Lengths:
        return Lengths(self.length, self.length // 2)

    @property
    def vocab_size(self) -> int:
        return FIRST_SYMBOL + NUM_SYMBOLS + self.length

    def rows(self, seed: str, samples: Ints) -> TaskRows:
        rng = CounterRNG(seed, "battery/recall", samples)
        pairs = self.length // 2
        keys = np.argsort(rng.keys(self.length), axis=1, kind="stable")[:, :pairs] + FIRST_SYMBOL + NUM_SYMBOLS
        values = symbols(rng.uniform(pairs), NUM_SYMBOLS) + FIRST_SYMBOL
        order = np.argsort(rng.keys(pairs), axis=1, kind="stable")
        encoder = np.stack([keys, values], axis=2).reshape(len(samples), self.length)
        return TaskRows(encoder, np.take_along_axis(keys, order, axis=1), np.take_along_axis(values, order, axis=1))

    def chance(self) -> Chance:
        """Values are uniform and independent of the keys and of each other."""
        return Chance(1 / NUM_SYMBOLS, float(NUM_SYMBOLS) ** -(self.length // 2))
