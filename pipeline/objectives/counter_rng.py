"""Random numbers of a sample: they do not depend on the batch, the rank or a restart.

Sample i has a stream of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators") whose start
is a hash of (seed, purpose, i). Its k-th number is a function of k, so those of all samples of a batch are computed at once.

Shapes: B samples, W positions.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from data_prep.splitmix64 import GAMMA, mix64, outputs, unit_interval

Ints = NDArray[np.int64]
_LARGEST = np.uint64(0xFFFFFFFFFFFFFFFF)


class CounterRNG:
    """The streams of `samples` (B,). Every call continues where the last one ended."""

    def __init__(self, seed: str, purpose: str, samples: Ints) -> None:
        digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
        key = np.frombuffer(digest, dtype="<u8")
        starts = np.asarray(samples, dtype=np.uint64) * GAMMA
        self._state = mix64(mix64(starts) + key)  # (B,)
        self._taken = 0

    def integers(self, width: int) -> NDArray[np.uint64]:
        """(B, width) uniform over all 64-bit numbers."""
        indices = np.arange(self._taken, self._taken + width)
        self._taken += width
        return outputs(self._state[:, None], indices)

    def uniform(self, width: int) -> NDArray[np.float64]:
        """(B, width) in [0, 1), with 53 random bits."""
        return unit_interval(self.integers(width))

    def below(self, bounds: Ints, width: int = 1) -> Ints:
        """(B, width) whole numbers from 0 to bounds (B,) - 1; uniform to within bounds / 2^53."""
        return (self.uniform(width) * bounds[:, None]).astype(np.int64)

    def keys(self, width: int) -> NDArray[np.uint32]:
        """(B, width) uniform over all 32-bit numbers."""
        return self.integers(-(-width // 2)).astype("<u8", copy=False).view("<u4")[:, :width]

    def subset(self, count: int, width: int) -> NDArray[np.bool_]:
        """(B, width), true at `count` positions of each row. All such sets are equally likely."""
        keys = self.keys(width)
        if not 0 < count < width:
            return np.full(keys.shape, count > 0)
        chosen = keys <= np.partition(keys, count - 1, axis=1)[:, count - 1 : count]
        if np.count_nonzero(chosen) == count * len(keys):
            return chosen
        sizes = np.full(len(keys), width)  # two equal keys at the border: once in millions of rows
        return _first(keys, np.full(len(keys), count), sizes)

    def subsets(self, counts: Ints, sizes: Ints, width: int) -> NDArray[np.bool_]:
        """(B, width), true at counts (B,) of the first sizes (B,) positions of each row."""
        if counts.size and (counts == counts[0]).all() and (sizes == width).all():
            return self.subset(int(counts[0]), width)  # the same positions, found without sorting
        return _first(self.keys(width), counts, sizes)


def _first(keys: NDArray[np.uint32], counts: Ints, sizes: Ints) -> NDArray[np.bool_]:
    """The positions of the `counts` smallest keys among the first `sizes`; of equal keys the first."""
    places = np.arange(keys.shape[1], dtype=np.uint64)
    ordered = (keys.astype(np.uint64) << np.uint64(32)) | places  # all different, and sorted without moving anything else
    ordered[places >= sizes[:, None].astype(np.uint64)] = _LARGEST
    last = np.take_along_axis(np.sort(ordered, axis=1), np.maximum(counts, 1)[:, None] - 1, axis=1)
    return (ordered <= last) & (counts > 0)[:, None]
