"""UL2 and custom mixtures: shares, mode tokens, and parts that behave in the mixture as they do alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import chisquare

from pipeline.objectives.catalogue import MixtureConfig, ObjectiveField
from pipeline.objectives.interface import Batch
from pipeline.objectives.mixture import Mixture
from pipeline.objectives.ul2 import UL2Config
from pipeline.objectives.vocabulary import Vocabulary

MODES = {"[NLU]": 901, "[NLG]": 902, "[S2S]": 903}
VOCABULARY = Vocabulary(start=0, end=1, sentinels=tuple(range(899, 600, -1)), named=MODES)


def build(config: UL2Config | MixtureConfig, encoder_length: int, decoder_length: int) -> Mixture:
    length = config.row_length(encoder_length, decoder_length)
    built = config.build(length, encoder_length, decoder_length, VOCABULARY, "0")
    assert isinstance(built, Mixture)
    return built


def test_ul2_has_seven_denoisers_each_with_its_rate_and_mode(distinct_rows: Callable[[int, int], np.ndarray]) -> None:
    objective = build(UL2Config(), 512, 512)
    assert objective.row_length == 568 - 1  # span corruption at 15 % with spans of 3, minus the mode token
    num_rows = 3500
    samples = np.arange(num_rows)
    batch = objective(distinct_rows(num_rows, objective.row_length), np.full(num_rows, objective.row_length), samples)
    drawn = objective.part_of(samples)
    assert chisquare(np.bincount(drawn, minlength=7)).pvalue > 1e-4
    # (mean span, rate) in the order of the paper's table; the last one predicts a quarter of the row
    denoisers = [(3, 0.15, 901), (8, 0.15, 901), (3, 0.5, 902), (8, 0.5, 902), (64, 0.15, 902), (64, 0.5, 902)]
    for number, (mean, rate, mode) in enumerate(denoisers):
        chosen = drawn == number
        assert (batch.encoder_ids[chosen, 0] == mode).all()
        written = (batch.targets[chosen] >= 1000).sum(1)
        assert (written == round(rate * objective.row_length)).all()
        num_sentinels = ((batch.targets[chosen] > 600) & (batch.targets[chosen] < 900)).sum(1)
        assert (num_sentinels == max(1, round(written[0] / mean))).all()
    chosen = drawn == 6
    assert (batch.encoder_ids[chosen, 0] == 903).all()
    assert (batch.target_mask[chosen].sum(1) == round(0.25 * objective.row_length)).all()


def test_prefix_weight_six_gives_prefix_lm_half_of_all_samples() -> None:
    objective = build(UL2Config(prefix_weight=6), 128, 128)
    share = (objective.part_of(np.arange(10_000)) == 6).mean()
    assert share == pytest.approx(0.5, abs=0.02)


def test_a_part_gives_the_same_rows_in_a_mixture_as_alone(distinct_rows: Callable[[int, int], np.ndarray]) -> None:
    spec = {
        "name": "mixture",
        "parts": [
            {"weight": 1, "objective": "span_corruption", "mode_token": "[NLG]"},
            {"weight": 2, "objective": {"name": "prefix_lm", "target_share": 0.5}},
        ],
    }
    config = ObjectiveField.model_validate({"objective": spec}).objective
    assert isinstance(config, MixtureConfig)
    objective = build(config, 64, 40)
    assert objective.row_length == 69
    samples = np.arange(600)
    rows, lengths = distinct_rows(600, 69), np.full(600, 69)
    mixed, drawn = objective(rows, lengths, samples), objective.part_of(samples)
    assert (drawn == 0).mean() == pytest.approx(1 / 3, abs=0.06)
    for number, part in enumerate(objective.parts):
        alone = part.objective(rows, lengths, samples)
        assert isinstance(alone, Batch)
        chosen, first = drawn == number, int(part.mode_id is not None)
        assert np.array_equal(mixed.encoder_ids[chosen, first:], alone.encoder_ids[chosen])
        assert np.array_equal(mixed.targets[chosen], alone.targets[chosen])
        assert first == 0 or (mixed.encoder_ids[chosen, 0] == part.mode_id).all()
