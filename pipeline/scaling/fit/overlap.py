"""The compute multiplier without a form of the loss: the distance along the compute axis between two lines of isoFLOP minima.

Each arm's minima (budget, loss) are joined by a monotone cubic in log-log (scipy's PCHIP), without extrapolation. The log of
the multiplier is the mean of log(C of the arm / C of the baseline) over the losses that both lines reach. The only assumption
is that a parabola finds the lowest loss of a budget; it finds the loss better than the size. Its error differs between arms
with other sizes around the optimum. `minima_bias` computes this error on the fitted surfaces, where the truth is known, and it
is subtracted, so the form of the loss matters to second order only.

Noise is drawn around the parabolas, not around a loss surface.

Shapes: B draws, K budgets, G points of a grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from pipeline.scaling.fit.bootstrap import FittedArm, expected
from pipeline.scaling.fit.frontier import frontier
from pipeline.scaling.fit.intervals import NUM_DRAWS, Interval, check_failures, percentile
from pipeline.scaling.fit.isoflop import Design, fit_isoflops, parabolas
from pipeline.scaling.fit.noise import draw_paired_noise
from pipeline.scaling.fit.points import Floats

_GRID, _LEVELS = 513, 33
_LEAST_SHARE = 1 / 3


def overlap_multiplier(
    names: tuple[str, str],
    designs: tuple[Design, Design],
    pairs: NDArray[np.int64],
    generator: np.random.Generator,
    num_draws: int = NUM_DRAWS,
    bias: float = 0.0,
) -> Interval:
    """Compute of the second arm over that of the first for equal losses, with a 95 % interval.

    `bias`, in log compute, is subtracted (`minima_bias`); `pairs` are those of `bootstrap.paired_runs`. Raises ValueError for
    optima at the edge, for lines that do not fall, for arms with less than a third of their losses in common, for designs
    without residuals to estimate the noise from, and if over 5 % of the draws fail.
    """
    measured, residuals, middles = [], [], []
    for name, design in zip(names, designs, strict=True):
        found = fit_isoflops(name, design)
        measured.append((np.log(found.budgets), found.log_loss))
        fitted = _fitted(design)
        middles.append(fitted)
        residuals.append(np.log(design.runs.loss) - fitted)
    num_coefficients = 3 * max(len(design.members) for design in designs)
    fewest = min(len(design.runs) for design in designs)
    if fewest <= num_coefficients:
        raise ValueError(
            f"{fewest} runs and {num_coefficients} constants of parabolas leave no residuals to estimate the noise from: "
            "add sizes or seeds"
        )
    value = _mean_distance(measured[0], measured[1])
    if not np.isfinite(value[0]):
        raise ValueError(
            f"the lowest losses of {names[0]} and {names[1]} do not fall with every budget, or have less than a third of their "
            "range in common: add budgets until they do"
        )
    noise = draw_paired_noise((residuals[0], residuals[1]), pairs, num_coefficients, num_draws, generator)
    drawn = [parabolas(design, middle + part) for design, middle, part in zip(designs, middles, noise, strict=True)]
    distances = _mean_distance(*((np.log(one.budgets), one.log_loss) for one in drawn))
    sound = np.isfinite(distances) & drawn[0].sound & drawn[1].sound
    check_failures(sound, f"{names[1]}'s multiplier over {names[0]}")
    return percentile(float(value[0]) - bias, distances[sound] - bias).exp()


def minima_bias(arms: tuple[FittedArm, FittedArm], designs: tuple[Design, Design]) -> float:
    """The error of the method on ladders without noise on the arms' fitted surfaces, in log compute.

    NaN if the lines of those ladders do not fall or have too little in common.
    """
    found, truth = [], []
    for arm, design in zip(arms, designs, strict=True):
        minima = parabolas(design, expected(arm))
        log_c = np.log(minima.budgets)
        found.append((log_c, minima.log_loss))
        budgets = np.linspace(log_c[0], log_c[-1], _LEVELS)
        best = frontier(arm.surface.coefficients[None], arm.cost)
        truth.append((budgets, np.log([best.loss(budget) for budget in budgets.tolist()]).T))
    return float((_mean_distance(*found) - _mean_distance(*truth))[0])


def _fitted(design: Design) -> Floats:
    """Log losses of the parabolas at the runs, (R,)."""
    log_n, log_l = np.log(design.runs.num_parameters), np.log(design.runs.loss)
    fitted = np.empty_like(log_l)
    for chosen in design.members:
        x = log_n[chosen] - log_n[chosen].mean()
        fitted[chosen] = np.polyval(np.polyfit(x, log_l[chosen], 2), x)
    return fitted


def _mean_distance(first: tuple[Floats, Floats], second: tuple[Floats, Floats]) -> Floats:
    """Mean of log C2 - log C1 over the common losses, (B,); NaN if a line rises or too little is common."""
    lines = [_line(log_c, losses) for log_c, losses in (first, second)]
    first_losses, last_losses = (np.stack([losses[:, end] for _, losses in lines]) for end in (0, -1))
    top, bottom = first_losses.min(axis=0), last_losses.max(axis=0)
    reach = (first_losses - last_losses).min(axis=0)
    result = np.full(len(top), np.nan)
    falling = np.all([np.diff(losses, axis=1).max(axis=1) < 0 for _, losses in lines], axis=0)
    for number in np.flatnonzero(falling & (top - bottom > _LEAST_SHARE * reach)):
        levels = np.linspace(bottom[number], top[number], _LEVELS)
        at = [np.interp(levels, losses[number, ::-1], log_c[::-1]) for log_c, losses in lines]
        result[number] = float((at[1] - at[0]).mean())
    return result


def _line(log_c: Floats, losses: Floats) -> tuple[Floats, Floats]:
    """The cubic on a fine grid: (G,), (B, G)."""
    grid = np.linspace(log_c[0], log_c[-1], _GRID)
    return grid, PchipInterpolator(log_c, losses, axis=1)(grid)
