"""Closed forms of the compute-optimal frontier compared with a grid search over a million sizes, and Chinchilla's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.scaling.fit.frontier import CostLaw, fit_cost, frontier
from pipeline.scaling.fit.points import columns

SIX_N_D = CostLaw(float(np.log(6.0)), 1.0)
"""Chinchilla's C = 6 N D."""


def coefficients(truth: Any) -> np.ndarray:
    return np.array([[np.log(truth.a), np.log(truth.b), np.log(truth.e), truth.alpha, truth.beta]])


@pytest.mark.parametrize("flops", [1e14, 1e16, 1e18])
def test_the_optimum_equals_grid_search(fourier: Any, flops: float) -> None:
    size, loss = fourier.best(flops)
    found = frontier(coefficients(fourier), fourier.cost)
    assert np.exp(found.log_n(np.log(flops)))[0] == pytest.approx(size, rel=1e-3)
    assert found.loss(np.log(flops))[0] == pytest.approx(loss, rel=1e-9)
    assert np.exp(found.log_compute(np.array([loss])))[0] == pytest.approx(flops, rel=1e-6)


def test_size_and_token_exponents_sum_to_one(fourier: Any) -> None:
    found = frontier(coefficients(fourier), fourier.cost)
    assert fourier.q * found.n_exponent[0] + found.d_exponent[0] == pytest.approx(1)


def test_chinchillas_exponent() -> None:
    """Approach 3 of Hoffmann et al. 2022 gives 0.46; its unrounded constants as Besiroglu et al. 2024 found them."""
    published = np.array([[6.00734, 6.01792, 0.52672, 0.33917, 0.28491]])
    assert frontier(published, SIX_N_D).n_exponent[0] == pytest.approx(0.46, abs=0.005)


def test_a_loss_below_the_irreducible_loss_is_never_reached(attention: Any) -> None:
    found = frontier(coefficients(attention), attention.cost)
    assert found.log_compute(np.array([attention.e]))[0] == np.inf


def test_the_cost_of_a_token_is_recovered(fourier: Any) -> None:
    found = fit_cost(columns(fourier.ladder("fnet_t5")))
    assert np.exp(found.log_k) == pytest.approx(fourier.k, rel=1e-4)
    assert found.q == pytest.approx(fourier.q, abs=1e-5)
    assert found.worst < 1e-5


def test_one_size_has_no_cost_law(attention: Any) -> None:
    runs = columns(attention.ladder("t5"))
    with pytest.raises(ValueError, match="at least two sizes"):
        fit_cost(runs.take(runs.num_parameters == 1e6))
