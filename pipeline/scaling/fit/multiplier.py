"""Comparison of two arms: differences of fitted quantities, and the compute multiplier.

The multiplier of an arm at a budget C of the baseline is the compute that the arm needs for the baseline's loss, divided by C,
both at their best size. Below 1 the arm is cheaper.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.scaling.fit.bootstrap import FittedArm, SurfaceDraws, expected, refit
from pipeline.scaling.fit.frontier import frontier
from pipeline.scaling.fit.intervals import NUM_DRAWS, Interval, percentile
from pipeline.scaling.fit.noise import detectable_shift
from pipeline.scaling.fit.points import Floats


def difference(
    baseline: FittedArm,
    arm: FittedArm,
    draws: tuple[SurfaceDraws, SurfaceDraws],
    statistic: Callable[[FittedArm, Floats], Floats],
) -> Interval:
    """arm - baseline, with a 95 % interval from paired draws. `statistic(arm, coefficients (P, 5))` → (P,)."""
    value = statistic(arm, arm.surface.coefficients[None]) - statistic(baseline, baseline.surface.coefficients[None])
    of_baseline, of_arm = _sound(draws)
    return percentile(float(value[0]), statistic(arm, of_arm) - statistic(baseline, of_baseline))


def n_exponent(arm: FittedArm, coefficients: Floats) -> Floats:
    """a of N_opt ~ C^a; for `difference`."""
    return frontier(coefficients, arm.cost).n_exponent


def compute_multiplier(baseline: FittedArm, arm: FittedArm, draws: tuple[SurfaceDraws, SurfaceDraws], flops: float) -> Interval:
    """From the fitted surfaces, at a budget of the baseline. The upper bound is infinite if the loss may be out of reach."""
    of_baseline, of_arm = _sound(draws)
    value = _log_multiplier(baseline, arm, baseline.surface.coefficients[None], arm.surface.coefficients[None], flops)
    return percentile(float(value[0]), _log_multiplier(baseline, arm, of_baseline, of_arm, flops)).exp()


def crossover(baseline: FittedArm, arm: FittedArm, low: float, high: float) -> float | None:
    """The budget in FLOPs between `low` and `high` at which the arms' best losses are equal; None if one is better throughout.

    If the fitted frontiers meet twice, it is the first one. Outside of the trained budgets this is an extrapolation.
    """
    grid = np.linspace(math.log(low), math.log(high), 513)
    ours = frontier(arm.surface.coefficients[None], arm.cost).loss(grid)
    theirs = frontier(baseline.surface.coefficients[None], baseline.cost).loss(grid)
    lead = ours - theirs
    changes = np.flatnonzero(np.sign(lead[:-1]) != np.sign(lead[1:]))
    if not len(changes):
        return None
    first = int(changes[0])
    share = lead[first] / (lead[first] - lead[first + 1])
    return float(np.exp(grid[first] + share * (grid[first + 1] - grid[first])))


def detectable_multiplier(
    design: FittedArm, deviation: float, flops: float, generator: np.random.Generator, num_draws: int = NUM_DRAWS
) -> float:
    """The smallest advantage, as a compute multiplier below 1, that two arms of this design show with a power of 80 %.

    `design` has the places of the runs, and the surface that losses are assumed to follow (of a pilot, or published).
    `deviation` is the noise floor in log loss. Noise is assumed to be independent between arms.
    """
    shape = (num_draws, len(design.runs))
    pair = [refit(design, expected(design) + deviation * generator.standard_normal(shape)) for _ in range(2)]
    shifts = _log_multiplier(design, design, *_sound((pair[0], pair[1])), flops)
    return math.exp(-detectable_shift(shifts, 2 * design.dof))


def _log_multiplier(baseline: FittedArm, arm: FittedArm, of_baseline: Floats, of_arm: Floats, flops: float) -> Floats:
    log_c = math.log(flops)
    reached = frontier(of_baseline, baseline.cost).loss(log_c)
    return frontier(of_arm, arm.cost).log_compute(reached) - log_c


def _sound(draws: tuple[SurfaceDraws, SurfaceDraws]) -> tuple[Floats, Floats]:
    both: NDArray[np.bool_] = draws[0].sound & draws[1].sound
    return draws[0].coefficients[both], draws[1].coefficients[both]
