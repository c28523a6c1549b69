"""Random numbers of samples: equal to the published generator, independent of the batch, and uniform."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.objectives.counter_rng import CounterRNG


def test_numbers_are_those_of_splitmix64() -> None:
    """The reference generator started at 1234567, as published with it (and on Rosetta Code)."""
    draws = CounterRNG("0", "any", np.array([0]))
    draws._state = np.array([1234567], dtype=np.uint64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert draws.integers(2)[0].tolist() + draws.integers(3)[0].tolist() == expected


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=6), st.integers(1, 40))
def test_a_sample_draws_the_same_in_any_batch(samples: list[int], width: int) -> None:
    together = CounterRNG("7", "x", np.array(samples))
    first, second = together.integers(width), together.uniform(width)
    for row, sample in enumerate(samples):
        alone = CounterRNG("7", "x", np.array([sample]))
        assert np.array_equal(alone.integers(width)[0], first[row])
        assert np.array_equal(alone.uniform(width)[0], second[row])


def test_seeds_purposes_and_samples_have_independent_streams() -> None:
    samples = np.arange(1000)
    streams = [CounterRNG(seed, purpose, samples).uniform(8) for seed, purpose in (("0", "a"), ("1", "a"), ("0", "b"))]
    streams.append(CounterRNG("0", "a", samples + 1000).uniform(8))
    assert len(np.unique(np.concatenate(streams))) == 4 * 8000
    for one in streams:
        assert abs(one.mean() - 0.5) < 4 / np.sqrt(12 * one.size)
        assert abs(np.corrcoef(one[:-1, 0], one[1:, 0])[0, 1]) < 4 / np.sqrt(len(one))


def test_every_subset_is_equally_likely(equally_likely: Callable[..., None]) -> None:
    chosen = CounterRNG("0", "subset", np.arange(20_000)).subset(2, 6)
    assert (chosen.sum(1) == 2).all()
    equally_likely(Counter(map(bytes, chosen)), 15)


def test_subsets_of_uneven_rows(equally_likely: Callable[..., None]) -> None:
    samples = np.arange(30_000)
    counts, sizes = np.tile([2, 0, 3], 10_000), np.tile([4, 6, 3], 10_000)
    chosen = CounterRNG("0", "subset", samples).subsets(counts, sizes, 6)
    assert np.array_equal(chosen.sum(1), counts)
    assert not (chosen & (np.arange(6) >= sizes[:, None])).any()
    equally_likely(Counter(map(bytes, chosen[::3])), 6)


def test_tied_keys_still_give_the_exact_count() -> None:
    draws = CounterRNG("0", "subset", np.arange(3))
    draws.keys = lambda width: np.array([[5, 5, 5, 9]] * 3, dtype=np.uint32)  # type: ignore[method-assign]
    assert draws.subset(2, 4).sum(1).tolist() == [2, 2, 2]


def test_whole_numbers_below_a_bound_are_uniform(equally_likely: Callable[..., None]) -> None:
    found = CounterRNG("0", "below", np.arange(9000)).below(np.full(9000, 7), 2)
    equally_likely(Counter(found.ravel().tolist()), 7)
