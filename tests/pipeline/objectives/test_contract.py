"""The contract of every objective: constant shapes, counts known in advance, rows independent of the rest of the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.objectives.catalogue import ObjectiveField, build_objective
from pipeline.objectives.interface import Batch, Objective
from pipeline.objectives.vocabulary import Vocabulary

ENCODER_LENGTH = 64
HALF_AND_HALF = {
    "name": "mixture",
    "parts": [
        {"objective": "span_corruption", "mode_token": "[NLU]"},
        {"weight": 3, "objective": {"name": "prefix_lm", "target_share": 0.5}},
    ],
}
WITH_DRAWN_PREFIXES = {
    "name": "mixture",
    "parts": [{"objective": {"name": "prefix_lm", "prefix_lengths": [16, 32, 64]}}, {"objective": "span_corruption"}],
}
SPECS: dict[str, tuple[Any, str]] = {
    "prefix_lm": ("prefix_lm", "fnet_t5"),
    "prefix_lm_drawn": ({"name": "prefix_lm", "prefix_lengths": [16, 32, 64]}, "t5"),
    "prefix_lm_share": ({"name": "prefix_lm", "target_share": 0.3}, "t5"),
    "prefix_lm_text": ("prefix_lm", "gpt2"),
    "causal_lm": ("causal_lm", "gpt2"),
    "span_corruption": ("span_corruption", "fnet_t5"),
    "infilling": ({"name": "span_corruption", "num_spans": 2, "ends_with_span": False}, "t5"),
    "infilling_text": ({"name": "span_corruption", "num_spans": 1, "ends_with_span": False}, "gpt2"),
    "span_corruption_text": ("span_corruption", "prefix_decoder"),
    "text_infilling": ("text_infilling", "t5"),
    "ul2": ("ul2", "t5"),
    "masked_lm": ("masked_lm", "fnet"),
    "mixture": (HALF_AND_HALF, "t5"),
    "mixture_drawn": (WITH_DRAWN_PREFIXES, "t5"),
}


def make(name: str, vocabulary: Vocabulary, seed: str = "0") -> Objective:
    spec, architecture = SPECS[name]
    config = ObjectiveField.model_validate({"objective": spec}).objective
    return build_objective(
        config,
        architecture=architecture,
        encoder_length=ENCODER_LENGTH,
        decoder_length=config.default_decoder_length(ENCODER_LENGTH),
        vocabulary=vocabulary,
        seed=seed,
    )


def random_rows(
    objective: Objective, lengths: list[int], vocabulary: Vocabulary, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of text ids with document ends between them, padded with 0."""
    rng = np.random.default_rng(seed)
    row_lengths = np.minimum(np.array(lengths, dtype=np.int64), objective.row_length)
    rows = rng.choice(vocabulary.ordinary, (len(lengths), objective.row_length))
    rows[rng.random(rows.shape) < 0.03] = vocabulary.end
    rows[np.arange(objective.row_length) >= row_lengths[:, None]] = 0
    return rows, row_lengths


def arrays(batch: Any) -> list[np.ndarray]:
    return [*batch.inputs, *(array for loss in batch.losses for array in loss)]


@pytest.mark.parametrize("name", SPECS)
@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=9), st.integers(0, 2**40))
def test_a_row_does_not_depend_on_its_batch(name: str, vocabulary: Vocabulary, lengths: list[int], first: int) -> None:
    objective = make(name, vocabulary)
    rows, row_lengths = random_rows(objective, lengths, vocabulary)
    samples = first + 3 * np.arange(len(lengths))
    before = rows.copy()
    together = arrays(objective(rows, row_lengths, samples))
    assert np.array_equal(rows, before)
    for row in range(len(lengths)):
        alone = arrays(objective(rows[row : row + 1], row_lengths[row : row + 1], samples[row : row + 1]))
        for ours, theirs in zip(together, alone, strict=True):
            assert ours.dtype == np.int64
            assert ours.shape[1:] == theirs.shape[1:]
            assert np.array_equal(ours[row], theirs[0])


