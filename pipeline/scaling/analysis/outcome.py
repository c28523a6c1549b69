"""What an analysis holds: plain numbers, and reasons where something was refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pipeline.scaling.fit.equivalence import EffectTest
from pipeline.scaling.fit.holdout import HeldOut
from pipeline.scaling.fit.intervals import Interval
from pipeline.scaling.fit.joint.by_compute import MultiplierBand
from pipeline.scaling.fit.joint.leave_out import WithoutSize
from pipeline.scaling.fit.joint.sharing import SharingTest
from pipeline.scaling.fit.noise import NoiseFloor
from pipeline.scaling.fit.points import Floats
from pipeline.scaling.ladder.ladder import EQUAL_PARAMETERS

T = TypeVar("T")


@dataclass(frozen=True)
class Refused:
    """The reason why something was not computed, with the remedy."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Band:
    """A line with its 95 % band over training FLOPs: all (K,)."""

    flops: Floats
    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, kw_only=True)
class SurfaceFit:
    """Approach 3 of one arm."""

    constants: dict[str, Interval]
    n_exponent: Interval
    d_exponent: Interval
    deviation: float
    """Standard deviation of log loss around the surface, lack of fit included."""
    objective: float
    starts_agreeing: float
    cost_error: float
    """Largest relative error of the fitted FLOPs per token, k N^q."""
    residuals: tuple[tuple[str, float], ...]
    """(run, measured loss / fitted loss - 1)."""
    best_size: Band
    best_tokens: Band
    best_loss: Band


@dataclass(frozen=True, kw_only=True)
class MinimaFit:
    """Approach 2 of one arm: all (K,), by ascending budget."""

    budgets: tuple[float, ...]
    sizes: tuple[float, ...]
    tokens: tuple[float, ...]
    losses: tuple[float, ...]
    curvatures: tuple[float, ...]
    """Second derivative of log loss by log size."""
    n_exponent: Interval
    d_exponent: Interval


@dataclass(frozen=True)
class EnvelopeFit:
    """Approach 1 of one arm."""

    n_exponent: Interval
    d_exponent: Interval


@dataclass(frozen=True, kw_only=True)
class ArmFit:
    """All fits of one arm."""

    arm: str
    num_runs: int
    surface: SurfaceFit | Refused
    minima: MinimaFit | Refused
    envelope: EnvelopeFit | Refused
    held_out: tuple[HeldOut, ...] | Refused


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An arm against the baseline, each at its best size."""

    arm: str
    flops: float
    """The largest compute of the baseline that both arms cover, the place of `multiplier`."""
    multiplier: Interval | Refused
    """From the joint fit."""
    band: MultiplierBand | Refused
    """The same by compute."""
    without_size: tuple[WithoutSize, ...]
    """The same at `flops`, without each size."""
    loss_difference: Interval | Refused
    """Relative difference of the lowest losses at equal compute, the largest that both arms have."""
    test: EffectTest | None
    """Of `loss_difference`, in the family of all differences of this report."""
    multiplier_of_surfaces: Interval | Refused
    """From a surface of each arm by itself, at the baseline's largest budget."""
    multiplier_of_minima: Interval | Refused
    n_exponent_difference: Interval | Refused
    crossover: float | Refused | None
    """The budget in FLOPs at which the better one changes; None if one is better at all budgets."""


@dataclass(frozen=True, kw_only=True)
class PairView:
    """An arm against another at one size: relative difference of the measure, below 0 if the arm is better."""

    arm: str
    against: str
    """The baseline, or the hybrid that the arm is a control of."""
    size: str
    parameters_ratio: float
    by_budget: tuple[tuple[float, float, int], ...]
    """(budget, mean difference over its seeds, number of seeds)."""
    difference: Interval | None
    """At the budget with the most seeds (the largest of those), with a 95 % interval; None if the noise is unknown."""
    budget: float
    """Of `difference`."""
    test: EffectTest | None
    """Of `difference`, in the family of all differences of this report."""
    equal_seconds: tuple[tuple[float, float], ...]
    """(seconds of a run of the baseline, difference at that time), interpolated between the arm's budgets, not beyond."""
    equal_tokens: tuple[tuple[float, float], ...]
    """The same at the raw tokens of the baseline's runs."""

    @property
    def has_equal_parameters(self) -> bool:
        return abs(self.parameters_ratio - 1) <= EQUAL_PARAMETERS


@dataclass(frozen=True, kw_only=True)
class JointSurfaces:
    """The joint fit of all arms with enough runs."""

    arms: tuple[str, ...]
    not_fitted: tuple[tuple[str, str], ...]
    """(arm, reason) of the others."""
    shared: tuple[str, ...]
    """Constants that all arms share."""
    tests: tuple[SharingTest, ...]
    untested: str | None
    """Why sharing was not tested; then all constants are shared."""
    constants: dict[str, dict[str, float]]
    """By arm: A, B, E, alpha, beta and kappa."""
    num_runs: int
    num_places: int
    """Arm, size and budget: the observations of the fit, each the mean of its seeds."""
    deviation: float
    """Standard deviation of log loss around the surfaces, lack of fit included."""
    residuals: tuple[tuple[str, str, float, float], ...]
    """(arm, size, FLOPs, measured loss / fitted loss - 1)."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All fits and comparisons of one set of results."""

    name: str
    measure: str
    baseline: str
    noise: NoiseFloor | Refused
    smallest: float | None
    """Smallest relative difference at one size and budget that single runs of two arms show with a power of 80 %."""
    margin: float | None
    """Relative difference of losses up to which two arms count as equivalent, of the plan; None if it has none."""
    left_out: tuple[tuple[str, str], ...]
    """(run, reason) of results that no fit reads."""
    regrets: dict[str, float]
    """Relative loss by run that its learning rate cost, as the sweeps say; empty if it is not known."""
    joint: JointSurfaces | Refused
    fits: tuple[ArmFit, ...]
    comparisons: tuple[Comparison, ...]
    pairs: tuple[PairView, ...]
    controls: tuple[PairView, ...]
    """The controls against their hybrids: the effect of mixing, and of attention on top. Empty if a hybrid is the baseline."""


def attempt(compute: Callable[[], T]) -> T | Refused:
    """The result, or the reason of the ValueError that refused it."""
    try:
        return compute()
    except ValueError as error:
        return Refused(str(error))
