"""Span corruption: T5's published lengths, reconstruction of every row, and the definition of its distribution."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.objectives.interface import Batch
from pipeline.objectives.span_corruption import SpanCorruption, SpanCorruptionConfig, span_counts
from pipeline.objectives.vocabulary import Vocabulary
from tests.helpers.scripts import load_script

START, END, FIRST_SENTINEL = 0, 1, 999
VOCABULARY = Vocabulary(start=START, end=END, sentinels=tuple(range(FIRST_SENTINEL, FIRST_SENTINEL - 300, -1)))


def build(length: int, density: float = 0.15, mean: float = 3.0, seed: str = "0") -> SpanCorruption:
    config = SpanCorruptionConfig(noise_density=density, mean_span_length=mean, repeat_sentinels=True)
    return config.build(length, *config.needs(length), VOCABULARY, seed)


def spans_of(batch: Batch, row: int) -> tuple[list[int], list[list[int]]]:
    """Undo the corruption in plain Python. Returns the original tokens, and the spans in the decoder's targets."""
    encoder = batch.encoder_ids[row][batch.encoder_mask[row] == 1].tolist()
    target = batch.targets[row][batch.target_mask[row] == 1].tolist()
    assert encoder.pop() == END
    assert target.pop() == END
    spans: list[list[int]] = []
    for token in target:
        if token in VOCABULARY.sentinels:
            assert token == VOCABULARY.sentinels[len(spans) % len(VOCABULARY.sentinels)]
            spans.append([])
        else:
            spans[-1].append(token)
    remaining = iter(spans)
    original: list[int] = []
    for token in encoder:
        original += next(remaining) if token in VOCABULARY.sentinels else [token]
    assert next(remaining, None) is None
    return original, spans


@pytest.mark.parametrize(
    ("encoder_length", "expected"), [(512, (568, 114)), (1024, (1137, 229)), (2048, (2274, 456)), (4096, (4550, 910))]
)
def test_lengths_equal_t5(encoder_length: int, expected: tuple[int, int]) -> None:
    """`random_spans_helper` of t5 at 15 % and spans of 3, as its released models were trained."""
    longest = SpanCorruptionConfig().row_length(encoder_length, 1 << 40)  # no limit from the decoder
    assert (longest, SpanCorruptionConfig().needs(longest)[1]) == expected
    assert SpanCorruptionConfig().row_length(encoder_length, expected[1]) == expected[0]
    assert SpanCorruptionConfig().default_decoder_length(encoder_length) == expected[1]


def test_a_full_row_fills_its_lengths_exactly(distinct_rows: Callable[[int, int], np.ndarray]) -> None:
    batch = build(568)(distinct_rows(4, 568), np.full(4, 568), np.arange(4))
    assert batch.encoder_ids.shape == (4, 512)
    assert batch.targets.shape == (4, 114)
    assert batch.encoder_mask.all()
    assert batch.target_mask.all()


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.integers(0, 120), min_size=1, max_size=6),
    st.floats(0.01, 0.95),
    st.floats(1, 20),
    st.integers(0, 10**12),
)
def test_rows_can_be_reconstructed(lengths: list[int], density: float, mean: float, first: int) -> None:
    longest = max(2, *lengths)
    objective = build(longest, density, mean)
    rows = np.tile(1000 + np.arange(longest), (len(lengths), 1))
    batch = objective(rows, np.array(lengths), first + np.arange(len(lengths)))
    for row, length in enumerate(lengths):
        if length < 2:
            assert batch.encoder_ids[row][:length].tolist() == rows[row, :length].tolist()
            assert batch.encoder_mask[row].sum() == length
            assert not batch.target_mask[row].any()
            continue
        original, spans = spans_of(batch, row)
        assert original == rows[row, :length].tolist()
        noise = min(max(round(length * density), 1), length - 1)
        assert sum(map(len, spans)) == noise
        assert len(spans) == min(max(round(noise / mean), 1), length - noise)
        assert min(map(len, spans)) >= 1
        assert batch.encoder_ids[row, 0] == 1000  # begins with kept tokens
        assert spans[-1][-1] == 1000 + length - 1  # ends with a span


def test_every_choice_of_spans_is_equally_likely(
    equally_likely: Callable[..., None], distinct_rows: Callable[[int, int], np.ndarray]
) -> None:
    """10 tokens, 4 of them noise in 2 spans: 3 ways to split the noise times 5 ways to split the rest."""
    assert span_counts(10, 0.4, 2) == (4, 2)
    num_rows = 15_000
    batch = build(10, 0.4, 2)(distinct_rows(num_rows, 10), np.full(num_rows, 10), np.arange(num_rows))
    outcomes = Counter(row.tobytes() for row in batch.encoder_ids)
    equally_likely(outcomes, math.comb(3, 1) * math.comb(5, 1))


def test_noise_positions_of_a_long_row_follow_the_published_method(distinct_rows: Callable[[int, int], np.ndarray]) -> None:
    """The frequency of noise at each position, compared with random segmentation in numpy as the paper describes it."""
    num_rows, length = 4000, 60
    noise, spans = span_counts(length, 0.15, 3)
    batch = build(length)(distinct_rows(num_rows, length), np.full(num_rows, length), np.arange(num_rows))
    cut_out = np.bincount(batch.targets[batch.targets >= 1000] - 1000, minlength=length)
    rng = np.random.default_rng(0)
    expected = np.zeros(length)
    for _ in range(num_rows):
        noise_cuts, kept_cuts = (
            np.sort(rng.choice(size - 1, spans - 1, replace=False)) + 1 for size in (noise, length - noise)
        )
        noise_lengths = np.diff([0, *noise_cuts, noise])
        kept_lengths = np.diff([0, *kept_cuts, length - noise])
        place = 0
        for kept, span in zip(kept_lengths, noise_lengths, strict=True):
            expected[place + kept : place + kept + span] += 1
            place += kept + span
    error = np.sqrt(expected + cut_out + 1)
    assert (np.abs(cut_out - expected) < 4.5 * error).all()


def test_texts_equal_the_published_collator() -> None:
    """The benchmark's reference, written from the collator's description, applied to the spans that our objective drew."""
    benchmark = load_script("benchmarks/objectives.py")
    rows = np.tile(1000 + np.arange(568), (16, 1))
    ours = benchmark.objective_named("span_corruption")(rows, np.full(16, 568), np.arange(16))
    peer = benchmark.NumpyCollator(0.15, 3.0, 0)
    noise = [np.isin(rows[row], ours.targets[row]) for row in range(16)]
    peer._noise_mask = lambda length, masks=iter(noise): next(masks)
    inputs, labels, decoder_inputs = peer(rows)
    assert np.array_equal(ours.encoder_ids, inputs)
    assert np.array_equal(ours.targets, labels)
    assert np.array_equal(ours.decoder_ids, decoder_inputs)


def test_too_many_spans_error_names_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"needs 341 sentinels a row.*repeat_sentinels"):
        SpanCorruptionConfig(noise_density=0.3).build(3410, 4096, 4096, VOCABULARY, "0")
