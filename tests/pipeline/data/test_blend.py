"""Blending compared with its definition in exact fractions and with Megatron's builder; its documented error bounds."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.blend import PERIOD, Blend, whole_shares

WEIGHTS = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@settings(deadline=None, max_examples=80)
@given(WEIGHTS, st.integers(1, 300))
def test_each_sample_goes_to_the_source_with_the_largest_error(weights: list[int], count: int) -> None:
    total, taken, expected = sum(weights), [0] * len(weights), []
    for sample in range(count):
        errors = [Fraction(weight * (sample + 1), total) - done for weight, done in zip(weights, taken, strict=True)]
        source = errors.index(max(errors))
        expected.append((source, taken[source]))
        taken[source] += 1
    sources, numbers = Blend(weights)(np.arange(count))
    assert list(zip(sources.tolist(), numbers.tolist(), strict=True)) == expected


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=6), st.integers(0, 10**15))
def test_random_access_agrees_and_source_counts_have_no_gaps(weights: list[float], first: int) -> None:
    try:
        blend = Blend(weights)
    except ValueError:
        assert min(weights) / sum(weights) < 1 / PERIOD
        return
    samples = first + np.arange(2000)
    sources, numbers = blend(samples)
    for source in range(len(weights)):
        own = numbers[sources == source]
        assert (np.diff(own) == 1).all()
        share = Fraction(int(blend.shares[source]), blend.period)
        if len(own):  # the count before a sample is within one of its share
            place = int(samples[sources == source][0])
            assert abs(share * place - int(own[0])) < len(weights)
    alone = [blend(samples[place : place + 1]) for place in (0, 777, 1999)]
    assert [(int(s[0]), int(n[0])) for s, n in alone] == [(int(sources[p]), int(numbers[p])) for p in (0, 777, 1999)]


def test_counts_differ_from_megatron_by_at_most_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        helpers = pytest.importorskip("megatron.core.datasets.helpers", reason="Megatron's blending was not built")
    weights = np.array([0.5, 0.3, 0.125, 0.075])
    count = 20_000
    theirs, their_numbers = np.zeros(count, dtype=np.int16), np.zeros(count, dtype=np.int64)
    helpers.build_blending_indices(theirs, their_numbers, weights, 4, count, False)
    ours, _ = Blend(weights.tolist())(np.arange(count))
    for source in range(4):
        difference = np.cumsum(ours == source) - np.cumsum(theirs == source)
        # Our weights are multiples of 1/16384: over 20,000 samples this adds a difference of at most one.
        assert np.abs(difference).max() <= 2
    assert np.bincount(ours) / count == pytest.approx(weights, abs=1e-3)


def test_weights_are_exact_or_rounded_to_a_fine_grid() -> None:
    assert whole_shares([2, 6, 4]) == [1, 3, 2]
    assert whole_shares([0.1, 0.2, 0.7]) == [1, 2, 7]
    assert sum(whole_shares([0.1, 0.2, 0.123456789])) == PERIOD
    assert Blend([1]).period == 1
    for weights in ([1.0, 0.0], [1.0, -2.0], [float("nan")], []):
        with pytest.raises(ValueError, match="must be a positive number"):
            whole_shares(weights)
    with pytest.raises(ValueError, match="less than"):
        whole_shares([1e-7, 1.0])
