"""Text infilling and sentence permutation compared with scipy's Poisson distribution and a slow reference for spans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import poisson as scipy_poisson
from tokenizers import Tokenizer

from pipeline.objectives.counter_rng import CounterRNG
from pipeline.objectives.text_infilling import TextInfilling, TextInfillingConfig, most_spans, poisson, span_ends
from pipeline.objectives.vocabulary import Vocabulary

MASK, END, STOP = 2, 1, 3


def build(length: int, share: float = 0.3, permute: bool = False) -> TextInfilling:
    ends_sentence = np.zeros(5000, dtype=bool)
    ends_sentence[STOP] = True
    vocabulary = Vocabulary(start=0, end=END, named={"[MASK]": MASK}, ends_sentence=ends_sentence)
    config = TextInfillingConfig(mask_share=share, permute_sentences=permute)
    return config.build(length, *config.needs(length), vocabulary, "0")


@pytest.mark.parametrize("mean", [1.0, 3.0, 10.0])
def test_span_lengths_are_poisson(mean: float) -> None:
    quantiles = np.concatenate([np.linspace(0, 0.9999, 1001), [1 - 1e-9]])
    assert np.array_equal(poisson(quantiles, mean), scipy_poisson.ppf(quantiles, mean).clip(0))


def test_masks_cover_exactly_the_share_and_keep_the_rest_in_order(distinct_rows: Callable[[int, int], np.ndarray]) -> None:
    lengths = np.array([100, 100, 57, 1, 0])
    batch = build(100)(distinct_rows(5, 100), lengths, np.arange(5))
    for row, length in enumerate(lengths.tolist()):
        text = batch.encoder_ids[row][batch.encoder_mask[row] == 1]
        kept = text[text != MASK]
        assert len(kept) == length - round(0.3 * length)
        assert (np.diff(kept) > 0).all()
        assert batch.targets[row][batch.target_mask[row] == 1].tolist() == list(range(1000, 1000 + length))


def test_the_number_of_masks_is_distributed_as_in_sequential_drawing(distinct_rows: Callable[[int, int], np.ndarray]) -> None:
    """The reference draws spans from numpy's Poisson(3), one at a time, until they cover 30 %."""
    num_rows, length = 3000, 80
    batch = build(length)(distinct_rows(num_rows, length), np.full(num_rows, length), np.arange(num_rows))
    found = (batch.encoder_ids == MASK).sum(1)
    rng = np.random.default_rng(0)
    expected = []
    for _ in range(num_rows):
        covered = spans = 0
        while covered < round(0.3 * length):
            covered += rng.poisson(3)
            spans += 1
        expected.append(spans)
    spread = np.sqrt((np.var(expected) + found.var()) / num_rows)
    assert abs(found.mean() - np.mean(expected)) < 4 * spread
    assert found.var() == pytest.approx(np.var(expected), rel=0.15)


def test_every_arrangement_of_one_mask_is_equally_likely(
    equally_likely: Callable[..., None], distinct_rows: Callable[[int, int], np.ndarray]
) -> None:
    """5 tokens, 1 of them covered by one span: the mask is at any of 5 positions of the text. Rows with more spans, the first
    of them empty, are ignored."""
    num_rows = 20_000
    batch = build(5, 0.2)(distinct_rows(num_rows, 5), np.full(num_rows, 5), np.arange(num_rows))
    single = batch.encoder_ids[(batch.encoder_ids == MASK).sum(1) == 1]
    assert len(single) > 0.9 * num_rows
    equally_likely(Counter(row.tobytes() for row in single), 5)


@pytest.mark.parametrize("num_masked", [1, 3, 30, 300])
def test_enough_spans_are_drawn(num_masked: int) -> None:
    """By the Poisson distribution, the bound on the number of spans is too small less than once in 10^9 rows."""
    assert scipy_poisson.cdf(num_masked - 1, 3.0 * most_spans(num_masked, 3.0)) < 1e-9
    covered = span_ends(CounterRNG("0", "x", np.arange(1000)), num_masked, 3.0)
    assert (covered[:, -1] == num_masked).all()
    assert (np.diff(covered, axis=1) >= 0).all()


def test_sentences_are_permuted_within_their_document(equally_likely: Callable[..., None]) -> None:
    first = [[11, STOP], [12, 13, STOP], [14, 15]]  # the last one has no full stop
    second = [[21, STOP], [22]]
    row = [token for part in first for token in part] + [END] + [token for part in second for token in part] + [END, 31, 32]
    num_rows = 6000
    rows = np.tile([*row, 0, 0], (num_rows, 1))
    batch = build(len(row) + 2, 0.0, permute=True)(rows, np.full(num_rows, len(row)), np.arange(num_rows))
    outcomes: Counter[tuple[int, ...]] = Counter(map(tuple, batch.encoder_ids[:, : len(row)].tolist()))
    equally_likely(outcomes, 6 * 2)
    for text in outcomes:
        assert text[7] == END
        assert text[11:] == (END, 31, 32)
        assert sorted(text[:7]) == sorted(row[:7])
        assert sorted(text[8:11]) == sorted(row[8:11])
        for sentence in (*first, *second):  # complete and in its original order
            place = text.index(sentence[0])
            assert list(text[place : place + len(sentence)]) == sentence
    assert (batch.targets[:, : len(row)] == row).all()


def test_sentence_ends_are_read_from_the_tokenizer(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    ids = tokenizer.encode("It sleeps! Is it lazy? The dog.\nAnd", add_special_tokens=False).ids
    ends = [tokenizer.decode([token]) for token in ids if vocabulary.ends_sentence[token]]
    assert len(ends) == 3
    assert all(text.strip()[-1] in ".!?" for text in ends)
    assert any(vocabulary.ends_line[token] for token in ids)