@pytest.mark.parametrize("name", SPECS)
@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=9))
def test_target_counts_are_known_without_reading_rows(name: str, vocabulary: Vocabulary, lengths: list[int]) -> None:
    objective = make(name, vocabulary)
    rows, row_lengths = random_rows(objective, lengths, vocabulary)
    samples = 1000 + 7 * np.arange(len(lengths))
    batch = objective(rows, row_lengths, samples)
    (targets, mask), *others = batch.losses
    assert np.array_equal(mask.sum(1), objective.num_targets(row_lengths, samples))
    assert objective.loss_counts(row_lengths, samples) == (int(mask.sum()), *(int(other.sum()) for _, other in others))
    assert not targets[mask == 0].any()
    assert (mask.sum(1)[row_lengths == 0] == 0).all()
    assert not batch.inputs[0][batch.inputs[1] == 0].any()
    if isinstance(batch, Batch):
        assert (batch.decoder_ids[:, 0] == vocabulary.start).all()
        assert np.array_equal(batch.decoder_ids[:, 1:], batch.targets[:, :-1])


@pytest.mark.parametrize("name", SPECS)
def test_a_full_row_has_the_stated_cost(name: str, vocabulary: Vocabulary) -> None:
    objective = make(name, vocabulary)
    rows, row_lengths = random_rows(objective, [10_000] * 3000, vocabulary)
    batch = objective(rows, row_lengths, np.arange(3000))
    cost = objective.cost
    assert cost.raw == objective.row_length == rows.shape[1]
    widths = {"Batch": (0, 2), "TextBatch": (None, 0), "EncoderBatch": (0, None)}[type(batch).__name__]
    found = [0 if place is None else batch.inputs[place].shape[1] for place in widths]
    assert found == [cost.encoder, cost.decoder]
    spent = batch.losses[0][1].sum(1)
    assert abs(spent.mean() - cost.target) <= 4 * spent.std() / np.sqrt(len(spent))
    assert cost.per_raw() == (cost.encoder / cost.raw, cost.decoder / cost.raw, cost.target / cost.raw)


@pytest.mark.parametrize("name", [name for name in SPECS if name not in ("prefix_lm", "prefix_lm_text", "causal_lm")])
def test_seeds_and_samples_give_different_draws(name: str, vocabulary: Vocabulary) -> None:
    rows, row_lengths = random_rows(make(name, vocabulary), [10_000] * 8, vocabulary)
    if name == "prefix_lm_share":
        return  # a constant split
    texts = [
        make(name, vocabulary, seed)(rows, row_lengths, first + np.arange(8)).inputs[0].tobytes()
        for seed, first in (("0", 0), ("1", 0), ("0", 8))
    ]
    assert len(set(texts)) == 3


@pytest.mark.parametrize(
    ("spec", "architecture", "message"),
    [
        ("causal_lm", "fnet_t5", "causal_lm cannot train model.architecture fnet_t5"),
        ("masked_lm", "gpt2", "masked_lm cannot train model.architecture gpt2"),
        ("span_corruption", "bert", "take masked_lm"),
        ({"name": "prefix_lm", "prefix_lengths": [401]}, "t5", "more than data.encoder_length 400"),
        ({"name": "prefix_lm", "prefix_lengths": [1, 400]}, "t5", "raise data.decoder_length above 399"),
        ({"name": "span_corruption", "mean_span_length": 1, "noise_density": 0.4}, "t5", "needs 160 sentinels a row"),
        ({"name": "mixture", "parts": [{"objective": "prefix_lm", "mode_token": "[WHAT]"}]}, "t5", r"needs the token \[WHAT\]"),
        ({"name": "mixture", "parts": [{"objective": "prefix_lm"}, {"objective": "text_infilling"}]}, "t5", "cannot cut rows"),
    ],
)
def test_impossible_settings_are_refused(spec: Any, architecture: str, message: str, vocabulary: Vocabulary) -> None:
    config = ObjectiveField.model_validate({"objective": spec}).objective
    with pytest.raises(ValueError, match=message):
        build_objective(
            config, architecture=architecture, encoder_length=400, decoder_length=399, vocabulary=vocabulary, seed="0"
        )


@pytest.mark.parametrize("spec", ["span_corruption", "text_infilling", "masked_lm", "ul2"])
def test_a_tokenizer_without_sentinels_is_refused(spec: str) -> None:
    config = ObjectiveField.model_validate({"objective": spec}).objective
    with pytest.raises(ValueError, match="fnet-t5 tokenizer train"):
        config.build(30, 64, 64, Vocabulary(start=0, end=1), "0")
