"""Approaches 1 and 2, and the multiplier between isoFLOP minima: known truths, and every error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.scaling.fit.bootstrap import draw, fit_arm, paired_runs
from pipeline.scaling.fit.envelope import envelope_intervals, fit_envelope
from pipeline.scaling.fit.isoflop import Design, exponent_intervals, fit_isoflops, isoflop_design, parabolas
from pipeline.scaling.fit.overlap import overlap_multiplier
from pipeline.scaling.fit.points import Curve, columns


def design_of(name: str, points: Any) -> Design:
    return isoflop_design(name, columns(points), np.array([point.budget for point in points]))


def curves_of(truth: Any, points: Any) -> list[Curve]:
    """The loss on the surface at 60 steps of every run."""
    curves = []
    for point in points:
        tokens = point.tokens * np.geomspace(1 / 50, 1, 60)
        shift = point.loss / truth.loss(np.array(point.num_parameters), np.array(point.tokens))
        losses = shift * truth.loss(np.full(60, point.num_parameters), tokens)
        curves.append(
            Curve(num_parameters=point.num_parameters, tokens=tokens, flops=point.flops * tokens / point.tokens, loss=losses)
        )
    return curves


def test_true_parabolas_are_recovered(attention: Any) -> None:
    points = []
    for point in attention.ladder("t5"):
        optimum = 0.5 * np.log(point.budget) - 2.0
        points.append(replace(point, loss=np.exp(1.0 + 0.02 * (np.log(point.num_parameters) - optimum) ** 2)))
    found = fit_isoflops("t5", design_of("t5", points))
    assert found.log_n[0] == pytest.approx(0.5 * np.log(found.budgets) - 2.0, abs=1e-6)
    assert found.log_loss[0] == pytest.approx(np.ones(3), abs=1e-9)
    assert found.curvature[0] == pytest.approx(0.04 * np.ones(3), abs=1e-9)
    assert found.n_exponent[0] == pytest.approx(0.5, abs=1e-6)
    assert found.d_exponent[0] == pytest.approx(0.5, abs=1e-4)


def test_narrow_centred_sizes_find_the_true_optimum(attention: Any) -> None:
    points = []
    for budget in (5e14, 5e15):
        size, _ = attention.best(budget)
        sizes = tuple(size * np.array([0.8, 0.93, 1.07, 1.25]))
        points += attention.ladder("t5", sizes=sizes, budgets=(budget,))[:4]
    found = fit_isoflops("t5", design_of("t5", points))
    for number, budget in enumerate((5e14, 5e15)):
        assert np.exp(found.log_n[0, number]) == pytest.approx(attention.best(budget)[0], rel=0.01)


def test_the_bias_of_wide_fixed_sizes_is_removed(attention: Any) -> None:
    """Without noise the exponent of the parabolas is wrong by 0.019, and the interval shrinks to the true exponent."""
    sizes = tuple(np.geomspace(3e5, 9e7, 4))
    points = attention.ladder("t5", sizes=sizes)
    arm, design = fit_arm("t5", points), design_of("t5", points)
    truth = attention.beta / (attention.alpha + attention.beta)
    found = fit_isoflops("t5", design)
    assert abs(found.n_exponent[0] - truth) > 0.015
    of_n, of_d = exponent_intervals(arm, found, design, draw(arm, np.random.default_rng(0), 50))
    assert (of_n.low, of_n.high) == pytest.approx((truth, truth), abs=3e-3)
    assert (of_d.low, of_d.high) == pytest.approx((1 - truth, 1 - truth), abs=3e-3)


def test_under_four_sizes_in_a_budget_are_refused(attention: Any) -> None:
    with pytest.raises(ValueError, match=r"arm t5 has 3 sizes at 5e\+14 FLOPs, less than 4: train more sizes there"):
        design_of("t5", attention.ladder("t5")[1:])


def test_one_budget_is_refused(attention: Any) -> None:
    with pytest.raises(ValueError, match="has one budget only"):
        design_of("t5", attention.ladder("t5", budgets=(1e15,)))


@pytest.mark.parametrize(("sizes", "side"), [((1e5, 2e5, 4e5, 8e5), "larger"), ((3e7, 6e7, 1e8, 2e8), "smaller")])
def test_an_optimum_at_the_edge_is_refused(attention: Any, sizes: tuple[float, ...], side: str) -> None:
    with pytest.raises(ValueError, match=rf"is at the edge of its sizes .*: add a {side} one"):
        fit_isoflops("t5", design_of("t5", attention.ladder("t5", sizes=sizes)))


def test_noise_that_drives_optima_to_the_edge_is_refused(attention: Any) -> None:
    points = attention.ladder("t5")
    arm, design = fit_arm("t5", points), design_of("t5", points)
    quiet = draw(arm, np.random.default_rng(1), 200)
    drawn = replace(quiet, log_losses=quiet.log_losses + 0.03 * np.random.default_rng(2).standard_normal((200, 14)))
    with pytest.raises(ValueError, match=r"of the bootstraps of arm t5's isoFLOP minima failed, over 5%"):
        exponent_intervals(arm, parabolas(design, np.log(design.runs.loss)[None]), design, drawn)


def test_the_distance_between_lines_of_minima_is_the_true_one(attention: Any) -> None:
    cheap = replace(attention, k=0.8 * attention.k)
    noise = 1e-5 * np.random.default_rng(3).standard_normal((2, 14))
    points = attention.ladder("t5", noise[0]), cheap.ladder("cheap", noise[1])
    arms = [fit_arm(part[0].arm, part) for part in points]
    found = overlap_multiplier(
        ("t5", "cheap"),
        (design_of("t5", points[0]), design_of("cheap", points[1])),
        paired_runs(*arms),
        np.random.default_rng(4),
        100,
    )
    assert found.value == pytest.approx(0.8, rel=0.01)
    assert found.low <= found.value <= found.high


def test_lines_without_common_losses_are_refused(attention: Any) -> None:
    points = attention.ladder("t5")
    worse = [replace(point, loss=2 * point.loss) for point in points]
    with pytest.raises(ValueError, match="less than a third of their range in common: add budgets"):
        overlap_multiplier(
            ("t5", "worse"),
            (design_of("t5", points), design_of("worse", worse)),
            np.empty((0, 2), dtype=np.int64),
            np.random.default_rng(0),
        )


def test_too_few_residuals_to_estimate_the_noise_are_refused(attention: Any) -> None:
    sizes = (1e6, 2.7e6, 7.3e6, 20e6)
    points = attention.ladder("t5", sizes=sizes)[:12]
    thin = [replace(point, budget=point.budget) for point in points]
    design = design_of("t5", thin)
    fewer = Design(design.runs.take(np.arange(9)), design.cost, tuple(np.arange(3) + 3 * k for k in range(3)))
    with pytest.raises(ValueError, match="9 runs and 9 constants of parabolas leave no residuals"):
        overlap_multiplier(("t5", "t5"), (design, fewer), np.empty((0, 2), dtype=np.int64), np.random.default_rng(0))


def test_an_envelope_of_many_sizes_finds_the_exponent(attention: Any) -> None:
    points = attention.ladder("t5", sizes=tuple(np.geomspace(2e5, 8e7, 40)), budgets=(6e15,))
    found = fit_envelope(curves_of(attention, points))
    truth = attention.beta / (attention.alpha + attention.beta)
    assert found.n_exponent == pytest.approx(truth, abs=0.01)
    assert found.n_exponent + found.d_exponent == pytest.approx(1, abs=1e-3)
    middle = len(found.flops) // 2
    size, loss = attention.best(float(found.flops[middle]))
    assert found.num_parameters[middle] == pytest.approx(size, rel=0.1)
    assert found.loss[middle] == pytest.approx(loss, rel=1e-3)


def test_the_bias_of_an_envelope_of_four_sizes_is_removed(attention: Any) -> None:
    noise = 0.0005 * np.random.default_rng(5).standard_normal(14)
    points = attention.ladder("t5", noise)
    curves = curves_of(attention, points)
    truth = attention.beta / (attention.alpha + attention.beta)
    assert abs(fit_envelope(curves).n_exponent - truth) > 0.03
    of_n, of_d = envelope_intervals(fit_arm("t5", points), curves, np.random.default_rng(6), 200)
    assert of_n.low < truth < of_n.high
    assert of_d.low < 1 - truth < of_d.high
    assert of_n.high - of_n.low < 0.05


def test_an_envelope_of_three_sizes_is_refused(attention: Any) -> None:
    points = attention.ladder("t5", sizes=(1e6, 3e6, 1e7))
    with pytest.raises(ValueError, match="3 sizes, less than 4"):
        fit_envelope(curves_of(attention, points))


def test_an_envelope_of_only_the_smallest_and_largest_size_is_refused(attention: Any) -> None:
    points = attention.ladder("t5", sizes=(1e7, 2e7, 4e7, 8e7), budgets=(1e12, 2e12, 4e12))
    with pytest.raises(ValueError, match="smallest and largest sizes are best at all budgets"):
        fit_envelope(curves_of(attention, points))
