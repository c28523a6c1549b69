"""SplitMix64 compared with published values and with the reference code in Python integers.

Published: https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64 (first outputs of seed 1234567, and how often the
first 100,000 numbers of seed 987654321 fall into each fifth of [0, 1)).
"""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_prep.splitmix64 import mix64, outputs, unit_interval

_NUMBERS = st.integers(0, 2**64 - 1)


def _reference(state: int) -> int:
    """`next` of https://prng.di.unimi.it/splitmix64.c, given the state after its first line."""
    z = state % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_first_outputs_equal_the_published_values() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert outputs(np.array([1234567], dtype=np.uint64), np.arange(5)).tolist() == published


def test_counts_in_the_unit_interval_equal_the_published_values() -> None:
    numbers = unit_interval(outputs(np.array([987654321], dtype=np.uint64), np.arange(100_000)))
    assert np.bincount((numbers * 5).astype(int)).tolist() == [20027, 19892, 20073, 19978, 20030]
    assert numbers.min() >= 0
    assert unit_interval(np.array([2**64 - 1], dtype=np.uint64))[0] == 1 - 2**-53


@given(_NUMBERS, st.integers(0, 2**63 - 1))
def test_any_output_equals_the_reference_code(seed: int, index: int) -> None:
    expected = _reference(seed + (index + 1) * 0x9E3779B97F4A7C15)
    assert outputs(np.array([seed], dtype=np.uint64), np.array([index])).tolist() == [expected]


@given(st.lists(_NUMBERS, min_size=1, max_size=8))
def test_mixing_works_in_place_on_every_number(values: list[int]) -> None:
    x = np.array(values, dtype=np.uint64)
    assert mix64(x) is x
    assert x.tolist() == [_reference(value) for value in values]


def test_seeds_and_indices_broadcast() -> None:
    seeds = np.array([[3], [5]], dtype=np.uint64)
    both = outputs(seeds, np.arange(4))
    assert both.shape == (2, 4)
    assert both[1].tolist() == outputs(seeds[1], np.arange(4)).tolist()
