"""Chinchilla's approach 1: the lower envelope of all loss curves over compute, and power laws through the runs on it.

Hoffmann et al. 2022 (arXiv:2203.15556), section 3.1. Curves are read at 1,500 budgets, evenly spaced in log C; at each, the
run with the lowest loss gives N_opt and D_opt. No form of the loss is assumed, but N_opt can only be one of the trained sizes.
While a run's learning rate has not decayed, its loss is higher than the same model would reach with that budget: use runs with
a schedule for every length, or constant learning rates with decayed branches.

Shapes: S runs, G budgets, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.scaling.fit.bootstrap import FittedArm
from pipeline.scaling.fit.frontier import frontier
from pipeline.scaling.fit.intervals import NUM_DRAWS, Interval, check_failures, pivotal
from pipeline.scaling.fit.points import Curve, Floats
from pipeline.scaling.fit.surface import log_loss

NUM_BUDGETS = 1500
_FEWEST_SIZES = 4


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """The lowest curve at each budget at which it belongs neither to the smallest nor to the largest size: (G',)."""

    flops: Floats
    loss: Floats
    num_parameters: Floats
    tokens: Floats
    n_exponent: float
    d_exponent: float


def fit_envelope(curves: Sequence[Curve]) -> Envelope:
    """Fit the envelope. Raises ValueError for less than 4 sizes, or if less than two inner sizes are best somewhere."""
    grid, log_l, log_d, sizes = _on_grid(curves)
    inside, log_n, log_tokens = _lowest(log_l, log_d, np.log(sizes))
    slopes = _slopes(grid, inside, log_n, log_tokens)
    if not np.isfinite(slopes).all():
        raise ValueError(
            "the smallest and largest sizes are best at all budgets: a slope needs two others with the lowest loss somewhere; "
            "add sizes, or train the small ones longer"
        )
    flops, loss, best_n, best_d = (np.exp(values[inside]) for values in (grid, log_l.min(axis=0), log_n, log_tokens))
    return Envelope(
        flops=flops, loss=loss, num_parameters=best_n, tokens=best_d, n_exponent=float(slopes[0]), d_exponent=float(slopes[1])
    )


def envelope_intervals(
    arm: FittedArm, curves: Sequence[Curve], generator: np.random.Generator, num_draws: int = NUM_DRAWS
) -> tuple[Interval, Interval]:
    """95 % intervals of the exponents of N_opt and D_opt, from curves drawn around the arm's surface.

    With few sizes the exponent of an envelope is far too small or too large, whatever the noise. On the surface the true one
    is known, so this bias is subtracted as in approach 2. That needs curves whose losses lie on the surface at every step, as
    those of decayed branches. Each curve is shifted as a whole by noise like that of the arm. Raises ValueError if over 5 % of
    the draws have no slope.
    """
    found = fit_envelope(curves)
    grid, log_l, log_d, sizes = _on_grid(curves)
    log_n = np.log(sizes)
    on_surface = np.stack(
        [log_loss(arm.surface.coefficients[None], size, line)[0] for size, line in zip(log_n, log_d, strict=True)]
    )
    on_surface[np.isinf(log_l)] = np.inf
    scale = np.sqrt((arm.noise**2).sum() / generator.chisquare(arm.dof, num_draws))
    shifts = scale[:, None] * generator.standard_normal((num_draws, len(sizes)))
    exponents = np.stack([_slopes(grid, *_lowest(on_surface + shift[:, None], log_d, log_n)) for shift in shifts], axis=1)
    sound = np.logical_and(*np.isfinite(exponents))
    check_failures(sound, f"arm {arm.name}'s envelope")
    truth = frontier(arm.surface.coefficients[None], arm.cost)
    return (
        pivotal(found.n_exponent, exponents[0, sound], float(truth.n_exponent[0])),
        pivotal(found.d_exponent, exponents[1, sound], float(truth.d_exponent[0])),
    )


def _on_grid(curves: Sequence[Curve]) -> tuple[Floats, Floats, Floats, Floats]:
    """log C (G,), log losses (S, G; infinite outside a run), log tokens (S, G), sizes (S,)."""
    sizes = np.array([curve.num_parameters for curve in curves], dtype=np.float64)
    if len(np.unique(sizes)) < _FEWEST_SIZES:
        raise ValueError(f"an envelope of {len(np.unique(sizes))} sizes, less than {_FEWEST_SIZES}: train more sizes")
    first = min(curve.flops[0] for curve in curves)
    last = max(curve.flops[-1] for curve in curves)
    grid = np.linspace(np.log(first), np.log(last), NUM_BUDGETS)
    log_l, log_d = np.empty((len(curves), len(grid))), np.empty((len(curves), len(grid)))
    for number, curve in enumerate(curves):
        log_l[number] = np.interp(grid, np.log(curve.flops), np.log(curve.loss), left=np.inf, right=np.inf)
        log_d[number] = np.interp(grid, np.log(curve.flops), np.log(curve.tokens))
    return grid, log_l, log_d, sizes


def _lowest(log_l: Floats, log_d: Floats, log_n: Floats) -> tuple[NDArray[np.bool_], Floats, Floats]:
    """At each budget: whether a size between the extremes is lowest there, its log N and its log D, all (G,)."""
    best = log_l.argmin(axis=0)
    winner = log_n[best]
    budgets = np.arange(len(best))
    inside = np.isfinite(log_l[best, budgets]) & (winner > log_n.min()) & (winner < log_n.max())
    return inside, winner, log_d[best, budgets]


def _slopes(grid: Floats, inside: NDArray[np.bool_], log_n: Floats, log_d: Floats) -> Floats:
    """Least-squares slopes of N_opt and D_opt over these budgets, (2,); NaN if one size is lowest at all of them."""
    if len(np.unique(log_n[inside])) < 2:
        return np.full(2, np.nan)
    centred = grid[inside] - grid[inside].mean()
    return np.array([centred @ log_n[inside], centred @ log_d[inside]]) / (centred @ centred)
