"""Random numbers of a sample: they do not depend on the batch, the rank or a restart.

Sample i has a stream of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators") whose start
is a hash of (seed, purpose, i). Its k-th number is a function of k, so those of all samples of a batch are computed at once.

Shapes: B samples, W positions.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LARGEST = np.uint64(0xFFFFFFFFFFFFFFFF)


class CounterRNG:
    """The streams of `samples` (B,). Every call continues where the last one ended."""

    def __init__(self, seed: str, purpose: str, samples: Ints) -> None:
        digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
        key = np.frombuffer(digest, dtype="<u8")
        starts = np.asarray(samples, dtype=np.uint64) * _GOLDEN
        self._state = _mixed(_mixed(starts) + key)  # (B,)
        self._taken = 0

    def integers(self, width: int) -> NDArray[np.uint64]:
        """(B, width) uniform over all 64-bit numbers."""
        steps = np.arange(self._taken + 1, self._taken + width + 1, dtype=np.uint64) * _GOLDEN
        self._taken += width
        return _mixed(self._state[:, None] + steps)

    def uniform(self, width: int) -> NDArray[np.float64]:
        """(B, width) in [0, 1), with 53 random bits."""
        return (self.integers(width) >> np.uint64(11)).astype(np.float64) * 2.0**-53

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


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function, in place on a fresh array: passes over memory are what it costs."""
    scratch = x >> np.uint64(30)
    x ^= scratch
    x *= np.uint64(0xBF58476D1CE4E5B9)
    np.right_shift(x, np.uint64(27), out=scratch)
    x ^= scratch
    x *= np.uint64(0x94D049BB133111EB)
    np.right_shift(x, np.uint64(31), out=scratch)
    x ^= scratch
    return x
