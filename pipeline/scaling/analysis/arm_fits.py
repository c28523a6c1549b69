"""Approaches 1 to 3 of one arm by itself, and the prediction of its largest size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from pipeline.scaling.analysis.outcome import ArmFit, Band, EnvelopeFit, MinimaFit, Refused, SurfaceFit, attempt
from pipeline.scaling.fit.bootstrap import FittedArm, SurfaceDraws, draw, interval
from pipeline.scaling.fit.envelope import envelope_intervals, fit_envelope
from pipeline.scaling.fit.frontier import frontier
from pipeline.scaling.fit.holdout import hold_out_largest
from pipeline.scaling.fit.intervals import Interval
from pipeline.scaling.fit.isoflop import Design, exponent_intervals, fit_isoflops, isoflop_design
from pipeline.scaling.fit.points import Curve, Floats, Point, columns

_SEED = 0
_BAND = 33
_CONSTANTS = ("A", "B", "E", "alpha", "beta")


def generator() -> np.random.Generator:
    """The same random numbers for every fit."""
    return np.random.default_rng(_SEED)


def fit_all(name: str, arm: FittedArm | Refused, points: Sequence[Point], num_draws: int) -> ArmFit:
    """All fits of one arm by itself."""
    if isinstance(arm, Refused):
        return ArmFit(arm=name, num_runs=len(points), surface=arm, minima=arm, envelope=arm, held_out=arm)
    draws = attempt(lambda: draw(arm, generator(), num_draws))
    if isinstance(draws, Refused):
        return ArmFit(arm=name, num_runs=len(points), surface=draws, minima=draws, envelope=draws, held_out=draws)
    return ArmFit(
        arm=name,
        num_runs=len(points),
        surface=_surface(arm, draws, points),
        minima=attempt(lambda: _minima(arm, draws, points)),
        envelope=attempt(lambda: _envelope(arm, points, num_draws)),
        held_out=attempt(lambda: hold_out_largest(arm, generator(), num_draws)),
    )


def _surface(arm: FittedArm, draws: SurfaceDraws, points: Sequence[Point]) -> SurfaceFit:
    def exponents(which: str) -> Interval:
        return interval(arm, draws, lambda coefficients: getattr(frontier(coefficients, arm.cost), which))

    def constant(number: int) -> Interval:
        found = interval(arm, draws, lambda coefficients: coefficients[:, number])
        return found.exp() if number < 3 else found

    grid = np.linspace(math.log(arm.runs.flops.min()), math.log(arm.runs.flops.max()), _BAND)

    def band(value: Callable[..., Floats]) -> Band:
        found = [interval(arm, draws, partial(value, at=at)) for at in grid.tolist()]
        low, high = np.array([one.low for one in found]), np.array([one.high for one in found])
        return Band(flops=np.exp(grid), value=np.array([one.value for one in found]), low=low, high=high)

    def tokens(coefficients: Floats, at: float) -> Floats:
        return np.exp(arm.cost.log_tokens(at, frontier(coefficients, arm.cost).log_n(at)))

    return SurfaceFit(
        constants={name: constant(number) for number, name in enumerate(_CONSTANTS)},
        n_exponent=exponents("n_exponent"),
        d_exponent=exponents("d_exponent"),
        deviation=arm.deviation,
        objective=arm.surface.objective,
        starts_agreeing=arm.surface.starts_agreeing,
        cost_error=arm.cost.worst,
        residuals=tuple(
            (point.run, float(np.expm1(-residual)))
            for point, residual in zip(points, arm.surface.residuals.tolist(), strict=True)
        ),
        best_size=band(lambda coefficients, at: np.exp(frontier(coefficients, arm.cost).log_n(at))),
        best_tokens=band(tokens),
        best_loss=band(lambda coefficients, at: frontier(coefficients, arm.cost).loss(at)),
    )


def _minima(arm: FittedArm, draws: SurfaceDraws, points: Sequence[Point]) -> MinimaFit:
    design = design_of(arm, points)
    found = fit_isoflops(arm.name, design)
    n, d = exponent_intervals(arm, found, design, draws)
    return MinimaFit(
        budgets=tuple(found.budgets.tolist()),
        sizes=tuple(np.exp(found.log_n[0]).tolist()),
        tokens=tuple(np.exp(found.log_d[0]).tolist()),
        losses=tuple(np.exp(found.log_loss[0]).tolist()),
        curvatures=tuple(found.curvature[0].tolist()),
        n_exponent=n,
        d_exponent=d,
    )


def design_of(arm: FittedArm, points: Sequence[Point]) -> Design:
    """The places of an arm's runs by planned budget."""
    return isoflop_design(arm.name, arm.runs, np.array([point.budget for point in points]))


def _envelope(arm: FittedArm, points: Sequence[Point], num_draws: int) -> EnvelopeFit:
    """Over curves of decayed ends: the loss of a size at each budget. Losses on a plateau are higher than decayed ones."""
    ends = _end_curves(points)
    fit_envelope(ends)
    return EnvelopeFit(*envelope_intervals(arm, ends, generator(), num_draws))


def _end_curves(points: Sequence[Point]) -> list[Curve]:
    curves = []
    for size in dict.fromkeys(point.size for point in points):
        chosen = sorted((point for point in points if point.size == size and point.seed == 0), key=lambda one: one.flops)
        runs = columns(chosen)
        curves.append(Curve(num_parameters=chosen[0].num_parameters, tokens=runs.tokens, flops=runs.flops, loss=runs.loss))
    return curves
