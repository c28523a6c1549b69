"""The order of training data: from a global sample index to the row it reads, in constant time and no memory.

Samples in skipped ranges are left out. The blend gives each remaining sample a source and its number j there. It is row
permute(j mod R) of epoch j // R of that source's R rows: every row exactly once an epoch, in another order each epoch. Ranks,
batches and workers do not enter, so they cannot change the order, and a run resumes anywhere without replaying.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.blend import Blend
from pipeline.data.permutation import permute

Ints = NDArray[np.int64]


class SampleOrder:
    """The order over sources of `num_rows` rows each, numbered one source after the other."""

    def __init__(self, num_rows: Sequence[int], weights: Sequence[float], seed: int) -> None:
        if not num_rows or min(num_rows) < 1:
            raise ValueError("the training split holds no rows: prepare more text")
        self.num_rows = np.array(num_rows, dtype=np.int64)
        self.first_row = np.concatenate([[0], np.cumsum(self.num_rows)[:-1]])
        self.blend, self.seed = Blend(weights), seed

    def rows(self, samples: Ints) -> Ints:
        """The row of each sample (B,)."""
        sources, numbers = self.blend(samples)
        epochs, places = np.divmod(numbers, self.num_rows[sources])
        rows = np.empty_like(samples)
        passes = epochs * len(self.num_rows) + sources
        for number in np.unique(passes).tolist():
            epoch, source = divmod(number, len(self.num_rows))
            chosen = passes == number
            # The first source has the key of a single one: adding another folder does not reshuffle it.
            key = f"{self.seed}/{epoch}" + (f"/{source}" if source else "")
            rows[chosen] = self.first_row[source] + permute(places[chosen], int(self.num_rows[source]), key)
        return rows

    def epochs(self, position: int) -> NDArray[np.float64]:
        """How often the samples before `position` pass over the rows of each source (D,)."""
        return self.blend.taken(position) / self.num_rows

    def repeated_rows(self, position: int) -> int:
        """How many of the samples before `position` read a row that an earlier one has read."""
        return int(np.maximum(self.blend.taken(position) - self.num_rows, 0).sum())


class Skipping:
    """Consecutive samples without the skipped ranges, on which a run diverged before."""

    def __init__(self, ranges: Sequence[tuple[int, int]] = ()) -> None:
        merged: list[list[int]] = []
        for first, end in sorted(ranges):
            if not 0 <= first < end:
                raise ValueError(f"data.skip_ranges has [{first}, {end}]: give [first, end) in global samples, first below end")
            if merged and first <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([first, end])
        self._ranges = merged

    def take(self, position: int, offset: int, count: int) -> Ints:
        """`count` samples that are not skipped, `offset` such samples after `position`."""
        samples = np.arange(position + offset, position + offset + count, dtype=np.int64)
        for first, end in self._ranges:  # a few, written by hand
            first = max(first, position)
            if end > first:
                samples[samples >= first] += end - first
        return samples
