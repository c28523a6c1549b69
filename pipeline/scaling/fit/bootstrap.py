"""One arm of a comparison, fitted, and its bootstrap: ladders with the same places and other noise.

Every run's loss is drawn again around the fitted surface (a parametric bootstrap, see `noise.py`). Drawing runs with
replacement needs hundreds of runs: samples of a planned ladder, which has few runs at fixed places, lose whole sizes.

Shapes: B draws, R runs, 5 coefficients (see `surface.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.scaling.fit.frontier import CostLaw, fit_cost
from pipeline.scaling.fit.intervals import NUM_DRAWS, Interval, check_failures, percentile
from pipeline.scaling.fit.noise import draw_noise, draw_paired_noise
from pipeline.scaling.fit.points import Columns, Floats, Point, columns
from pipeline.scaling.fit.surface import HUBER_DELTA, Surface, fit_many, fit_surface, is_sound, log_loss

NUM_COEFFICIENTS = 5


@dataclass(frozen=True, kw_only=True)
class FittedArm:
    """The runs of an arm and the fits to them."""

    name: str
    runs: Columns
    places: tuple[tuple[str, float, int], ...]
    """(size, budget, seed) of every run, by which the runs of two arms are paired; empty: no pairs."""
    surface: Surface
    cost: CostLaw
    noise: Floats
    """Residuals in log loss of a least-squares surface, (R,): those of the Huber fit do not measure noise, as several of them
    are nearly 0."""
    delta: float

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise, lack of fit included."""
        return float(np.sqrt((self.noise**2).sum() / self.dof))

    @property
    def dof(self) -> int:
        return len(self.runs) - NUM_COEFFICIENTS


@dataclass(frozen=True)
class SurfaceDraws:
    """Ladders drawn for one arm, and the surfaces fitted to them."""

    log_losses: Floats  # (B, R)
    coefficients: Floats  # (B, 5)
    sound: NDArray[np.bool_]  # (B,)


def fit_arm(name: str, points: Sequence[Point], delta: float = HUBER_DELTA) -> FittedArm:
    """Fit the surface and the cost of a token. Raises ValueError as `fit_surface` does."""
    return fit_columns(name, columns(points), tuple((point.size, point.budget, point.seed) for point in points), delta)


def fit_columns(
    name: str, runs: Columns, places: tuple[tuple[str, float, int], ...] = (), delta: float = HUBER_DELTA
) -> FittedArm:
    """`fit_arm` for runs that are columns of numbers."""
    surface = fit_surface(runs, delta)
    log_l = np.log(runs.loss)
    squares = fit_many(runs, log_l, surface.coefficients[None], np.inf).coefficients
    noise = log_l - log_loss(squares, np.log(runs.num_parameters), np.log(runs.tokens))[0]
    return FittedArm(name=name, runs=runs, places=places, surface=surface, cost=fit_cost(runs), noise=noise, delta=delta)


def draw(arm: FittedArm, generator: np.random.Generator, num_draws: int = NUM_DRAWS) -> SurfaceDraws:
    """Ladders of one arm. Raises ValueError if over 5 % of the fits failed."""
    return refit(arm, expected(arm) + draw_noise(arm.noise, NUM_COEFFICIENTS, num_draws, generator))


def draw_pair(
    first: FittedArm, second: FittedArm, generator: np.random.Generator, num_draws: int = NUM_DRAWS
) -> tuple[SurfaceDraws, SurfaceDraws]:
    """Ladders of two arms drawn together, draw for draw: noise that they share cancels in their differences.

    Raises ValueError as `draw` does.
    """
    pairs = paired_runs(first, second)
    noise = draw_paired_noise((first.noise, second.noise), pairs, NUM_COEFFICIENTS, num_draws, generator)
    return refit(first, expected(first) + noise[0]), refit(second, expected(second) + noise[1])


def paired_runs(first: FittedArm, second: FittedArm) -> NDArray[np.int64]:
    """Numbers of the runs with equal size, budget and seed, (Q, 2)."""
    where = {place: number for number, place in enumerate(second.places)}
    found = [(number, where[place]) for number, place in enumerate(first.places) if place in where]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def interval(arm: FittedArm, draws: SurfaceDraws, statistic: Callable[[Floats], Floats]) -> Interval:
    """95 % interval of a statistic of the coefficients, (P, 5) → (P,)."""
    value = float(statistic(arm.surface.coefficients[None])[0])
    return percentile(value, statistic(draws.coefficients[draws.sound]))


def expected(arm: FittedArm) -> Floats:
    """Log losses of the fitted surface at the arm's runs, (1, R)."""
    return log_loss(arm.surface.coefficients[None], np.log(arm.runs.num_parameters), np.log(arm.runs.tokens))


def refit(arm: FittedArm, log_losses: Floats) -> SurfaceDraws:
    """Surfaces fitted to other log losses (B, R) at the arm's places. Raises ValueError if over 5 % of the fits fail."""
    start = np.repeat(arm.surface.coefficients[None], len(log_losses), axis=0)
    found = fit_many(arm.runs, log_losses, start, arm.delta)
    sound = is_sound(found)
    check_failures(sound, f"arm {arm.name}'s loss surface")
    return SurfaceDraws(log_losses, found.coefficients, sound)
