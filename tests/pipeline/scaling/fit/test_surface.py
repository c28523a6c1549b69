"""Approach 3 compared with Epoch AI's replication of Chinchilla, with scipy's L-BFGS-B, and with known surfaces."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import optimize, special

from pipeline.scaling.fit.bootstrap import FittedArm, SurfaceDraws, fit_columns, interval, refit
from pipeline.scaling.fit.frontier import CostLaw, frontier
from pipeline.scaling.fit.points import Columns, columns
from pipeline.scaling.fit.surface import fit_many, fit_surface, is_sound

# Besiroglu et al. 2024 (arXiv:2404.10102) and the outputs of epoch-research/analyzing-chinchilla, data_analysis.ipynb:
# constant, standard error, 95 % interval
PUBLISHED = {
    "A": (482.01, 124.52, 285, 744),
    "B": (2085.43, 1293.28, 1042, 5810),
    "E": (1.8169, 0.0257, 1.769, 1.871),
    "alpha": (0.3478, 0.0154, 0.317, 0.373),
    "beta": (0.3658, 0.0206, 0.331, 0.415),
}
PUBLISHED_EXPONENT = (0.513, 0.020)
SIX_N_D = CostLaw(float(np.log(6.0)), 1.0)
"""Their C = 6 N D."""


@pytest.fixture(scope="module")
def chinchilla(test_data: Path) -> Columns:
    """240 of the 245 points, without the five highest losses, as published."""
    with (test_data / "chinchilla" / "svg_extracted_data.csv").open() as file:
        rows = list(csv.DictReader(file))
    rows.sort(key=lambda row: float(row["loss"]))
    size, flops, loss = (np.array([float(row[name]) for row in rows[:-5]]) for name in ("Model Size", "Training FLOP", "loss"))
    return Columns(num_parameters=size, tokens=flops / (6 * size), flops=flops, loss=loss)


def objective_by_scipy(coefficients: np.ndarray, runs: Columns) -> float:
    """Approach 3's objective, computed with scipy only."""
    log_a, log_b, log_e, alpha, beta = coefficients
    terms = [log_a - alpha * np.log(runs.num_parameters), log_b - beta * np.log(runs.tokens), np.full(len(runs), log_e)]
    return float(special.huber(1e-3, special.logsumexp(terms, axis=0) - np.log(runs.loss)).sum())


def test_the_published_constants_are_reproduced(chinchilla: Columns) -> None:
    found = fit_surface(chinchilla)
    for name, (value, error, *_) in PUBLISHED.items():
        assert abs(found.constants[name] - value) < 0.1 * error, name
    # four digits of E, three of the exponents; A and B are strongly correlated with alpha and beta
    assert found.constants["E"] == pytest.approx(1.8169, abs=4e-4)
    assert found.constants["alpha"] == pytest.approx(0.3478, abs=6e-4)
    assert found.constants["beta"] == pytest.approx(0.3658, abs=1.5e-3)
    exponent = frontier(found.coefficients[None], SIX_N_D).n_exponent[0]
    assert exponent == pytest.approx(PUBLISHED_EXPONENT[0], abs=1e-3)


def test_the_published_constants_are_no_better_a_fit(chinchilla: Columns) -> None:
    published = np.array([*np.log([PUBLISHED[name][0] for name in ("A", "B", "E")]), 0.3478, 0.3658])
    polished = optimize.minimize(
        objective_by_scipy, published, args=(chinchilla,), method="L-BFGS-B", options={"maxfun": 100_000}
    )
    found = fit_surface(chinchilla)
    assert found.objective == pytest.approx(objective_by_scipy(found.coefficients, chinchilla), rel=1e-9)
    assert found.objective <= polished.fun
    assert found.objective == pytest.approx(polished.fun, rel=2e-4)
    assert found.starts_agreeing > 0.8


