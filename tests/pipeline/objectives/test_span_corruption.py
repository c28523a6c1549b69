"""Span corruption: T5's published lengths, reconstruction of every row, and the definition of its distribution."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.objectives.catalogue import ObjectiveField
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


def infilling(length: int, density: float, num_spans: int | None, mean: float = 3.0, seed: str = "0") -> SpanCorruption:
    config = SpanCorruptionConfig(
        noise_density=density,
        mean_span_length=mean,
        num_spans=num_spans,
        ends_with_span=False,
        repeat_sentinels=True,
    )
    return config.build(length, *config.needs(length), VOCABULARY, seed)


def test_default_bytes_are_those_of_before_the_options() -> None:
    """The digest was taken before `num_spans` and `ends_with_span` existed."""
    total = hashlib.sha256()
    for density, mean, length in ((0.15, 3.0, 568), (0.5, 8.0, 100), (0.15, 3.0, 32), (0.9, 1.0, 41)):
        config = SpanCorruptionConfig(noise_density=density, mean_span_length=mean)
        objective = config.build(length, *config.needs(length), VOCABULARY, "7")
        rows = np.tile(1000 + np.arange(length), (64, 1))
        for lengths in (np.full(64, length), np.arange(64) % (length + 1)):
            batch = objective(rows, lengths, 11 + np.arange(64))
            for array in (batch.encoder_ids, batch.encoder_mask, batch.decoder_ids, batch.targets, batch.target_mask):
                total.update(array.astype("<i8").tobytes())
    assert total.hexdigest() == "7778146b69e73d80e7a316dbd6c59cee4443110d82e7c239ea362ca56744018c"


def test_a_dump_has_the_new_keys_only_where_they_are_set() -> None:
    """Plans keep their hash; what is dumped is read back."""
    old = {"name": "span_corruption", "noise_density": 0.15, "mean_span_length": 3.0, "repeat_sentinels": False}
    assert SpanCorruptionConfig().model_dump(mode="json") == old
    set_keys = {**old, "num_spans": 2, "ends_with_span": False}
    made = SpanCorruptionConfig.model_validate(set_keys)
    assert made.model_dump(mode="json") == set_keys
    inside = ObjectiveField.model_validate({"objective": set_keys})
    assert inside.model_dump(mode="json") == {"objective": set_keys}


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.integers(0, 120), min_size=1, max_size=6),
    st.floats(0.01, 0.95),
    st.floats(1, 20),
    st.integers(0, 10**12),
)
def test_rows_with_gaps_anywhere_can_be_reconstructed(lengths: list[int], density: float, mean: float, first: int) -> None:
    longest = max(3, *lengths)
    objective = infilling(longest, density, None, mean)
    rows = np.tile(1000 + np.arange(longest), (len(lengths), 1))
    batch = objective(rows, np.array(lengths), first + np.arange(len(lengths)))
    for row, length in enumerate(lengths):
        if length < 3:
            assert batch.encoder_ids[row][:length].tolist() == rows[row, :length].tolist()
            assert not batch.target_mask[row].any()
            continue
        original, spans = spans_of(batch, row)
        assert original == rows[row, :length].tolist()
        noise = min(max(round(length * density), 1), length - 2)
        assert sum(map(len, spans)) == noise
        assert len(spans) == min(max(round(noise / mean), 1), length - noise - 1)
        assert batch.encoder_mask[row].sum() == length - noise + len(spans) + 1
        encoder = batch.encoder_ids[row][batch.encoder_mask[row] == 1].tolist()
        is_kept = [token >= 1000 for token in encoder[:-1]]
        assert is_kept[0]  # a gap stands neither at the start
        assert is_kept[-1]  # nor at the end
        assert all(kept or is_kept[place + 1] for place, kept in enumerate(is_kept[:-1]))  # nor beside another


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.booleans(), st.integers(3, 90), st.lists(st.integers(0, 90), min_size=1, max_size=6))
def test_the_number_of_spans_is_as_given(num_spans: int, ends: bool, length: int, shorter: list[int]) -> None:
    """A full row has `num_spans`; a shorter one as many as its cut and kept tokens allow."""
    config = SpanCorruptionConfig(noise_density=0.3, num_spans=num_spans, ends_with_span=ends)
    smallest = 2 if ends else 3

    def expected(row_length: int) -> tuple[int, int]:
        if row_length < smallest:
            return 0, 0
        noise = min(max(round(0.3 * row_length), 1), row_length - smallest + 1)
        return noise, min(num_spans, noise, row_length - noise - (not ends))

    if expected(length)[1] < num_spans:
        with pytest.raises(ValueError, match=rf"num_spans {num_spans} does not fit rows of {length} tokens"):
            config.build(length, *config.needs(length), VOCABULARY, "0")
        return
    objective = config.build(length, *config.needs(length), VOCABULARY, "0")
    row_lengths = np.minimum([length, *shorter], length)
    batch = objective(np.tile(1000 + np.arange(length), (len(row_lengths), 1)), row_lengths, np.arange(len(row_lengths)))
    for row, row_length in enumerate(row_lengths.tolist()):
        noise, spans = expected(row_length)
        assert np.isin(batch.targets[row], VOCABULARY.sentinels).sum() == spans
        assert (batch.targets[row] >= 1000).sum() == noise
    counts = objective.num_targets(row_lengths, np.arange(len(row_lengths)))
    assert counts.tolist() == batch.target_mask.sum(1).tolist()
    assert objective.cost.target == counts[0] == batch.targets.shape[1]


def test_every_choice_of_gaps_anywhere_is_equally_likely(
    equally_likely: Callable[..., None], distinct_rows: Callable[[int, int], np.ndarray]
) -> None:
    """10 tokens, 4 of them noise in 2 spans: every row in which both spans are inside and apart, enumerated from all masks."""
    allowed = set()
    for cut in itertools.combinations(range(1, 9), 4):
        num_spans = sum(place - 1 not in cut for place in cut)
        if num_spans == 2:
            allowed.add(cut)
    assert len(allowed) == math.comb(3, 1) * math.comb(5, 2)
    num_rows = 30_000
    batch = infilling(10, 0.4, 2)(distinct_rows(num_rows, 10), np.full(num_rows, 10), np.arange(num_rows))
    outcomes = Counter(tuple((row[row >= 1000] - 1000).tolist()) for row in batch.targets)
    assert set(outcomes) == allowed
    equally_likely(outcomes, len(allowed))


@pytest.mark.parametrize("length", [32, 33])
def test_the_place_of_a_single_gap_is_uniform(
    length: int, equally_likely: Callable[..., None], distinct_rows: Callable[[int, int], np.ndarray]
) -> None:
    """One span of 5 among 32 tokens begins at 1, 2, …, 26: constant lengths, and never at an end."""
    num_rows = 20_000
    objective = infilling(length, 5 / length, 1)
    batch = objective(distinct_rows(num_rows, length), np.full(num_rows, length), np.arange(num_rows))
    assert batch.encoder_ids.shape == (num_rows, length - 5 + 1 + 1)
    assert batch.targets.shape == (num_rows, 5 + 1 + 1)
    assert (batch.targets[:, 0] == FIRST_SENTINEL).all()
    starts = Counter((batch.targets[:, 1] - 1000).tolist())
    assert set(starts) == set(range(1, length - 5))
    equally_likely(starts, length - 6)


@pytest.mark.parametrize(("encoder_length", "row_length"), [(29, 32), (512, 600)])
def test_lengths_of_a_single_gap_follow_from_the_row(encoder_length: int, row_length: int) -> None:
    config = SpanCorruptionConfig(num_spans=1, ends_with_span=False)
    noise = round(0.15 * row_length)
    assert config.row_length(encoder_length, 1 << 40) == row_length
    assert config.default_decoder_length(encoder_length) == noise + 2
    assert encoder_length == row_length - noise + 2


@settings(deadline=None)
@given(st.floats(0.01, 0.99), st.floats(1, 20), st.one_of(st.none(), st.integers(1, 20)), st.booleans())
def test_needs_never_fall_with_the_row(density: float, mean: float, num_spans: int | None, ends: bool) -> None:
    """The search for the longest row relies on it."""
    config = SpanCorruptionConfig(noise_density=density, mean_span_length=mean, num_spans=num_spans, ends_with_span=ends)
    needs = np.array([config.needs(length) for length in range(1, 200)])
    assert (np.diff(needs, axis=0) >= 0).all()


def test_impossible_numbers_of_spans_are_refused_by_key() -> None:
    with pytest.raises(ValueError, match=r"num_spans 3 .* rows of 10 tokens.*noise_density 0.1 cuts 1.*Lower num_spans to 1"):
        SpanCorruptionConfig(noise_density=0.1, num_spans=3).build(10, 16, 16, VOCABULARY, "0")
    with pytest.raises(ValueError, match=r"num_spans 2 .*noise_density 0.8.*less one \(ends_with_span is false\).*to 1"):
        SpanCorruptionConfig(noise_density=0.8, num_spans=2, ends_with_span=False).build(10, 16, 16, VOCABULARY, "0")
    SpanCorruptionConfig(noise_density=0.8, num_spans=2).build(10, 16, 16, VOCABULARY, "0")  # possible without a last part
    with pytest.raises(ValueError, match=r"ends_with_span false needs rows of at least 3 tokens.*have 2"):
        SpanCorruptionConfig(ends_with_span=False).build(2, 16, 16, VOCABULARY, "0")
    with pytest.raises(ValueError, match="num_spans"):
        SpanCorruptionConfig(num_spans=0)


def test_too_many_spans_error_names_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"needs 341 sentinels a row.*repeat_sentinels"):
        SpanCorruptionConfig(noise_density=0.3).build(3410, 4096, 4096, VOCABULARY, "0")


def test_sentinels_repeat_from_the_first_on() -> None:
    few = Vocabulary(start=0, end=1, sentinels=(90, 91, 92))
    assert few.span_ids(3, False, "span_corruption").tolist() == [90, 91, 92]
    assert few.span_ids(8, True, "span_corruption").tolist() == [90, 91, 92, 90, 91, 92, 90, 91]
    config = SpanCorruptionConfig(noise_density=0.5, mean_span_length=1, repeat_sentinels=True)
    objective = config.build(10, *config.needs(10), few, "0")
    batch = objective(1000 + np.arange(10)[None], np.array([10]), np.arange(1))
    for ids in (batch.encoder_ids[0], batch.targets[0]):
        assert ids[(ids < 1000) & (ids > 1)].tolist() == [90, 91, 92, 90, 91]
