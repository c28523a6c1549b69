"""The analysis of a set of results: all fits and comparisons, as plain numbers.

A fit that the runs do not support is refused, and the reason is a part of the result. The random draws have a fixed seed, so
the same runs give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from scipy import stats

from pipeline.scaling.fit.bootstrap import FittedArm, SurfaceDraws, draw, draw_pair, fit_arm, interval, paired_runs
from pipeline.scaling.fit.envelope import envelope_intervals, fit_envelope
from pipeline.scaling.fit.frontier import frontier
from pipeline.scaling.fit.holdout import HeldOut, hold_out_largest
from pipeline.scaling.fit.intervals import NUM_DRAWS, Interval
from pipeline.scaling.fit.isoflop import Design, exponent_intervals, fit_isoflops, isoflop_design
from pipeline.scaling.fit.multiplier import compute_multiplier, crossover, difference, n_exponent
from pipeline.scaling.fit.noise import NoiseFloor, noise_floor, smallest_difference
from pipeline.scaling.fit.overlap import minima_bias, overlap_multiplier
from pipeline.scaling.fit.points import Curve, Floats, Point, columns
from pipeline.scaling.ladder.ladder import EQUAL_PARAMETERS
from pipeline.scaling.results import ResultSet

HYBRID, NO_MIXING = "fnet_t5", "ff_only"
CONTROLS = (NO_MIXING, "fnet_t5_top2")
"""Arms that differ from the hybrid in one thing: the differences from them show the effect of that thing."""

_SEED = 0
_BAND = 33
_CONSTANTS = ("A", "B", "E", "alpha", "beta")
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
    multiplier: Interval | Refused
    """From the surfaces, at the largest budget."""
    multiplier_of_minima: Interval | Refused
    n_exponent_difference: Interval | Refused
    crossover: float | Refused | None
    """The budget in FLOPs at which the better one changes; None if one is better at all budgets."""


@dataclass(frozen=True, kw_only=True)
class PairView:
    """An arm against the baseline at one size: relative difference of the measure, below 0 if the arm is better."""

    arm: str
    size: str
    parameters_ratio: float
    by_budget: tuple[tuple[float, float, int], ...]
    """(budget, mean difference over its seeds, number of seeds)."""
    difference: Interval | None
    """At the budget with the most seeds (the largest of those), with a 95 % interval; None if the noise is unknown."""
    budget: float
    """Of `difference`."""
    equal_seconds: tuple[tuple[float, float], ...]
    """(seconds of a run of the baseline, difference at that time), interpolated between the arm's budgets, not beyond."""
    equal_tokens: tuple[tuple[float, float], ...]
    """The same at the raw tokens of the baseline's runs."""

    @property
    def has_equal_parameters(self) -> bool:
        return abs(self.parameters_ratio - 1) <= EQUAL_PARAMETERS


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All fits and comparisons of one set of results."""

    name: str
    measure: str
    baseline: str
    noise: NoiseFloor | Refused
    smallest: float | None
    """Smallest relative difference at one size and budget that single runs of two arms show with a power of 80 %."""
    fits: tuple[ArmFit, ...]
    comparisons: tuple[Comparison, ...]
    pairs: tuple[PairView, ...]
    controls: tuple[PairView, ...]
    """The controls against the hybrid: the effect of mixing, and of attention on top. Empty if the hybrid is the baseline."""


def analyse(results: ResultSet, baseline: str, num_draws: int = NUM_DRAWS) -> Analysis:
    """Fit every arm and compare each arm with the baseline."""
    points = results.checked.points
    arms = list(dict.fromkeys(point.arm for point in points))
    by_arm = {arm: [point for point in points if point.arm == arm] for arm in arms}
    fitted = {arm: _try(partial(fit_arm, arm, by_arm[arm])) for arm in arms}
    noise = _try(lambda: noise_floor(_independent(points)))
    return Analysis(
        name=results.name,
        measure=results.measure,
        baseline=baseline,
        noise=noise,
        smallest=None if isinstance(noise, Refused) else math.expm1(smallest_difference(noise.deviation, 1, noise.dof)),
        fits=tuple(_fit(arm, fitted[arm], by_arm[arm], num_draws) for arm in arms),
        comparisons=tuple(
            _compare((fitted[baseline], fitted[arm]), (by_arm[baseline], by_arm[arm]), num_draws)
            for arm in arms
            if arm != baseline and baseline in by_arm
        ),
        pairs=tuple(_pairs(points, baseline, noise)),
        controls=() if baseline == HYBRID else tuple(_against_the_hybrid(points, noise)),
    )


def _try(compute: Callable[[], T]) -> T | Refused:
    try:
        return compute()
    except ValueError as error:
        return Refused(str(error))


def _independent(points: Sequence[Point]) -> list[Point]:
    """For each arm and size the largest budget with several seeds only: the ends of one run share its plateau and its noise."""
    kept = []
    for arm, size in dict.fromkeys((point.arm, point.size) for point in points):
        here = [point for point in points if (point.arm, point.size) == (arm, size)]
        several = [budget for budget in {point.budget for point in here} if sum(one.budget == budget for one in here) > 1]
        if several:
            kept += [point for point in here if point.budget == max(several)]
    return kept


def _generator() -> np.random.Generator:
    return np.random.default_rng(_SEED)


def _fit(name: str, arm: FittedArm | Refused, points: Sequence[Point], num_draws: int) -> ArmFit:
    if isinstance(arm, Refused):
        return ArmFit(arm=name, num_runs=len(points), surface=arm, minima=arm, envelope=arm, held_out=arm)
    draws = _try(lambda: draw(arm, _generator(), num_draws))
    if isinstance(draws, Refused):
        return ArmFit(arm=name, num_runs=len(points), surface=draws, minima=draws, envelope=draws, held_out=draws)
    return ArmFit(
        arm=name,
        num_runs=len(points),
        surface=_surface(arm, draws, points),
        minima=_try(lambda: _minima(arm, draws, points)),
        envelope=_try(lambda: _envelope(arm, points, num_draws)),
        held_out=_try(lambda: hold_out_largest(arm, _generator(), num_draws)),
    )


def _surface(arm: FittedArm, draws: SurfaceDraws, points: Sequence[Point]) -> SurfaceFit:
    def exponents(which: str) -> Interval:
        return interval(arm, draws, lambda coefficients: getattr(frontier(coefficients, arm.cost), which))

    def constant(number: int) -> Interval:
        found = interval(arm, draws, lambda coefficients: coefficients[:, number])
        return found.exp() if number < 3 else found

    grid = np.linspace(math.log(arm.runs.flops.min()), math.log(arm.runs.flops.max()), _BAND)

    def band(value: Callable[..., Floats]) -> Band:
        found = [interval(arm, draws, partial(value, at=at)) for at in grid.tolist()]
        low, high = np.array([one.low for one in found]), np.array([one.high for one in found])
        return Band(flops=np.exp(grid), value=np.array([one.value for one in found]), low=low, high=high)

    def tokens(coefficients: Floats, at: float) -> Floats:
        return np.exp(arm.cost.log_tokens(at, frontier(coefficients, arm.cost).log_n(at)))

    return SurfaceFit(
        constants={name: constant(number) for number, name in enumerate(_CONSTANTS)},
        n_exponent=exponents("n_exponent"),
        d_exponent=exponents("d_exponent"),
        deviation=arm.deviation,
        objective=arm.surface.objective,
        starts_agreeing=arm.surface.starts_agreeing,
        cost_error=arm.cost.worst,
        residuals=tuple(
            (point.run, float(np.expm1(-residual)))
            for point, residual in zip(points, arm.surface.residuals.tolist(), strict=True)
        ),
        best_size=band(lambda coefficients, at: np.exp(frontier(coefficients, arm.cost).log_n(at))),
        best_tokens=band(tokens),
        best_loss=band(lambda coefficients, at: frontier(coefficients, arm.cost).loss(at)),
    )


def _minima(arm: FittedArm, draws: SurfaceDraws, points: Sequence[Point]) -> MinimaFit:
    design = _design(arm, points)
    found = fit_isoflops(arm.name, design)
    n, d = exponent_intervals(arm, found, design, draws)
    return MinimaFit(
        budgets=tuple(found.budgets.tolist()),
        sizes=tuple(np.exp(found.log_n[0]).tolist()),
        tokens=tuple(np.exp(found.log_d[0]).tolist()),
        losses=tuple(np.exp(found.log_loss[0]).tolist()),
        curvatures=tuple(found.curvature[0].tolist()),
        n_exponent=n,
        d_exponent=d,
    )


def _design(arm: FittedArm, points: Sequence[Point]) -> Design:
    return isoflop_design(arm.name, arm.runs, np.array([point.budget for point in points]))


def _envelope(arm: FittedArm, points: Sequence[Point], num_draws: int) -> EnvelopeFit:
    """Over curves of decayed ends: the loss of a size at each budget. Losses on a plateau are higher than decayed ones."""
    ends = _end_curves(points)
    fit_envelope(ends)
    return EnvelopeFit(*envelope_intervals(arm, ends, _generator(), num_draws))


def _end_curves(points: Sequence[Point]) -> list[Curve]:
    curves = []
    for size in dict.fromkeys(point.size for point in points):
        chosen = sorted((point for point in points if point.size == size and point.seed == 0), key=lambda one: one.flops)
        runs = columns(chosen)
        curves.append(Curve(num_parameters=chosen[0].num_parameters, tokens=runs.tokens, flops=runs.flops, loss=runs.loss))
    return curves


def _compare(
    arms: tuple[FittedArm | Refused, FittedArm | Refused], groups: tuple[Sequence[Point], Sequence[Point]], num_draws: int
) -> Comparison:
    baseline, points = groups
    name = points[0].arm
    top = max(point.flops for point in baseline)
    first, second = arms
    if isinstance(first, Refused):
        return Comparison(
            arm=name, flops=top, multiplier=first, multiplier_of_minima=first, n_exponent_difference=first, crossover=first
        )
    if isinstance(second, Refused):
        return Comparison(
            arm=name, flops=top, multiplier=second, multiplier_of_minima=second, n_exponent_difference=second, crossover=second
        )
    drawn = _try(lambda: draw_pair(first, second, _generator(), num_draws))
    if isinstance(drawn, Refused):
        return Comparison(
            arm=name, flops=top, multiplier=drawn, multiplier_of_minima=drawn, n_exponent_difference=drawn, crossover=drawn
        )

    def of_minima() -> Interval:
        pairs, both = paired_runs(first, second), (_design(first, baseline), _design(second, points))
        bias = minima_bias((first, second), both)
        if not math.isfinite(bias):
            raise ValueError("the bias of parabolas in this design is unknown: the fitted surfaces' minima do not overlap")
        return overlap_multiplier((first.name, second.name), both, pairs, _generator(), num_draws, bias)

    low = max(min(point.flops for point in group) for group in (baseline, points))
    return Comparison(
        arm=name,
        flops=top,
        multiplier=_try(lambda: compute_multiplier(first, second, drawn, top)),
        multiplier_of_minima=_try(of_minima),
        n_exponent_difference=_try(lambda: difference(first, second, drawn, n_exponent)),
        crossover=_try(lambda: crossover(first, second, low, top)),
    )


def _pairs(points: Sequence[Point], baseline: str, noise: NoiseFloor | Refused) -> list[PairView]:
    found = []
    for arm, size in dict.fromkeys((point.arm, point.size) for point in points if point.arm != baseline):
        ours = [point for point in points if (point.arm, point.size) == (arm, size)]
        theirs = [point for point in points if (point.arm, point.size) == (baseline, size)]
        by_budget = _by_budget(ours, theirs)
        if not by_budget:
            continue
        settled = max(by_budget, key=lambda entry: (entry[2], entry[0]))
        found.append(
            PairView(
                arm=arm,
                size=size,
                parameters_ratio=ours[0].num_parameters / theirs[0].num_parameters,
                by_budget=by_budget,
                difference=_with_noise(settled, noise),
                budget=settled[0],
                equal_seconds=_at_equal("seconds", ours, theirs),
                equal_tokens=_at_equal("tokens", ours, theirs),
            )
        )
    return found


def _by_budget(ours: Sequence[Point], theirs: Sequence[Point]) -> tuple[tuple[float, float, int], ...]:
    """(budget, mean relative difference over the seeds that both have, number of seeds), by ascending budget."""
    losses = {(point.budget, point.seed): point.loss for point in theirs}
    logs: dict[float, list[float]] = {}
    for point in sorted(ours, key=lambda one: (one.budget, one.seed)):
        if (point.budget, point.seed) in losses:
            logs.setdefault(point.budget, []).append(math.log(point.loss / losses[point.budget, point.seed]))
    return tuple((budget, math.expm1(float(np.mean(values))), len(values)) for budget, values in logs.items())


def _against_the_hybrid(points: Sequence[Point], noise: NoiseFloor | Refused) -> list[PairView]:
    pairs = _pairs([point for point in points if point.arm in (HYBRID, *CONTROLS)], HYBRID, noise)
    return sorted(pairs, key=lambda pair: CONTROLS.index(pair.arm))


def _with_noise(entry: tuple[float, float, int], noise: NoiseFloor | Refused) -> Interval | None:
    """Student's t interval from the noise floor. The noise of two arms is assumed to be independent, which is conservative."""
    if isinstance(noise, Refused):
        return None
    _, value, num_seeds = entry
    width = float(stats.t.ppf(0.975, noise.dof)) * noise.deviation * math.sqrt(2 / num_seeds)
    middle = math.log1p(value)
    return Interval(value, math.expm1(middle - width), math.expm1(middle + width))


def _at_equal(spent: str, ours: Sequence[Point], theirs: Sequence[Point]) -> tuple[tuple[float, float], ...]:
    """(spent, relative difference) for each run of the baseline, interpolated in logarithms between the arm's budgets."""
    own = sorted((point for point in ours if point.seed == 0), key=lambda point: float(getattr(point, spent)))
    if len(own) < 2:
        return ()
    places, losses = (np.log([getattr(point, name) for point in own]) for name in (spent, "loss"))
    found = []
    for point in theirs:
        at = float(getattr(point, spent))
        if point.seed == 0 and places[0] <= math.log(at) <= places[-1]:
            ahead = float(np.interp(math.log(at), places, losses)) - math.log(point.loss)
            found.append((at, math.expm1(ahead)))
    return tuple(sorted(found))
