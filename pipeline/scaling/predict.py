"""Predictions from a ladder: what an arm reaches with given compute, size or text, by its fitted loss surface (approach 3).

Of FLOPs, parameters and tokens one or two are given. With one the others are the compute-optimal ones, with two the third
follows from the cost of a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.scaling.fit.bootstrap import FittedArm, draw, fit_arm, interval
from pipeline.scaling.fit.frontier import CostLaw, fit_cost, frontier
from pipeline.scaling.fit.intervals import Interval
from pipeline.scaling.fit.points import Columns, Floats, Point
from pipeline.scaling.fit.surface import log_loss
from pipeline.scaling.ladder.ladder import Ladder

_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is given: one or two of the three."""

    flops: float | None = None
    num_parameters: float | None = None
    tokens: float | None = None

    def check(self) -> None:
        """Raise ValueError unless one or two are given."""
        given = [value for value in (self.flops, self.num_parameters, self.tokens) if value is not None]
        if not 1 <= len(given) <= 2:
            raise ValueError("give one or two of --flops, --params and --tokens: the others follow")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Parameters, tokens, FLOPs and loss of one arm, each with its 95 % interval; without a fit the bounds equal the value."""

    arm: str
    num_parameters: Interval
    tokens: Interval
    flops: Interval
    loss: Interval
    outside: tuple[str, ...]
    """Which of them lie outside of what the arm's runs cover, in words."""


def predict(arm: str, points: Sequence[Point], asked: Asked) -> Prediction:
    """From the finished runs of an arm. Raises ValueError if they determine no loss surface."""
    asked.check()
    fitted = fit_arm(arm, points)
    draws = draw(fitted, np.random.default_rng(_SEED))

    def of(part: int) -> Interval:
        return interval(fitted, draws, lambda coefficients: np.exp(_place(coefficients, fitted.cost, asked)[part]))

    loss = interval(fitted, draws, _loss(fitted.cost, asked))
    found = Prediction(arm=arm, num_parameters=of(0), tokens=of(1), flops=of(2), loss=loss, outside=())
    return replace(found, outside=_outside(fitted, found))


def predict_from_assumed(ladder: Ladder, asked: Asked) -> Prediction:
    """From the surface that a recipe assumes, for its baseline; it has no interval. Raises ValueError if it assumes none."""
    asked.check()
    recipe = ladder.recipe
    if recipe.assumed is None:
        raise ValueError("nothing has run, and the recipe assumes no loss surface: give `assumed`, or a completed ladder")
    main = [run for run in ladder.runs if run.phase == "main" and run.objective == 0 and run.arm == recipe.baseline]
    columns = np.array([(run.num_parameters, end.tokens, end.flops, 1.0) for run in main for end in run.ends]).T
    cost = fit_cost(Columns(num_parameters=columns[0], tokens=columns[1], flops=columns[2], loss=columns[3]))
    assumed = recipe.assumed
    coefficients = np.array([[math.log(assumed.A), math.log(assumed.B), math.log(assumed.E), assumed.alpha, assumed.beta]])
    n, d, c = (float(np.exp(part[0])) for part in _place(coefficients, cost, asked))
    loss = float(_loss(cost, asked)(coefficients)[0])
    parameters, tokens, flops, of_loss = (Interval(value, value, value) for value in (n, d, c, loss))
    return Prediction(arm=recipe.baseline, num_parameters=parameters, tokens=tokens, flops=flops, loss=of_loss, outside=())


def _place(coefficients: Floats, cost: CostLaw, asked: Asked) -> tuple[Floats, Floats, Floats]:
    """Logarithms of parameters, tokens and FLOPs for coefficients (P, 5), each (P,)."""
    path = frontier(coefficients, cost)
    n, d, c = (None if value is None else np.full(len(coefficients), math.log(value)) for value in _values(asked))
    if n is not None and d is not None:
        return n, d, d + cost.log_k + cost.q * n
    if c is None and n is not None:
        c = (n - path.log_n_scale) / path.n_exponent
    elif c is None:
        assert d is not None
        c = (d + cost.log_k + cost.q * path.log_n_scale) / path.d_exponent
    if n is None:
        n = path.log_n_scale + path.n_exponent * c if d is None else (c - d - cost.log_k) / cost.q
    return n, c - cost.log_k - cost.q * n if d is None else d, c


def _values(asked: Asked) -> tuple[float | None, float | None, float | None]:
    return asked.num_parameters, asked.tokens, asked.flops


def _loss(cost: CostLaw, asked: Asked) -> Callable[[Floats], Floats]:
    def loss(coefficients: Floats) -> Floats:
        n, d, _ = _place(coefficients, cost, asked)
        return np.exp(log_loss(coefficients, n[:, None], d[:, None])[:, 0])

    return loss


def _outside(fitted: FittedArm, found: Prediction) -> tuple[str, ...]:
    runs = fitted.runs
    parts = (
        ("parameters", found.num_parameters.value, runs.num_parameters),
        ("tokens", found.tokens.value, runs.tokens),
        ("FLOPs", found.flops.value, runs.flops),
    )
    return tuple(
        f"{name} {value:.3g} of {own.min():.3g} to {own.max():.3g}"
        for name, value, own in parts
        if not own.min() * 0.999 <= value <= own.max() * 1.001
    )
