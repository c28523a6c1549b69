"""One arm of a comparison, fitted, and the ladders that its noise might have given as well.

Two ways of drawing them:

    "noise"  every run's loss is drawn again around the fitted surface (a parametric bootstrap, see `noise.py`): for planned
             ladders, which have few runs at fixed places;
    "cases"  runs are drawn with replacement, as Besiroglu et al. 2024 do with Chinchilla's 240: from 40 runs on. Samples
             of a small ladder lose whole sizes.

Shapes: B draws, R runs, 5 coefficients (see `surface.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.scaling.fit.frontier import CostLaw, fit_cost
from pipeline.scaling.fit.intervals import NUM_DRAWS, Interval, check_failures, percentile, resampled_counts
from pipeline.scaling.fit.noise import draw_noise, draw_paired_noise
from pipeline.scaling.fit.points import Columns, Floats, Point, columns
from pipeline.scaling.fit.surface import HUBER_DELTA, Surface, fit_many, fit_surface, is_sound, log_loss

Method = Literal["noise", "cases"]
FEWEST_CASES = 40
NUM_COEFFICIENTS = 5


@dataclass(frozen=True)
class Arm:
    """The runs of an arm with what was fitted to them."""

    name: str
    runs: Columns
    places: tuple[tuple[str, float, int], ...]
    """(size, budget, seed) of every run, by which runs of two arms are paired; empty: there are no pairs."""
    surface: Surface
    cost: CostLaw
    noise: Floats
    """Residuals in log loss of a least-squares surface, (R,): Huber's own are no measure of noise, being nearly 0 at several
    runs."""
    delta: float

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise, lack of fit included."""
        return float(np.sqrt((self.noise**2).sum() / self.dof))

    @property
    def dof(self) -> int:
        return len(self.runs) - NUM_COEFFICIENTS


@dataclass(frozen=True)
class Draws:
    """Ladders drawn for one arm, and the surfaces fitted to them."""

    log_losses: Floats  # (B, R)
    coefficients: Floats  # (B, 5)
    sound: NDArray[np.bool_]  # (B,)


def fit_arm(name: str, points: Sequence[Point], delta: float = HUBER_DELTA) -> Arm:
    """Fit the surface and the cost of a token. Raises ValueError as `fit_surface` does."""
    return fit_columns(name, columns(points), tuple((point.size, point.budget, point.seed) for point in points), delta)


def fit_columns(name: str, runs: Columns, places: tuple[tuple[str, float, int], ...] = (), delta: float = HUBER_DELTA) -> Arm:
    """`fit_arm` for runs that are columns of numbers."""
    surface = fit_surface(runs, delta)
    log_l = np.log(runs.loss)
    squares = fit_many(runs, log_l, surface.coefficients[None], np.inf).coefficients
    noise = log_l - log_loss(squares, np.log(runs.num_parameters), np.log(runs.tokens))[0]
    return Arm(name, runs, places, surface, fit_cost(runs), noise, delta)


def draw(arm: Arm, generator: np.random.Generator, num_draws: int = NUM_DRAWS, method: Method = "noise") -> Draws:
    """Ladders of one arm. Raises ValueError for "cases" under 40 runs, and where over 5 % of the fits failed."""
    log_l = np.log(arm.runs.loss)
    if method == "cases":
        _check_cases(len(arm.runs))
        return refit(arm, np.broadcast_to(log_l, (num_draws, len(log_l))), resampled_counts(len(log_l), num_draws, generator))
    return refit(arm, expected(arm) + draw_noise(arm.noise, NUM_COEFFICIENTS, num_draws, generator))


def draw_pair(
    first: Arm, second: Arm, generator: np.random.Generator, num_draws: int = NUM_DRAWS, method: Method = "noise"
) -> tuple[Draws, Draws]:
    """Ladders of two arms drawn together, draw for draw: noise that they share cancels in their differences.

    "cases" wants arms whose runs are all pairs. Raises ValueError as `draw` does.
    """
    pairs = paired_runs(first, second)
    if method == "cases":
        if not len(first.runs) == len(second.runs) == len(pairs):
            raise ValueError(
                f"only {len(pairs)} of {len(first.runs)} and {len(second.runs)} runs of {first.name} and {second.name} are "
                'pairs (equal size, budget and seed): draw by "noise", or leave the others out'
            )
        _check_cases(len(pairs))
        counts = resampled_counts(len(pairs), num_draws, generator)
        found = []
        for arm, order in ((first, pairs[:, 0]), (second, pairs[:, 1])):
            weights = np.empty_like(counts)
            weights[:, order] = counts
            found.append(refit(arm, np.broadcast_to(np.log(arm.runs.loss), counts.shape), weights))
        return found[0], found[1]
    noise = draw_paired_noise((first.noise, second.noise), pairs, NUM_COEFFICIENTS, num_draws, generator)
    return refit(first, expected(first) + noise[0]), refit(second, expected(second) + noise[1])


def paired_runs(first: Arm, second: Arm) -> NDArray[np.int64]:
    """Numbers of the runs with equal size, budget and seed, (Q, 2)."""
    where = {place: number for number, place in enumerate(second.places)}
    found = [(number, where[place]) for number, place in enumerate(first.places) if place in where]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def interval(arm: Arm, draws: Draws, statistic: Callable[[Floats], Floats]) -> Interval:
    """95 % interval of what `statistic` makes of coefficients: (P, 5) → (P,)."""
    value = float(statistic(arm.surface.coefficients[None])[0])
    return percentile(value, statistic(draws.coefficients[draws.sound]))


def expected(arm: Arm) -> Floats:
    """Log losses of the fitted surface at the arm's runs, (1, R)."""
    return log_loss(arm.surface.coefficients[None], np.log(arm.runs.num_parameters), np.log(arm.runs.tokens))


def refit(arm: Arm, log_losses: Floats, weights: Floats | None = None) -> Draws:
    """Surfaces fitted to other losses at the arm's places: log_losses and weights (B, R).

    Raises ValueError where over 5 % of the fits fail.
    """
    start = np.repeat(arm.surface.coefficients[None], len(log_losses), axis=0)
    found = fit_many(arm.runs, log_losses, start, arm.delta, weights)
    sound = is_sound(found)
    check_failures(sound, f"arm {arm.name}'s loss surface")
    return Draws(log_losses, found.coefficients, sound)


def _check_cases(num_runs: int) -> None:
    if num_runs < FEWEST_CASES:
        raise ValueError(
            f'{num_runs} runs are too few to draw by "cases" (from {FEWEST_CASES} on): samples lose sizes; draw by "noise"'
        )
