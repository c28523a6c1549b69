"""The compute-optimal frontier: best size, tokens and loss at a budget on a fitted surface, in closed form.

Chinchilla writes C = 6 N D. Here compute is counted per architecture, and a token costs k N^q FLOPs: q is near 1, but an FNet
encoder has a lower k, and embeddings are parameters without FLOPs. With C = k N^q D the optimum of
E + A / N^alpha + B / D^beta stays a power law:

    N_opt = (alpha A / (q beta B))^(1 / (alpha + q beta)) (C / k)^(beta / (alpha + q beta)),   D_opt = C / (k N_opt^q)
    L_opt = E + G C^-gamma,   gamma = alpha beta / (alpha + q beta)

Shapes: P sets of coefficients as in `surface.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.scaling.fit.points import Columns, Floats


@dataclass(frozen=True)
class CostLaw:
    """Training FLOPs per token: k N^q."""

    log_k: float
    q: float
    worst: float = 0.0
    """Largest relative error on the fitted runs."""

    def log_tokens(self, log_c: Floats | float, log_n: Floats) -> Floats:
        """The tokens of a budget at a size; all in logarithms."""
        return log_c - self.log_k - self.q * log_n


def fit_cost(runs: Columns) -> CostLaw:
    """The power law through the FLOPs per token of the runs. Raises ValueError if all have one size."""
    log_n, log_cost = np.log(runs.num_parameters), np.log(runs.flops / runs.tokens)
    if len(np.unique(log_n)) < 2:
        raise ValueError("the cost of a token by size needs runs of at least two sizes: add some")
    q, log_k = np.polyfit(log_n, log_cost, 1)
    return CostLaw(float(log_k), float(q), float(np.abs(np.expm1(q * log_n + log_k - log_cost)).max()))


def token_cost(runs: Columns, log_n: Floats) -> Floats:
    """Log of the FLOPs of a token at sizes (S,): interpolated between those of the runs, the power law beyond them. (S,).

    Raises ValueError as `fit_cost` does.
    """
    law = fit_cost(runs)
    own, cost = np.log(runs.num_parameters), np.log(runs.flops / runs.tokens)
    known = np.unique(own)
    besides = [float((cost - law.log_k - law.q * own)[own == one].mean()) for one in known]
    return law.log_k + law.q * log_n + np.interp(log_n, known, besides)


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """The frontier of P surfaces: all attributes (P,)."""

    n_exponent: Floats
    """a of N_opt ~ C^a."""
    d_exponent: Floats
    """b of D_opt ~ C^b."""
    log_n_scale: Floats
    log_e: Floats
    log_g: Floats
    gamma: Floats

    def log_n(self, log_c: float) -> Floats:
        """Logarithm of the optimal size at a budget, (P,)."""
        return self.log_n_scale + self.n_exponent * log_c

    def loss(self, log_c: float | Floats) -> Floats:
        """The loss at the optimum of a budget, (P,)."""
        return np.exp(self.log_e) + np.exp(self.log_g - self.gamma * log_c)

    def log_compute(self, loss: Floats) -> Floats:
        """Logarithm of the compute that reaches a loss (P,); infinite if the loss is below E, the limit of
        infinite compute."""
        above = loss - np.exp(self.log_e)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(above > 0, (self.log_g - np.log(above)) / self.gamma, np.inf)


def frontier(coefficients: Floats, cost: CostLaw) -> Frontier:
    """The closed form above, for coefficients (P, 5)."""
    log_a, log_b, log_e, alpha, beta = coefficients.T
    q, total = cost.q, alpha + cost.q * beta
    balance = (np.log(alpha) + log_a - np.log(q * beta) - log_b) / total
    n_exponent, d_exponent = beta / total, alpha / total
    log_n_scale = balance - n_exponent * cost.log_k
    log_d_scale = cost.log_tokens(0.0, log_n_scale)
    # at C = 1; both terms then fall as C^-gamma
    log_g = np.logaddexp(log_a - alpha * log_n_scale, log_b - beta * log_d_scale)
    return Frontier(
        n_exponent=n_exponent,
        d_exponent=d_exponent,
        log_n_scale=log_n_scale,
        log_e=log_e,
        log_g=log_g,
        gamma=alpha * beta / total,
    )
