"""The noise floor, the smallest detectable difference of a design, and drawn noise, compared with scipy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.scaling.fit.noise import detectable_shift, draw_noise, draw_paired_noise, noise_floor, smallest_difference


def test_the_noise_floor_is_the_pooled_deviation_of_seeds(attention: Any) -> None:
    generator = np.random.default_rng(0)
    points = attention.ladder("t5", 0.01 * generator.standard_normal(14))
    more = [replace(point, seed=seed, loss=point.loss * 1.01**seed) for point in points[:1] for seed in (5, 6)]
    groups = [[points[5], points[12], points[13]], [points[0], *more]]
    logs = [np.log([point.loss for point in group]) for group in groups]
    mean_square = (2 * logs[0].var(ddof=1) + 2 * logs[1].var(ddof=1)) / 4
    found = noise_floor([*points, *more])
    assert found.dof == 4
    assert found.deviation == pytest.approx(np.sqrt(mean_square))
    low, high = np.sqrt(4 * mean_square / stats.chi2.isf([0.025, 0.975], 4))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_a_noise_floor_needs_repeated_seeds(attention: Any) -> None:
    with pytest.raises(ValueError, match="train one with 3 seeds"):
        noise_floor(attention.ladder("t5")[:12])


def test_the_smallest_difference_is_found_four_times_in_five_by_scipys_test() -> None:
    generator, seeds = np.random.default_rng(1), 4
    shift = smallest_difference(0.01, seeds, dof=2 * seeds - 2)
    first, second = 0.01 * generator.standard_normal((2, 20_000, seeds))
    found = stats.ttest_ind(first, second + shift, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_common_noise_lowers_the_detectable_difference_of_a_paired_design() -> None:
    generator, seeds, correlation = np.random.default_rng(2), 5, 0.7
    shift = smallest_difference(0.01, seeds, dof=seeds - 1, correlation=correlation)
    covariance = 1e-4 * np.array([[1, correlation], [correlation, 1]])
    both = generator.multivariate_normal([0, shift], covariance, (20_000, seeds))
    assert (stats.ttest_rel(both[..., 0], both[..., 1], axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)


def test_known_noise_gives_the_textbook_formula() -> None:
    assert smallest_difference(1.0, 2) == pytest.approx(stats.norm.isf(0.025) + stats.norm.isf(0.2))


def test_the_detectable_shift_of_normal_draws_is_2_8_deviations() -> None:
    draws = np.random.default_rng(3).normal(7, 2, 200_000)
    assert detectable_shift(draws, np.inf) == pytest.approx(2 * 2.8016, rel=0.01)


def test_percentiles_of_a_mean_of_drawn_noise_equal_students_interval() -> None:
    sample = np.random.default_rng(4).normal(3, 2, 8)
    residuals = sample - sample.mean()
    means = sample.mean() + draw_noise(residuals, 1, 200_000, np.random.default_rng(5)).mean(axis=1)
    expected = stats.t.interval(0.95, 7, sample.mean(), stats.sem(sample))
    assert np.quantile(means, [0.025, 0.975]) == pytest.approx(expected, abs=0.02)


def test_percentiles_of_paired_differences_equal_scipys_paired_interval() -> None:
    generator = np.random.default_rng(6)
    common = generator.normal(0, 2, 10)
    first, second = common + generator.normal(0, 1, 10), 1 + common + generator.normal(0, 1, 10)
    pairs = np.stack([np.arange(10)] * 2, axis=1)
    noise = draw_paired_noise((first - first.mean(), second - second.mean()), pairs, 1, 200_000, generator)
    differences = (noise[1] - noise[0]).mean(axis=1) + (second - first).mean()
    expected = stats.ttest_rel(second, first).confidence_interval(0.95)
    assert np.quantile(differences, [0.025, 0.975]) == pytest.approx((expected.low, expected.high), abs=0.03)


def test_pairs_in_another_order_share_their_noise() -> None:
    generator = np.random.default_rng(7)
    first = generator.normal(0, 1, 20)
    order = generator.permutation(20)
    pairs = np.stack([order, np.arange(20)], axis=1)
    drawn = draw_paired_noise((first, first[order] + generator.normal(0, 0.01, 20)), pairs, 5, 500, generator)
    assert np.corrcoef(drawn[0][:, order].ravel(), drawn[1].ravel())[0, 1] > 0.99


def test_few_pairs_are_taken_as_independent() -> None:
    generator = np.random.default_rng(8)
    residuals = generator.normal(0, 1, 14)
    drawn = draw_paired_noise((residuals, residuals), np.stack([np.arange(7)] * 2, axis=1), 5, 20_000, generator)
    assert abs(np.corrcoef(drawn[0][:, 0], drawn[1][:, 0])[0, 1]) < 0.03
