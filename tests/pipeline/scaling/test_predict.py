"""Predictions from ladders with a known surface: the optimum is found by grid search, not by the closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.scaling.fit.points import Point
from pipeline.scaling.ladder.ladder import make_ladder
from pipeline.scaling.predict import Asked, predict, predict_from_assumed
from tests.pipeline.scaling.conftest import Truth
from tests.pipeline.scaling.ladder.test_extend import recipe

NOISE = 0.002


@pytest.fixture
def points(attention: Truth) -> list[Point]:
    return attention.ladder("t5", NOISE * np.random.default_rng(5).standard_normal(14))


def test_a_budget_gives_the_best_size_and_its_loss(attention: Truth, points: list[Point]) -> None:
    flops = 2e15
    size, loss = attention.best(flops)
    found = predict("t5", points, Asked(flops=flops))
    assert found.loss.low < loss < found.loss.high
    assert found.loss.high / found.loss.low < 1.01
    assert found.num_parameters.value == pytest.approx(size, rel=0.05)  # how often intervals hold is measured in test_coverage
    assert found.num_parameters.low < found.num_parameters.value < found.num_parameters.high
    assert found.tokens.value == pytest.approx(float(attention.tokens(np.array(size), flops)), rel=0.05)
    assert found.flops.value == pytest.approx(flops)
    assert found.outside == ()


def test_a_size_or_a_text_gives_the_budget_of_which_it_is_the_best(points: list[Point]) -> None:
    found = predict("t5", points, Asked(flops=2e15))
    for asked in (Asked(num_parameters=found.num_parameters.value), Asked(tokens=found.tokens.value)):
        back = predict("t5", points, asked)
        assert back.flops.value == pytest.approx(2e15, rel=1e-6)
        assert back.loss.value == pytest.approx(found.loss.value, rel=1e-9)


def test_two_given_values_determine_the_third(attention: Truth, points: list[Point]) -> None:
    n, d = 5e6, 3e8
    expected = float(attention.loss(np.array(n), np.array(d)))
    for asked in (
        Asked(num_parameters=n, tokens=d),
        Asked(flops=6.6 * n * d, num_parameters=n),
        Asked(flops=6.6 * n * d, tokens=d),
    ):
        found = predict("t5", points, asked)
        assert found.loss.value == pytest.approx(expected, rel=0.01)
        assert (found.num_parameters.value, found.tokens.value) == (pytest.approx(n, rel=0.02), pytest.approx(d, rel=0.02))
        assert found.flops.value == pytest.approx(6.6 * n * d, rel=0.02)


def test_what_lies_outside_of_the_runs_is_named_and_bad_requests_are_refused(points: list[Point]) -> None:
    found = predict("t5", points, Asked(flops=1e18))
    assert any(part.startswith("FLOPs 1e+18 of 5e+14 to 6e+15") for part in found.outside)
    with pytest.raises(ValueError, match="give one or two of --flops, --params and --tokens"):
        predict("t5", points, Asked())
    with pytest.raises(ValueError, match="are too few for the 5 constants"):
        predict("t5", points[:9], Asked(flops=1e15))


def test_a_recipe_predicts_from_what_it_assumes() -> None:
    assumed = {"A": 69, "B": 240, "E": 1.0, "alpha": 0.35, "beta": 0.37, "deviation": 0.004, "source": "a guess"}
    sizes = {
        f"d{width}": {"micro_batch_size": 4, "model": {"d_model": width, "d_ff": 64, "d_kv": 16, "num_heads": width // 16}}
        for width in (32, 64)
    }
    for size in sizes.values():
        size["model"] |= {"num_encoder_layers": 3, "num_decoder_layers": 2}  # type: ignore[operator]
    ladder = make_ladder(
        recipe(
            sizes=sizes, assumed=assumed, learning_rate={"values": [1e-3, 2e-3, 4e-3], "sizes": ["d32", "d64"], "budget": 2e9}
        )
    )
    found = predict_from_assumed(ladder, Asked(num_parameters=1e5, tokens=1e6))
    assert found.loss.value == pytest.approx(1.0 + 69 / 1e5**0.35 + 240 / 1e6**0.37)
    assert found.loss.low == found.loss.high
    run = ladder.run("t5-d32-seed0")
    at = predict_from_assumed(ladder, Asked(num_parameters=run.num_parameters, tokens=run.ends[0].tokens))
    assert math.isclose(at.flops.value, run.ends[0].flops, rel_tol=1e-6)
    with pytest.raises(ValueError, match="the recipe assumes no loss surface"):
        predict_from_assumed(make_ladder(recipe()), Asked(flops=1e12))
