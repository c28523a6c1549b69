"""Multipliers by compute against grid searches and constructed ladders; errors against formulas and simulation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.scaling.fit.joint.by_compute import covered, difference_estimate, multiplier_band, multiplier_estimate
from pipeline.scaling.fit.joint.clusters import estimate, gradient
from pipeline.scaling.fit.joint.surfaces import fit_jointly, joint_places
from pipeline.scaling.fit.points import Point


def pair(attention: Any, other: Any, noise: float = 0.0, seed: int = 0) -> list[Point]:
    drawn = noise * np.random.default_rng(seed).standard_normal((2, 14))
    return [*attention.ladder("t5", drawn[0]), *other.ladder("fnet_t5", drawn[1])]


def test_the_band_equals_a_grid_search(attention: Any, fourier: Any) -> None:
    band = multiplier_band(fit_jointly(joint_places(pair(attention, fourier))), (0, 1))
    for at in (0, 8, 16):
        _, target = attention.best(band.flops[at])
        grid = band.flops[at] * np.geomspace(0.94, 1.06, 6)
        losses = np.array([fourier.best(budget)[1] for budget in grid])
        expected = float(np.exp(np.interp(-target, -losses, np.log(grid)))) / band.flops[at]
        assert band.value[at] == pytest.approx(expected, rel=2e-3)
    assert band.arm_flops == pytest.approx(band.flops * band.value)


def test_a_multiplier_that_is_the_same_everywhere_is_found_with_any_cost(attention: Any) -> None:
    """The arm has at every size and compute the baseline's loss at compute / 0.7, and costs a token k N^1.1: more at large
    sizes."""
    costly = replace(attention, k=0.9, q=1.1)
    arm = []
    for point in costly.ladder("fnet_t5"):
        tokens = attention.tokens(np.array(float(point.num_parameters)), point.flops / 0.7)
        arm.append(replace(point, loss=float(attention.loss(np.array(float(point.num_parameters)), tokens))))
    band = multiplier_band(fit_jointly(joint_places([*attention.ladder("t5"), *arm])), (0, 1))
    assert band.value == pytest.approx(np.full(17, 0.7), rel=0.01)
    without = multiplier_band(fit_jointly(joint_places([*attention.ladder("t5"), *arm]), with_kappa=False), (0, 1))
    assert np.abs(without.value - 0.7).max() > 0.02


def test_both_directions_agree_and_say_what_they_do_not_cover(attention: Any) -> None:
    cheap = replace(attention, k=attention.k / 2)
    points = pair(attention, cheap)
    fit = fit_jointly(joint_places(points))
    ours, back = multiplier_band(fit, (0, 1)), multiplier_band(fit, (1, 0))
    assert ours.value == pytest.approx(np.full(17, 0.5), rel=0.005)
    assert np.interp(ours.arm_flops, back.flops, back.value) == pytest.approx(2.0, rel=0.005)
    low, high = min(point.flops for point in points), max(point.flops for point in points)
    # t5's smallest budget is worth half of it to the arm, which has not been trained with so little
    assert [(one.arm, one.reason) for one in ours.not_covered] == [
        ("t5", "fnet_t5 reaches these losses below its smallest budget"),
        ("fnet_t5", "t5 does not reach these losses within its largest budget"),
    ]
    assert (ours.not_covered[0].low, ours.not_covered[0].high) == pytest.approx((low, 2 * low), rel=0.02)
    assert (ours.not_covered[1].low, ours.not_covered[1].high) == pytest.approx((high / 2, high), rel=0.02)
    assert (ours.flops[0], ours.flops[-1]) == pytest.approx((2 * low, high), rel=0.02)


def test_arms_without_a_common_loss_are_refused(attention: Any) -> None:
    fit = fit_jointly(joint_places(pair(attention, replace(attention, a=attention.a / 4, b=attention.b / 4))))
    with pytest.raises(ValueError, match="no loss in common: fnet_t5 at its smallest budget is better than t5 at its largest"):
        covered(fit, (0, 1))
    with pytest.raises(ValueError, match="no loss in common: fnet_t5 at its smallest budget is better than t5 at its largest"):
        multiplier_band(fit, (1, 0))


def test_an_optimum_beyond_the_sizes_is_told(attention: Any, fourier: Any) -> None:
    points = pair(attention, fourier)
    assert multiplier_band(fit_jointly(joint_places(points)), (0, 1)).beyond_sizes == ()
    smallest = [point for point in points if point.num_parameters < 8e6 or point.arm == "fnet_t5"]
    best = attention.best(6e15)[0]
    assert best > 7.3e6
    assert multiplier_band(fit_jointly(joint_places(smallest)), (0, 1)).beyond_sizes == ("t5",)


def test_errors_with_one_place_a_cluster_are_hc2(attention: Any, fourier: Any) -> None:
    """MacKinnon and White's HC2: the sum of w^2 e^2 / (1 - h)."""
    places = joint_places(pair(attention, fourier, 0.003))
    alone = replace(places, sizes=tuple(f"place {number}" for number in range(len(places.sizes))))
    fit = fit_jointly(alone)
    found = estimate(fit, lambda coefficients: coefficients[:, -1:])
    rows = np.concatenate([fit.slopes, fit.model.hold])
    inverse = np.linalg.inv(rows.T @ rows)
    weights = inverse[-1] @ fit.slopes.T
    leverage = np.einsum("rk,kl,rl->r", fit.slopes, inverse, fit.slopes)
    assert found.error[0] == pytest.approx(np.sqrt((weights**2 * fit.residuals**2 / (1 - leverage)).sum()), rel=1e-6)
    assert found.influence[0] == pytest.approx(weights, rel=1e-5, abs=1e-6)


