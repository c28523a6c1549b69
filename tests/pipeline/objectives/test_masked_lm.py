"""Masked language modelling and sentence order as in FNet's own `input_pipeline.py`: reconstruction of rows, shares,
positions, and a slow reference for the boundary of the segments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from pipeline.objectives.counter_rng import CounterRNG
from pipeline.objectives.interface import EncoderBatch
from pipeline.objectives.masked_lm import MaskedLM, MaskedLMConfig, seams
from pipeline.objectives.vocabulary import Vocabulary

END, CLS, SEP, MASK, LINE = 1, 2, 3, 4, 9


def build(length: int, **settings: object) -> MaskedLM:
    ends_line = np.zeros(3000, dtype=bool)
    ends_line[LINE] = True
    vocabulary = Vocabulary(
        start=0, end=END, named={"[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK}, ordinary=np.arange(10, 3000), ends_line=ends_line
    )
    return MaskedLMConfig.model_validate(settings).build(length, length + 3, 1, vocabulary, "0")


def restored(batch: EncoderBatch, row: int) -> tuple[list[int], list[int]]:
    """The two segments of a row in the order of the text, with the predicted tokens put back."""
    ids = batch.ids[row].copy()
    for position, target, taken in zip(batch.positions[row], batch.targets[row], batch.target_mask[row], strict=True):
        if taken:
            ids[position] = target
    text = ids[batch.mask[row] == 1].tolist()
    assert text[0] == CLS
    assert text[-1] == SEP
    middle = text.index(SEP)
    assert text.count(SEP) == (2 if middle < len(text) - 1 else 1)
    assert batch.type_ids[row].tolist() == [int(middle < place < len(text)) for place in range(len(ids))]
    segments = text[1:middle], text[middle + 1 : -1]
    return segments[::-1] if batch.order[row] else segments


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.floats(0.02, 0.5), st.integers(0, 10**12))
def test_rows_can_be_reconstructed(lengths: list[int], rate: float, first: int) -> None:
    longest = max(4, *lengths)
    objective = build(longest, rate=rate)
    rows = np.tile(1000 + np.arange(longest), (len(lengths), 1))
    batch = objective(rows, np.array(lengths), first + np.arange(len(lengths)))
    for row, length in enumerate(lengths):
        before, after = restored(batch, row)
        assert before + after == rows[row, :length].tolist()
        positions = batch.positions[row][batch.target_mask[row] == 1]
        assert (np.diff(positions) > 0).all()
        full = max(1, int((longest + 3) * rate))
        assert len(positions) == min(max(1, int((length + 3) * rate)), full, length)
        assert batch.order_mask[row] == (length > 1)


def test_masking_is_80_10_10_at_uniform_positions() -> None:
    num_rows, length = 2000, 97
    rows = np.tile(1000 + np.arange(length), (num_rows, 1))
    batch = build(length)(rows, np.full(num_rows, length), np.arange(num_rows))
    assert batch.positions.shape == (num_rows, 15)
    shown = np.take_along_axis(batch.ids, batch.positions, axis=1)
    kinds = {"mask": shown == MASK, "same": shown == batch.targets}
    random = ~(kinds["mask"] | kinds["same"])
    for found, share in ((kinds["mask"], 0.8), (kinds["same"], 0.1), (random, 0.1)):
        assert binomtest(int(found.sum()), found.size, share).pvalue > 1e-4
    assert shown[random].min() >= 10
    assert len(np.unique(shown[random])) > 0.5 * random.sum()
    places = np.bincount(batch.targets.ravel() - 1000, minlength=length)
    assert chisquare(places).pvalue > 1e-4
    swapped = int(batch.order.sum())
    assert binomtest(swapped, num_rows, 0.5).pvalue > 1e-4


def test_prediction_counts_at_512_tokens_equal_fnet() -> None:
    """Rate 0.15 of 512 tokens gives 76 predictions; 4 of the 80 positions stay empty."""
    rows = np.tile(1000 + np.arange(509), (2, 1))
    assert build(509).cost.target == 76
    batch = build(509, max_predictions=80)(rows, np.full(2, 509), np.arange(2))
    assert batch.positions.shape == (2, 80)
    assert batch.target_mask.sum(1).tolist() == [76, 76]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from([END, LINE, 50, 51]), min_size=1, max_size=30), st.integers(0, 1000))
def test_the_segment_boundary_is_a_line_end_of_the_longest_document(row: list[int], sample: int) -> None:
    objective = build(30)
    rows = np.array([row + [0] * (30 - len(row))])
    draws = CounterRNG("0", "any", np.array([sample]))
    found = int(seams(rows, np.array([len(row)]), objective.vocabulary, draws)[0])
    documents: list[list[int]] = [[]]
    for place, token in enumerate(row):
        documents[-1].append(place)
        if token == END and place < len(row) - 1:
            documents.append([])
    longest = max(documents, key=len)
    inside = longest[1:]
    at_lines = [place for place in inside if row[place - 1] == LINE]
    assert found in (at_lines or inside or [len(row)])


def test_every_line_end_is_as_likely() -> None:
    row = [50, LINE, 51, 52, LINE, LINE, 53]
    seam = seams(np.tile(row, (3000, 1)), np.full(3000, 7), build(7).vocabulary, CounterRNG("0", "s", np.arange(3000)))
    counts = np.bincount(seam, minlength=7)
    assert counts[[2, 5, 6]].sum() == 3000
    assert chisquare(counts[[2, 5, 6]]).pvalue > 1e-4


def test_sentence_order_can_be_disabled() -> None:
    rows = np.tile(1000 + np.arange(20), (50, 1))
    batch = build(20, sentence_order=False)(rows, np.full(50, 20), np.arange(50))
    assert not batch.order.any()
    assert not batch.order_mask.any()


def test_shares_beyond_one_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to more than 1"):
        MaskedLMConfig(mask_share=0.95, random_share=0.1)
