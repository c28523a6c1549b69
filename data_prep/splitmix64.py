"""SplitMix64, the counter-based random generator (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators").

Its k-th output depends on the seed and k alone, so whole arrays are computed at once, in any order, and no version of a
library changes them. The constants are those of the reference code, https://prng.di.unimi.it/splitmix64.c.
"""

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # the step of the state: 2^64 divided by the golden ratio, made odd


def mix64(x: UInt64Array) -> UInt64Array:
    """SplitMix64's output function: a bijection of 64-bit numbers in which every bit depends on every other.

    Works in place and returns `x` (uint64, any shape with at least one dimension), because passes over memory are its cost.
    """
    scratch = x >> np.uint64(30)
    x ^= scratch
    x *= np.uint64(0xBF58476D1CE4E5B9)
    np.right_shift(x, np.uint64(27), out=scratch)
    x ^= scratch
    x *= np.uint64(0x94D049BB133111EB)
    np.right_shift(x, np.uint64(31), out=scratch)
    x ^= scratch
    return x


def outputs(seeds: UInt64Array, indices: npt.NDArray[np.integer]) -> UInt64Array:
    """The outputs at `indices`, counted from 0, of the generators with `seeds`: uint64; the two shapes are broadcast."""
    steps = indices.astype(np.uint64)
    steps += np.uint64(1)
    steps *= GAMMA
    return mix64(seeds + steps)


def unit_interval(values: UInt64Array) -> npt.NDArray[np.float64]:
    """Uniform 64-bit numbers to uniform numbers in [0, 1): float64 of the same shape, from the upper 53 bits."""
    return (values >> np.uint64(11)).astype(np.float64) * 2.0**-53
