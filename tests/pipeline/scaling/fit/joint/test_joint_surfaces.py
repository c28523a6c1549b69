"""The joint fit against scipy's optimizer, known surfaces, and the first ladder's published numbers."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import least_squares

from pipeline.scaling.fit.frontier import fit_cost, frontier
from pipeline.scaling.fit.joint.by_compute import multiplier_band
from pipeline.scaling.fit.joint.leave_out import without_each_size
from pipeline.scaling.fit.joint.sharing import choose_sharing, sharing_test
from pipeline.scaling.fit.joint.surfaces import CONSTANTS, JointModel, Places, fit_jointly, joint_places, too_few
from pipeline.scaling.fit.points import Point

CPU_SMOKE = Path(__file__).parents[5] / "docs/reports/cpu-smoke/runs.csv"


@pytest.fixture(scope="module")
def first_ladder() -> list[Point]:
    """t5 and fnet_t5 of the first ladder: 38 results."""
    with CPU_SMOKE.open() as file:
        rows = [row for row in csv.DictReader(file) if row["arm"] in ("t5", "fnet_t5")]
    return [
        Point(
            run=row["run"],
            arm=row["arm"],
            size=row["size"],
            budget=float(row["budget"]),
            seed=int(row["seed"]),
            num_parameters=int(row["parameters"]),
            tokens=float(row["raw_tokens"]),
            flops=float(row["flops"]),
            loss=float(row["measure"]),
            seconds=1.0,
            measure="bits per byte",
            data="one",
            tokenizer="one",
            epochs=0.1,
        )
        for row in rows
    ]


def every_run(points: list[Point]) -> Places:
    """Each run an observation of its own, as in a fit that does not average seeds."""
    return joint_places([replace(point, budget=point.budget + point.seed) for point in points])


def closed_form_multiplier(fit: Any, points: list[Point], flops: float) -> float:
    """With the power law of costs, as of a surface of each arm by itself."""
    lines = []
    for number in (0, 1):
        cost = fit_cost(fit.model.places.runs.take(fit.model.places.arm == number))
        lines.append(frontier(fit.model.of_arm(fit.coefficients[None], number)[:, :5], cost))
    return float(np.exp(lines[1].log_compute(lines[0].loss(np.log(flops))) - np.log(flops))[0])


def test_the_joint_fit_of_the_first_ladder_gives_the_figures_of_its_review(first_ladder: list[Point]) -> None:
    """A review of the ladder by another program: 0.594 with E, alpha and beta shared."""
    fit = fit_jointly(every_run(first_ladder), with_kappa=False)
    assert fit.model.num_coefficients == 7
    assert closed_form_multiplier(fit, first_ladder, 8e12) == pytest.approx(0.594, abs=0.001)
    # seeds averaged, and the exact costs of each size in place of a power law
    band = multiplier_band(fit_jointly(joint_places(first_ladder)), (0, 1))
    assert band.at_largest.value == pytest.approx(0.587, abs=0.002)
    assert band.at_largest.low < 0.53
    assert band.at_largest.high > 0.66


def test_sharing_is_not_refused_on_the_first_ladder(first_ladder: list[Point]) -> None:
    found = choose_sharing(joint_places(first_ladder))
    assert found.shared == CONSTANTS
    (test,) = found.tests
    assert test.dof == (3, 30 - 11)
    assert not test.is_refused


def test_each_size_can_be_left_out(first_ladder: list[Point]) -> None:
    fit = fit_jointly(joint_places(first_ladder))
    found = without_each_size(fit, (0, 1), np.log(8e12))
    assert [one.size for one in found] == ["d24", "d32", "d48", "d64", "d96"]
    rest = fit_jointly(joint_places([point for point in first_ladder if point.size != "d64"]))
    band = multiplier_band(rest, (0, 1))
    assert found[3].multiplier is not None
    assert found[3].multiplier.value == pytest.approx(band.at_largest.value, rel=0.02)
    assert all(one.multiplier is not None and 0.4 < one.multiplier.value < 0.7 for one in found)


def test_the_minimum_is_that_of_scipy(first_ladder: list[Point]) -> None:
    places = joint_places(first_ladder)
    fit = fit_jointly(places, ("E", "beta"))
    n, d, y, arm = np.log(places.runs.num_parameters), np.log(places.runs.tokens), places.log_loss, places.arm
    cost = np.log(places.runs.flops) - d
    of_t5, of_hybrid = (dict(zip(n[arm == one], cost[arm == one], strict=True)) for one in (0, 1))
    sizes = np.array(sorted(of_t5))
    slope, level = np.polyfit(n[arm == 0], cost[arm == 0], 1)
    besides = [np.mean(cost[n == size]) - slope * size - level for size in sizes]  # of the power law, interpolated

    def ratio(size: float) -> float:
        return of_hybrid[size] - (slope * size + level + np.interp(size, sizes, besides))

    mean = np.mean([ratio(size) for size in of_hybrid])
    ratios = np.array([ratio(size) - mean if one else 0.0 for size, one in zip(n, arm, strict=True)])

    def errors(c: Any) -> Any:
        of_data = c[2:4][arm] - c[8] * ratios - c[7] * d
        surface = np.exp(c[4]) + np.exp(c[:2][arm] - c[5:7][arm] * n) + np.exp(of_data)
        return np.append(np.log(surface) - y, [0.0015 * (c[4] - np.log(0.5) - y.min()), 0.0015 * c[8]])

    assert np.allclose(errors(fit.coefficients)[:-2], -fit.residuals, atol=1e-4)
    start = fit.coefficients + 0.05 * np.random.default_rng(0).standard_normal(9)
    found = least_squares(errors, start, x_scale="jac", ftol=1e-14, xtol=1e-14, gtol=1e-14, max_nfev=5000)
    assert (errors(fit.coefficients) ** 2).sum() <= 2 * found.cost * (1 + 1e-6)
    assert np.abs(errors(found.x) - errors(fit.coefficients)).max() < 2e-4


def test_slopes_are_the_derivatives(first_ladder: list[Point]) -> None:
    model = JointModel(places=joint_places(first_ladder), shared=frozenset(["alpha"]))
    fit = fit_jointly(model.places, model.shared)
    step = 1e-6
    for number in range(model.num_coefficients):
        moved = np.stack([fit.coefficients, fit.coefficients])
        moved[:, number] += [step, -step]
        values = model.values_and_slopes(moved)[0]
        assert np.allclose((values[0] - values[1]) / (2 * step), fit.slopes[:, number], atol=1e-7)


def test_surfaces_without_noise_are_recovered(attention: Any, fourier: Any) -> None:
    fit = fit_jointly(joint_places([*attention.ladder("t5"), *fourier.ladder("fnet_t5")]))
    assert np.abs(fit.residuals).max() < 1e-5
    for number, truth in enumerate((attention, fourier)):
        a, b, e, alpha, beta, kappa = fit.model.of_arm(fit.coefficients[None], number)[0]
        assert np.exp([a, b, e]) == pytest.approx([truth.a, truth.b, truth.e], rel=0.02)
        assert [alpha, beta, kappa] == pytest.approx([truth.alpha, truth.beta, 0], abs=0.002)


def test_seeds_of_a_place_are_one_observation(attention: Any, fourier: Any) -> None:
    points = [*attention.ladder("t5"), *fourier.ladder("fnet_t5")]
    places = joint_places(points)
    assert len(places.seeds) == 24
    assert sorted(len(seeds) for seeds in places.seeds)[-2:] == [3, 3]
    several = next(number for number, seeds in enumerate(places.seeds) if len(seeds) == 3)
    losses = [point.loss for point in points if point.run in places.seeds[several]]
    assert places.runs.loss[several] == pytest.approx(np.prod(losses) ** (1 / 3))


def test_different_exponents_are_not_shared(attention: Any, fourier: Any) -> None:
    other = replace(fourier, beta=0.45, b=4500)
    noise = 0.0005 * np.random.default_rng(1).standard_normal((2, 14))
    places = joint_places([*attention.ladder("t5", noise[0]), *other.ladder("fnet_t5", noise[1])])
    found = choose_sharing(places)
    assert "beta" not in found.shared
    assert found.tests[0].shared == CONSTANTS
    assert found.tests[0].is_refused
    assert found.tests[0].p < 0.001


def test_equal_constants_are_refused_as_often_as_the_level_says(attention: Any, fourier: Any) -> None:
    generator, values = np.random.default_rng(2), []
    for _ in range(40):
        noise = 0.003 * generator.standard_normal((2, 14))
        places = joint_places([*attention.ladder("t5", noise[0]), *fourier.ladder("fnet_t5", noise[1])])
        restricted = fit_jointly(places)
        test = sharing_test(restricted, fit_jointly(places, (), start=restricted))
        values.append((test.p, test.p_clusters))
    for p in np.array(values).T:
        assert (p < 0.05).sum() <= 7  # 2 are expected; 8 or more have a probability of 0.1 %
        assert 0.3 < p.mean() < 0.7


def test_arms_with_few_runs_are_named(attention: Any) -> None:
    points = attention.ladder("t5")
    assert too_few(points) is None
    assert "9 runs" in str(too_few(points[:9]))
    assert "2 sizes" in str(too_few([point for point in points if point.num_parameters < 5e6] * 2))