def resampled(arm: FittedArm, generator: np.random.Generator, num_draws: int) -> SurfaceDraws:
    """Surfaces fitted to samples of the runs with replacement, as in the replication; each fit starts at the arm's surface."""
    numbers = np.arange(len(arm.runs))
    counts = generator.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=num_draws)
    samples = [arm.runs.take(np.repeat(numbers, count)) for count in counts]
    start = arm.surface.coefficients[None]
    fits = [fit_many(sample, np.log(sample.loss), start, arm.delta) for sample in samples]
    losses = np.log([sample.loss for sample in samples])
    return SurfaceDraws(
        losses, np.concatenate([fit.coefficients for fit in fits]), np.concatenate([is_sound(fit) for fit in fits])
    )


def test_the_published_standard_errors_and_intervals_are_reproduced(chinchilla: Columns) -> None:
    arm = fit_columns("chinchilla", chinchilla)
    drawn = resampled(arm, np.random.default_rng(0), 2000)
    values = np.concatenate([np.exp(drawn.coefficients[:, :3]), drawn.coefficients[:, 3:]], axis=1)[drawn.sound]
    for number, name in enumerate(PUBLISHED):
        _, error, low, high = PUBLISHED[name]
        # the far tails of A and B have few draws
        assert np.std(values[:, number]) == pytest.approx(error, rel=0.15 if name in "AB" else 0.08), name
        bounds = interval(arm, drawn, lambda c, n=number: np.exp(c[:, n]) if n < 3 else c[:, n])
        assert abs(bounds.low - low) < 0.35 * error, name
        assert abs(bounds.high - high) < 0.35 * error, name
    exponents = frontier(drawn.coefficients[drawn.sound], SIX_N_D).n_exponent
    assert np.std(exponents) == pytest.approx(PUBLISHED_EXPONENT[1], rel=0.08)


def test_bootstraps_from_one_start_reach_the_minimum_of_many_starts(chinchilla: Columns) -> None:
    arm = fit_columns("chinchilla", chinchilla)
    for chosen in np.random.default_rng(1).integers(len(chinchilla), size=(20, len(chinchilla))):
        sample = chinchilla.take(chosen)
        once = fit_many(sample, np.log(sample.loss), arm.surface.coefficients[None], 1e-3)
        assert once.objective[0] == pytest.approx(fit_surface(sample).objective, rel=1e-5)


def test_a_surface_without_noise_is_recovered(attention: Any) -> None:
    found = fit_surface(columns(attention.ladder("t5"))).constants
    expected = {"A": attention.a, "B": attention.b, "E": attention.e, "alpha": attention.alpha, "beta": attention.beta}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-3), name


def test_one_outlier_moves_huber_less_than_least_squares(attention: Any) -> None:
    noise = np.zeros(14)
    noise[5] = 0.3
    runs = columns(attention.ladder("t5", noise))
    robust, squares = fit_surface(runs).constants, fit_surface(runs, delta=np.inf).constants
    assert abs(robust["alpha"] - attention.alpha) < 0.1 * abs(squares["alpha"] - attention.alpha)


def test_too_few_runs_are_refused(attention: Any) -> None:
    runs = columns(attention.ladder("t5"))
    with pytest.raises(ValueError, match=r"9 runs are too few .* train at least 10"):
        fit_surface(runs.take(np.arange(len(runs)) < 9))


def test_too_few_sizes_are_refused(attention: Any) -> None:
    runs = columns(attention.ladder("t5", sizes=(1e6, 3e6), budgets=(1e14, 2e14, 4e14, 8e14, 2e15)))
    with pytest.raises(ValueError, match="less than 3 different sizes"):
        fit_surface(runs)


def test_losses_that_rise_with_size_and_data_are_refused(attention: Any) -> None:
    runs = columns(attention.ladder("t5"))
    rising = Columns(
        num_parameters=runs.num_parameters,
        tokens=runs.tokens,
        flops=runs.flops,
        loss=1 + 1e-3 * runs.num_parameters**0.1 * runs.tokens**0.2,
    )
    with pytest.raises(ValueError, match="widen sizes and budgets"):
        fit_surface(rising)


def test_more_failed_bootstraps_than_one_in_twenty_are_refused(attention: Any) -> None:
    arm = fit_columns("t5", columns(attention.ladder("t5")))
    wild = np.random.default_rng(0).normal(1.0, 1.0, (100, 14))
    with pytest.raises(ValueError, match=r"of the bootstraps of arm t5's loss surface failed, over 5%: .* add sizes"):
        refit(arm, wild)
