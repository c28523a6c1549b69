"""Differences and compute multipliers of two arms, compared with known truths and, where possible, scipy's bootstrap."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.scaling.fit.bootstrap import draw_pair, fit_arm, fit_columns, paired_runs
from pipeline.scaling.fit.holdout import hold_out_largest
from pipeline.scaling.fit.intervals import percentile, pivotal
from pipeline.scaling.fit.multiplier import compute_multiplier, crossover, detectable_multiplier, difference, n_exponent
from pipeline.scaling.fit.points import columns


def true_multiplier(baseline: Any, arm: Any, flops: float) -> float:
    """The budget ratio at which the arm's best loss equals the baseline's, by search on a grid of budgets."""
    _, target = baseline.best(flops)
    grid = np.geomspace(flops / 3, flops * 3, 101)
    losses = np.array([arm.best(budget)[1] for budget in grid])
    return float(np.exp(np.interp(-target, -losses, np.log(grid))) / flops)


def test_a_multiplier_without_noise_equals_the_true_one(attention: Any, fourier: Any) -> None:
    arms = fit_arm("t5", attention.ladder("t5")), fit_arm("fnet_t5", fourier.ladder("fnet_t5"))
    drawn = draw_pair(*arms, np.random.default_rng(0), 50)
    expected = true_multiplier(attention, fourier, 1.75e15)
    found = compute_multiplier(*arms, drawn, 1.75e15)
    assert found.value == pytest.approx(expected, rel=1e-3)
    assert found.low == pytest.approx(expected, rel=5e-3)
    assert found.high == pytest.approx(expected, rel=5e-3)
    back = compute_multiplier(arms[1], arms[0], drawn[::-1], 1.75e15 * expected)
    assert back.value == pytest.approx(1 / expected, rel=1e-3)


def test_half_the_cost_per_token_is_half_the_compute(attention: Any) -> None:
    cheap = replace(attention, k=attention.k / 2)
    noise = 0.003 * np.random.default_rng(1).standard_normal(14)
    points = attention.ladder("t5", noise)
    arms = fit_arm("t5", points), fit_arm("cheap", [replace(point, flops=point.flops / 2) for point in points])
    found = compute_multiplier(*arms, draw_pair(*arms, np.random.default_rng(2), 300), 1.75e15)
    assert found.value == pytest.approx(cheap.k / attention.k, rel=1e-6)
    # the same runs with the same noise: paired draws have no spread
    assert found.high - found.low < 0.01


def test_shared_noise_narrows_intervals_of_differences(attention: Any, fourier: Any) -> None:
    common = 0.003 * np.random.default_rng(3).standard_normal(14)
    own = 0.0005 * np.random.default_rng(4).standard_normal((2, 14))
    arms = (
        fit_arm("t5", attention.ladder("t5", common + own[0])),
        fit_arm("fnet_t5", fourier.ladder("fnet_t5", common + own[1])),
    )
    unpaired = arms[0], replace(arms[1], places=())
    widths = []
    for pair in (arms, unpaired):
        found = difference(*pair, draw_pair(*pair, np.random.default_rng(5), 500), n_exponent)
        widths.append(found.high - found.low)
    assert widths[0] < 0.5 * widths[1]


def test_paired_resampling_equals_scipy() -> None:
    generator = np.random.default_rng(6)
    first = generator.normal(0, 1, 60)
    second = first + generator.normal(0.2, 0.3, 60)
    counts = np.random.default_rng(7).multinomial(60, np.full(60, 1 / 60), size=20_000).astype(float)
    ours = percentile(float((second - first).mean()), counts @ (second - first) / 60)
    theirs = stats.bootstrap(
        (first, second), lambda a, b, axis: (b - a).mean(axis=axis), paired=True, vectorized=True, n_resamples=20_000,
        method="percentile", rng=np.random.default_rng(8),
    )  # fmt: skip
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.004)
    basic = stats.bootstrap(
        (second - first,), np.mean, n_resamples=20_000, method="basic", rng=np.random.default_rng(9)
    ).confidence_interval
    mean = float((second - first).mean())
    around = pivotal(mean, counts @ (second - first) / 60, mean)
    assert (around.low, around.high) == pytest.approx(tuple(basic), abs=0.004)


def test_runs_are_paired_by_size_budget_and_seed(attention: Any, fourier: Any) -> None:
    arms = fit_arm("t5", attention.ladder("t5")), fit_arm("fnet_t5", fourier.ladder("fnet_t5")[:13])
    assert paired_runs(*arms).tolist() == [[number, number] for number in range(13)]


def test_paired_draws_of_fitted_arms_equal_scipy(attention: Any) -> None:
    """The exponent of 45 paired runs. The reference resamples pairs with scipy and fits each sample from scratch."""
    sizes, budgets = tuple(np.geomspace(1e6, 3e7, 9)), tuple(np.geomspace(3e14, 1e16, 5))
    generator = np.random.default_rng(10)
    both = []
    for name in ("t5", "other"):
        points = attention.ladder(name, 0.003 * generator.standard_normal(47), sizes, budgets)[:45]
        both.append(points)
    arms = [fit_arm(points[0].arm, points, delta=np.inf) for points in both]
    drawn = draw_pair(*arms, np.random.default_rng(11), 1000)
    ours = difference(*arms, drawn, n_exponent)

    def exponents_differ(chosen: np.ndarray) -> float:
        values = []
        for points in both:
            arm = fit_columns("sample", columns([points[number] for number in chosen.astype(int)]), delta=np.inf)
            values.append(float(n_exponent(arm, arm.surface.coefficients[None])[0]))
        return values[1] - values[0]

    theirs = stats.bootstrap(
        (np.arange(45),),
        exponents_differ,
        vectorized=False,
        n_resamples=300,
        method="percentile",
        rng=np.random.default_rng(12),
    )
    # 100 samples estimate a deviation within 7 %; 3.92 deviations are the width of a normal's 95 % interval
    assert np.std(theirs.bootstrap_distribution) == pytest.approx((ours.high - ours.low) / 3.92, rel=0.2)


def test_the_crossing_of_two_arms_is_found(attention: Any) -> None:
    late = replace(attention, e=1.5, a=340.0)  # worse at first, better in the end
    arms = fit_arm("t5", attention.ladder("t5")), fit_arm("late", late.ladder("late"))
    found = crossover(*arms, 1e14, 1e20)
    assert found is not None
    assert attention.best(found)[1] == pytest.approx(late.best(found)[1], rel=1e-4)
    assert crossover(*arms, 1e12, found / 2) is None


def test_the_detectable_multiplier_is_found_four_times_in_five(attention: Any) -> None:
    """80 simulated pairs of ladders with exactly this multiplier: about 80 % of the intervals exclude 1."""
    design, deviation, flops = fit_arm("t5", attention.ladder("t5"), delta=np.inf), 0.003, 1.75e15
    generator = np.random.default_rng(13)
    detectable = detectable_multiplier(design, deviation, flops, generator)
    cheaper = replace(attention, k=attention.k * detectable)
    hits = 0
    for _ in range(80):
        arms = []
        for name, truth in (("t5", attention), ("cheaper", cheaper)):
            points = truth.ladder(name, deviation * generator.standard_normal(14))
            arms.append(replace(fit_arm(name, points, delta=np.inf), places=()))
        hits += compute_multiplier(*arms, draw_pair(*arms, generator, 400), flops).high < 1
    assert hits / 80 == pytest.approx(0.8, abs=0.12)


def test_the_largest_size_is_predicted(attention: Any) -> None:
    noise = 0.002 * np.random.default_rng(14).standard_normal(14)
    held = hold_out_largest(fit_arm("t5", attention.ladder("t5", noise)), np.random.default_rng(15), 500)
    assert len(held) == 3
    for run in held:
        assert run.num_parameters == 2e7
        assert run.predicted.low < run.loss < run.predicted.high
        assert abs(run.error) < 0.03


def test_a_break_in_the_power_law_is_detected(attention: Any) -> None:
    noise = 0.002 * np.random.default_rng(16).standard_normal(14)
    noise[[3, 7, 11]] += 0.2
    held = hold_out_largest(fit_arm("t5", attention.ladder("t5", noise)), np.random.default_rng(17), 500)
    assert all(run.loss > run.predicted.high for run in held)


def test_a_hold_out_that_leaves_too_few_runs_is_refused(attention: Any) -> None:
    arm = fit_arm("t5", attention.ladder("t5")[:12])
    with pytest.raises(ValueError, match="without the largest size of t5: 9 runs are too few"):
        hold_out_largest(arm, np.random.default_rng(0))
