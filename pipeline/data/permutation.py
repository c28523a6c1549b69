"""A random permutation of 0 … n-1 that is computed at each index instead of stored: epochs of any size in no memory.

A Feistel network over the next even power of two, walked until it lands below n (Black & Rogaway 2002, "Ciphers with arbitrary
finite domains"). The round function is SplitMix64's mixer, keyed by blake2b of the seed.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from data_prep.splitmix64 import mix64

_ROUNDS = 6


def permute(indices: NDArray[np.int64], size: int, key: str) -> NDArray[np.int64]:
    """The images (int64, same shape) of `indices` under the permutation of 0 … size-1 that `key` names."""
    if size < 1:
        raise ValueError(f"cannot permute {size} rows")
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    digest = hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest()
    round_keys = np.frombuffer(digest, dtype="<u8")
    values = np.asarray(indices, dtype=np.uint64)
    if values.size and int(values.max()) >= size:
        raise ValueError(f"index {int(values.max())} lies outside the {size} rows")
    values = _feistel(values, half_bits, round_keys)
    outside = values >= size
    while outside.any():  # more than a quarter of the domain lies inside: under four walks are expected
        values[outside] = _feistel(values[outside], half_bits, round_keys)
        outside = values >= size
    return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half_bits: int, round_keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> bits, values & mask
    for round_key in round_keys:
        left, right = right, left ^ (mix64(right ^ round_key) & mask)
    return (left << bits) | right
