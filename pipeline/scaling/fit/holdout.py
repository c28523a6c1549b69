"""Extrapolation: fit without the largest size, and predict it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.scaling.fit.bootstrap import FittedArm, draw, fit_columns
from pipeline.scaling.fit.intervals import NUM_DRAWS, Interval, percentile
from pipeline.scaling.fit.points import Floats
from pipeline.scaling.fit.surface import log_loss


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One run of the largest size."""

    num_parameters: float
    tokens: float
    loss: float
    predicted: Interval
    """95 % interval of a new run's loss: noise of the fit and of the run itself."""

    @property
    def error(self) -> float:
        """Predicted / measured loss - 1."""
        return self.predicted.value / self.loss - 1


def hold_out_largest(arm: FittedArm, generator: np.random.Generator, num_draws: int = NUM_DRAWS) -> tuple[HeldOut, ...]:
    """Predict every run of the largest size from the others. Raises ValueError if less than 10 runs remain."""
    runs = arm.runs
    largest = runs.num_parameters == runs.num_parameters.max()
    rest = runs.take(~largest)
    try:
        smaller = fit_columns(arm.name, rest, delta=arm.delta)
    except ValueError as error:
        raise ValueError(f"without the largest size of {arm.name}: {error}") from error
    drawn = draw(smaller, generator, num_draws)
    coefficients = drawn.coefficients[drawn.sound]
    held = runs.take(largest)
    log_n, log_d = np.log(held.num_parameters), np.log(held.tokens)
    means = log_loss(coefficients, log_n, log_d)  # (B, H) runs held out
    deviation = smaller.deviation * np.sqrt(smaller.dof / generator.chisquare(smaller.dof, len(means)))
    losses = means + deviation[:, None] * generator.standard_normal(means.shape)
    values: Floats = smaller.surface.predict(held.num_parameters, held.tokens)
    return tuple(
        HeldOut(
            num_parameters=float(held.num_parameters[number]),
            tokens=float(held.tokens[number]),
            loss=float(held.loss[number]),
            predicted=percentile(float(values[number]), np.exp(losses[:, number])),
        )
        for number in range(len(held))
    )