def test_the_variance_is_unbiased_for_independent_errors(attention: Any, fourier: Any) -> None:
    """Bell and McCaffrey's property: for errors of variance 1 the expected variance is the sum of w^2."""
    places = joint_places(pair(attention, fourier, 0.003))
    fit = fit_jointly(places)

    def statistic(coefficients: Any) -> Any:
        return coefficients[:, -2:]

    number = len(places.sizes)
    root = np.linalg.pinv(np.concatenate([fit.slopes, fit.model.hold]))[:, :number]
    weights, left = gradient(fit, statistic) @ root, np.eye(number) - fit.slopes @ root
    generator, variances = np.random.default_rng(3), []
    for _ in range(1000):
        drawn = replace(fit, residuals=left @ generator.standard_normal(number))
        variances.append(estimate(drawn, statistic).error ** 2)
    assert np.mean(variances, axis=0) == pytest.approx((weights**2).sum(1), rel=0.15)


def test_the_influence_of_a_place_is_what_a_new_fit_shows(attention: Any, fourier: Any) -> None:
    places = joint_places(pair(attention, fourier, 0.003))
    fit = fit_jointly(places)
    log_c, _ = covered(fit, (0, 1))
    found = multiplier_estimate(fit, (0, 1), log_c[-1:])
    for place in (0, 5, 20):
        losses = places.runs.loss.copy()
        losses[place] *= np.exp(1e-4)
        moved = fit_jointly(replace(places, runs=replace(places.runs, loss=losses)))
        change = multiplier_estimate(moved, (0, 1), log_c[-1:]).value[0] - found.value[0]
        assert change / 1e-4 == pytest.approx(found.influence[0, place], abs=0.05 * np.abs(found.influence).max())


def test_the_difference_of_losses_is_that_of_the_surfaces(attention: Any, fourier: Any) -> None:
    fit = fit_jointly(joint_places(pair(attention, fourier)))
    log_c, found = difference_estimate(fit, (0, 1))
    flops = float(np.exp(log_c))
    assert flops == pytest.approx(6e15)
    assert found.value[0] == pytest.approx(np.log(fourier.best(flops)[1] / attention.best(flops)[1]), abs=2e-4)
    width = found.half_width()[0]
    assert width == pytest.approx(stats.t.ppf(0.975, found.dof[0]) * found.error[0])
