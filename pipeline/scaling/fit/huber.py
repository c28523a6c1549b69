"""Many small robust regressions at once: Huber's loss minimised by reweighted, damped Gauss-Newton steps.

The function is that of Chinchilla's approach 3. A whole stack of problems (starts, bootstraps) is minimised at once, and closer
to the minimum than by L-BFGS, as the valley is long and flat: `tests/pipeline/scaling/fit/test_surface.py` compares the two.

Shapes: P problems, R runs, K coefficients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.scaling.fit.points import Floats

Model = Callable[[Floats], tuple[Floats, Floats]]
"""Coefficients (P, K) → values (P, R) and their derivatives (P, R, K)."""

_RIDGE = 1e-14


class Minimum(NamedTuple):
    """The minima of P problems."""

    coefficients: Floats  # (P, K)
    objective: Floats  # (P,)
    converged: NDArray[np.bool_]  # (P,)


def huber(residuals: Floats, delta: float) -> Floats:
    """r^2 / 2 up to delta, linear beyond; infinite delta is least squares."""
    size = np.abs(residuals)
    if not np.isfinite(delta):
        return 0.5 * size**2
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def minimise(
    model: Model,
    observed: Floats,
    start: Floats,
    delta: float,
    tolerance: float = 1e-9,
    max_iterations: int = 500,
) -> Minimum:
    """Minimise sum(huber(model(coefficients) - observed)) for every problem.

    observed (P, R) or (R,); start (P, K). The sum and not the mean is minimised, and the tolerance is relative to it: with a
    mean, stopping rules stop too early (Besiroglu et al. 2024). `converged` is false if the iteration limit or a number that is
    not finite ended the search.
    """
    coefficients = start.astype(np.float64, copy=True)  # (P, K)
    num_problems, width = coefficients.shape
    observed = np.broadcast_to(observed, (num_problems, observed.shape[-1]))
    damping = np.full(num_problems, 1e-3)
    values, slopes = model(coefficients)
    residuals = values - observed
    objective = huber(residuals, delta).sum(1)
    converged = np.zeros(num_problems, dtype=bool)
    active = np.flatnonzero(np.isfinite(objective))
    for _ in range(max_iterations):
        if not len(active):
            break
        r, j = residuals[active], slopes[active]
        w = np.minimum(1.0, delta / np.maximum(np.abs(r), 1e-300))
        weighted = j * w[..., None]  # (P, R, K)
        curvature = np.matmul(np.swapaxes(j, 1, 2), weighted)  # (P, K, K)
        gradient = np.matmul(np.swapaxes(weighted, 1, 2), r[..., None])  # (P, K, 1)
        diagonal = np.einsum("pkk->pk", curvature)
        damped = curvature + (damping[active, None] * diagonal + _RIDGE)[..., None] * np.eye(width)
        tried = coefficients[active] - np.linalg.solve(damped, gradient)[..., 0]
        values, new_slopes = model(tried)
        new_residuals = values - observed[active]
        new_objective = huber(new_residuals, delta).sum(1)
        better = new_objective < objective[active]  # false where it is not a number
        gained = objective[active] - new_objective
        ended = better & (gained <= tolerance * objective[active])
        damping[active] = np.where(better, np.maximum(0.2 * damping[active], 1e-12), 5 * damping[active])
        ended |= damping[active] > 1e9  # no step, however short, is better: this is the minimum
        moved = active[better]
        coefficients[moved], residuals[moved], slopes[moved] = tried[better], new_residuals[better], new_slopes[better]
        objective[moved] = new_objective[better]
        converged[active[ended]] = True
        active = active[~ended]
    return Minimum(coefficients, objective, converged)
