"""Chinchilla's approach 3: the loss surface L(N, D) = E + A / N^alpha + B / D^beta, fitted to log losses.

Hoffmann et al. 2022 (arXiv:2203.15556), appendix D.3: log-sum-exp form, Huber's loss with delta 1e-3, many starts. With the
corrections of Besiroglu et al. 2024 (arXiv:2404.10102).

Shapes: P problems, R runs, 5 coefficients in the order log A, log B, log E, alpha, beta.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from pipeline.scaling.fit.huber import Minimum, minimise
from pipeline.scaling.fit.points import Columns, Floats

FEWEST_RUNS = 10
HUBER_DELTA = 1e-3
_EXPONENTS = (0.1, 0.2, 0.35, 0.5, 0.8, 1.2)
"""Values of alpha and beta at the starts; E, A and B then follow by linear regression."""
_STEEPEST = 4.0
_AGREEING = 1e-4


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A fitted surface. `coefficients` are (log A, log B, log E, alpha, beta), unrounded."""

    coefficients: Floats
    objective: float
    """Sum of Huber's losses."""
    residuals: Floats
    """Fitted minus measured log loss, (R,)."""
    starts_agreeing: float
    """Share of the starts that ended within a ten-thousandth of the best objective; a small share means many local minima."""

    @property
    def constants(self) -> dict[str, float]:
        return constants(self.coefficients)

    def predict(self, num_parameters: Floats, tokens: Floats) -> Floats:
        """Loss, (R,)."""
        return np.exp(log_loss(self.coefficients[None], np.log(num_parameters), np.log(tokens))[0])


def constants(coefficients: Floats) -> dict[str, float]:
    """A, B, E, alpha and beta by name, from (5,)."""
    log_a, log_b, log_e, alpha, beta = coefficients.tolist()
    return {"A": math.exp(log_a), "B": math.exp(log_b), "E": math.exp(log_e), "alpha": alpha, "beta": beta}


def log_loss(coefficients: Floats, log_n: Floats | float, log_d: Floats) -> Floats:
    """log(E + A / N^alpha + B / D^beta): (P, 5), (R,) or a number, (R,) → (P, R)."""
    return _values_and_slopes(coefficients, log_n, log_d)[0]


def fit_surface(runs: Columns, delta: float = HUBER_DELTA) -> Surface:
    """The best fit of many starts. Raises ValueError for less than 10 runs, or if no fitted loss falls with N and D."""
    if len(runs) < FEWEST_RUNS:
        raise ValueError(
            f"{len(runs)} runs are too few for the 5 constants of a loss surface: train at least {FEWEST_RUNS}, of many sizes"
        )
    for name, values in (("sizes", runs.num_parameters), ("token counts", runs.tokens)):
        if len(np.unique(values)) < 3:
            raise ValueError(f"less than 3 different {name} do not determine a loss surface: add runs with others")
    log_l = np.log(runs.loss)
    found = fit_many(runs, log_l, _starts(runs), delta)
    usable = is_sound(found)
    if not usable.any():
        raise ValueError(
            "no start leads to a surface that falls with size and data: the runs do not show both; widen sizes and budgets"
        )
    objective = np.where(usable, found.objective, np.inf)
    best = int(np.argmin(objective))
    agreeing = float((objective <= (1 + _AGREEING) * objective[best]).mean())
    coefficients = found.coefficients[best]
    residuals = log_loss(coefficients[None], np.log(runs.num_parameters), np.log(runs.tokens))[0] - log_l
    return Surface(coefficients=coefficients, objective=float(objective[best]), residuals=residuals, starts_agreeing=agreeing)


def fit_many(runs: Columns, log_losses: Floats, start: Floats, delta: float) -> Minimum:
    """Surfaces of P problems at once: log_losses (P, R) or (R,), start (P, 5)."""
    # Centred logarithms separate A and B from alpha and beta, so the steps are well conditioned.
    log_n, log_d = np.log(runs.num_parameters), np.log(runs.tokens)
    shift_n, shift_d = log_n.mean(), log_d.mean()
    log_n, log_d = log_n - shift_n, log_d - shift_d
    found = minimise(
        lambda coefficients: _values_and_slopes(coefficients, log_n, log_d),
        log_losses,
        _shifted(start, shift_n, shift_d),
        delta,
    )
    return found._replace(coefficients=_shifted(found.coefficients, -shift_n, -shift_d))


def is_sound(found: Minimum) -> np.ndarray:
    """(P,): converged, finite, and both exponents positive and below any plausible value."""
    exponents = found.coefficients[:, 3:]
    return found.converged & np.isfinite(found.coefficients).all(1) & (exponents > 0).all(1) & (exponents < _STEEPEST).all(1)


def _values_and_slopes(coefficients: Floats, log_n: Floats | float, log_d: Floats) -> tuple[Floats, Floats]:
    log_a, log_b, log_e, alpha, beta = (column[:, None] for column in coefficients.T)  # each (P, 1)
    terms = (log_a - alpha * log_n, log_b - beta * log_d, np.broadcast_to(log_e, (len(coefficients), log_d.shape[-1])))
    values = np.logaddexp(np.logaddexp(terms[0], terms[1]), terms[2])  # (P, R)
    of_n, of_d, of_e = (np.exp(term - values) for term in terms)  # shares of the loss
    return values, np.stack([of_n, of_d, of_e, -log_n * of_n, -log_d * of_d], axis=-1)


def _shifted(coefficients: Floats, shift_n: float, shift_d: float) -> Floats:
    moved = coefficients.copy()
    moved[:, 0] -= moved[:, 3] * shift_n
    moved[:, 1] -= moved[:, 4] * shift_d
    return moved


def _starts(runs: Columns) -> Floats:
    starts = []
    for alpha, beta in itertools.product(_EXPONENTS, repeat=2):
        powers = np.stack([runs.num_parameters**-alpha, runs.tokens**-beta, np.ones(len(runs))], axis=1)
        solved = np.linalg.lstsq(powers / runs.loss[:, None], np.ones(len(runs)), rcond=None)[0]
        least = 1e-2 * runs.loss.min() / powers.max(0)  # each term at least a hundredth of a loss
        starts.append([*np.log(np.maximum(solved, least)), alpha, beta])
    return np.array(starts)
