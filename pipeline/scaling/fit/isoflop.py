"""Chinchilla's approach 2: at each budget a parabola in log N, its minimum, and power laws through the minima.

Hoffmann et al. 2022 (arXiv:2203.15556), section 3.2. The curve through runs of one budget is no parabola: it falls as
N^-alpha and rises as N^beta. Wide or off-centre sizes therefore shift the minimum, and sizes that stay the same while budgets
grow bias the exponent. `exponent_intervals` subtracts this bias, as far as approach 3's surface is the true curve.

Parabolas are fitted to log losses, because noise is proportional to the loss.

Shapes: P sets of losses, R runs, K budgets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.scaling.fit.bootstrap import FittedArm, SurfaceDraws
from pipeline.scaling.fit.frontier import CostLaw, fit_cost, frontier
from pipeline.scaling.fit.intervals import Interval, check_failures, pivotal
from pipeline.scaling.fit.points import Columns, Floats

FEWEST_SIZES = 4


@dataclass(frozen=True, kw_only=True)
class Isoflops:
    """Minima of the parabolas by budget, and power laws through them. `budgets` (K,) ascend; the others are (P, K) or (P,)."""

    budgets: Floats
    """Mean FLOPs of the runs of a budget."""
    log_n: Floats
    log_loss: Floats
    log_d: Floats
    curvature: Floats
    inside: NDArray[np.bool_]
    """Whether the parabola has a minimum, between the smallest and the largest size."""
    n_exponent: Floats
    d_exponent: Floats

    @property
    def sound(self) -> NDArray[np.bool_]:
        """(P,): every minimum is inside."""
        return np.logical_and.reduce(self.inside, axis=1)


@dataclass(frozen=True)
class Design:
    """The places of an arm's runs, grouped by budget."""

    runs: Columns
    cost: CostLaw
    members: tuple[NDArray[np.int64], ...]
    """Numbers of the runs of each budget, by ascending budget."""


def isoflop_design(name: str, runs: Columns, budgets: Floats) -> Design:
    """Group an arm's runs by their budget (R,). Raises ValueError for less than 4 sizes in a budget, or less than 2 budgets."""
    members = []
    for budget in np.unique(budgets):
        chosen = np.flatnonzero(budgets == budget)
        sizes = len(np.unique(runs.num_parameters[chosen]))
        if sizes < FEWEST_SIZES:
            raise ValueError(
                f"arm {name} has {sizes} sizes at {budget:.3g} FLOPs, less than {FEWEST_SIZES}: train more sizes there, or "
                "leave the budget out of approach 2"
            )
        members.append(chosen)
    if len(members) < 2:
        raise ValueError(f"arm {name} has one budget only, and a power law needs two or more: add budgets")
    return Design(runs, fit_cost(runs), tuple(members))


def fit_isoflops(name: str, design: Design) -> Isoflops:
    """The minima of the measured losses (P = 1). Raises ValueError if one is at the edge of the sizes.

    At the edge means that the parabola has no minimum between the smallest and the largest size, or the lowest loss is at one
    of them.
    """
    log_l = np.log(design.runs.loss)
    found = parabolas(design, log_l[None])
    for number, chosen in enumerate(design.members):
        sizes = design.runs.num_parameters[chosen]
        means = {size: float(log_l[chosen][sizes == size].mean()) for size in np.unique(sizes)}
        lowest = min(means, key=lambda size: means[size])
        if not found.inside[0, number] or lowest in (sizes.min(), sizes.max()):
            side = "smaller" if _optimum_is_below(found, number, lowest, sizes) else "larger"
            raise ValueError(
                f"arm {name}'s best size at {found.budgets[number]:.3g} FLOPs is at the edge of its sizes "
                f"({sizes.min():.3g} to {sizes.max():.3g} parameters): add a {side} one"
            )
    return found


def parabolas(design: Design, log_losses: Floats) -> Isoflops:
    """Minima and exponents for log losses (P, R); `inside` marks the usable minima."""
    log_n = np.log(design.runs.num_parameters)
    budgets = np.array([design.runs.flops[chosen].mean() for chosen in design.members])
    at, low, bent, inside = [], [], [], []
    for chosen in design.members:
        x = log_n[chosen]
        middle = x.mean()
        powers = np.stack([np.ones(len(x)), x - middle, (x - middle) ** 2], axis=1)
        c0, c1, c2 = (np.linalg.pinv(powers) @ log_losses[:, chosen].T).astype(np.float64)  # each (P,)
        with np.errstate(divide="ignore", invalid="ignore"):
            vertex = middle - c1 / (2 * c2)
            value = c0 - c1**2 / (4 * c2)
        at.append(vertex)
        low.append(value)
        bent.append(2 * c2)
        inside.append((c2 > 0) & (vertex > x.min()) & (vertex < x.max()))
    minima = np.stack(at, axis=1)
    log_c = np.log(budgets)
    log_d = design.cost.log_tokens(log_c, minima)
    centred = log_c - log_c.mean()
    slope = centred / (centred**2).sum()
    return Isoflops(
        budgets=budgets,
        log_n=minima,
        log_loss=np.stack(low, axis=1),
        log_d=log_d,
        curvature=np.stack(bent, axis=1),
        inside=np.stack(inside, axis=1),
        n_exponent=minima @ slope,
        d_exponent=log_d @ slope,
    )


def exponent_intervals(arm: FittedArm, found: Isoflops, design: Design, draws: SurfaceDraws) -> tuple[Interval, Interval]:
    """95 % intervals of a in N_opt ~ C^a and b in D_opt ~ C^b, from ladders drawn around approach 3's surface.

    On the surface the exponents are known, so the draws show both the scatter and the bias of parabolas in this design. The
    bias is subtracted, so the interval need not be centred on the estimate, or even contain it. Raises ValueError if over 5 %
    of the drawn ladders have a minimum at the edge.
    """
    drawn = parabolas(design, draws.log_losses)
    sound = drawn.sound
    check_failures(sound, f"arm {arm.name}'s isoFLOP minima")
    truth = frontier(arm.surface.coefficients[None], arm.cost)
    return (
        pivotal(float(found.n_exponent[0]), drawn.n_exponent[sound], float(truth.n_exponent[0])),
        pivotal(float(found.d_exponent[0]), drawn.d_exponent[sound], float(truth.d_exponent[0])),
    )


def _optimum_is_below(found: Isoflops, number: int, lowest: float, sizes: Floats) -> bool:
    if lowest in (sizes.min(), sizes.max()):
        return bool(lowest == sizes.min())
    return bool(found.log_n[0, number] <= np.log(sizes).mean())
