"""Simulated ladders have the multiplier and the noise that they are said to have, and intervals hold the multiplier."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.scaling.fit.joint.by_compute import multiplier_band
from pipeline.scaling.fit.joint.simulated import (
    MEASURED,
    LadderNoise,
    PlannedResult,
    draw_ladder_noise,
    expected_losses,
    predicted_interval,
    simulated_places,
)
from pipeline.scaling.fit.joint.surfaces import fit_jointly
from tests.helpers.scripts import load_script

NOTHING = LadderNoise(size=0, slope=0, place=0, plateau=0, end=0)


def results_of(attention: Any, fourier: Any) -> list[PlannedResult]:
    return [
        PlannedResult(
            arm=point.arm,
            size=point.size,
            budget=point.budget,
            seed=point.seed,
            num_parameters=point.num_parameters,
            tokens=point.tokens,
            flops=point.flops,
        )
        for truth, arm in ((attention, "t5"), (fourier, "fnet_t5"))
        for point in truth.ladder(arm)
    ]


def coefficients(truth: Any) -> np.ndarray:
    return np.array([*np.log([truth.a, truth.b, truth.e]), truth.alpha, truth.beta])


def test_losses_have_the_multiplier_everywhere(attention: Any, fourier: Any) -> None:
    results = results_of(attention, fourier)
    log_losses = expected_losses(results, "t5", coefficients(attention), 0.7)
    for one, found in zip(results, log_losses, strict=True):
        compute = one.flops if one.arm == "t5" else one.flops / 0.7
        n = np.array(one.num_parameters)
        assert np.exp(found) == pytest.approx(float(attention.loss(n, attention.tokens(n, compute))), rel=1e-5)
    band = multiplier_band(fit_jointly(simulated_places(results, log_losses)), (0, 1))
    assert band.value == pytest.approx(np.full(17, 0.7), rel=0.005)


@pytest.mark.parametrize("part", ["size", "slope", "place", "plateau", "end"])
def test_noise_has_its_parts(attention: Any, fourier: Any, part: str) -> None:
    results = results_of(attention, fourier)
    drawn = draw_ladder_noise(results, replace(NOTHING, **{part: 0.01}), 4000, np.random.default_rng(0))
    correlation = np.corrcoef(drawn.T + 1e-12 * np.random.default_rng(1).standard_normal(drawn.T.shape))
    keys = {
        "size": ("arm", "size"),
        "slope": ("arm", "size"),
        "place": ("arm", "size", "budget"),
        "plateau": ("arm", "size", "seed"),
        "end": ("arm", "size", "budget", "seed"),
    }[part]
    middle = float(np.exp(np.mean(np.log([5e14, 1.75e15, 6e15]))))
    for row, first in enumerate(results):
        doublings = abs(np.log2(first.budget / middle)) if part == "slope" else 1.0
        assert drawn[:, row].std() == pytest.approx(0.01 * doublings, rel=0.06, abs=1e-9)
        for column, second in enumerate(results[:row]):
            same = all(getattr(first, key) == getattr(second, key) for key in keys)
            if part != "slope":
                assert correlation[row, column] == pytest.approx(float(same), abs=0.08)


def test_a_predicted_interval_narrows_with_less_noise(attention: Any, fourier: Any) -> None:
    results = results_of(attention, fourier)
    measured = predicted_interval(results, coefficients(attention), num_ladders=12)
    seeds = predicted_interval(results, coefficients(attention), noise=MEASURED.seeds_alone(), num_ladders=12)
    assert seeds.half_width < 0.5 * measured.half_width
    assert seeds.low < 0.7 < seeds.high
    assert seeds.low * seeds.high == pytest.approx(0.49)
    assert 0.01 < seeds.half_width < 0.2


def test_a_design_that_says_nothing_is_refused(attention: Any, fourier: Any) -> None:
    results = results_of(attention, fourier)
    with pytest.raises(ValueError, match="4 of 4 simulated ladders give no multiplier: fnet_t5 and t5 have no loss in common"):
        predicted_interval(results, coefficients(attention), multiplier=0.01, num_ladders=4)
    one_size = [one for one in results if one.num_parameters < 2e6]
    with pytest.raises(ValueError, match="at least two sizes"):
        predicted_interval(one_size, coefficients(attention), num_ladders=4)


@pytest.mark.slow
def test_intervals_hold_the_true_multiplier() -> None:
    """100 ladders of the shipped design cpu-smoke, with noise and lack of fit as measured. Takes half a minute."""
    benchmark = load_script("benchmarks/ladder_coverage.py")
    drawn = benchmark.ladders("cpu-smoke", MEASURED, 100)
    held, refused, width = benchmark.measure(drawn, benchmark.chosen)
    assert 90 <= held <= 98
    assert refused == 0
    assert width < 0.25
