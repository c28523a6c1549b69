"""Arms against the baseline at one size: at equal FLOPs, seconds and text, with intervals from the noise of seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from pipeline.scaling.analysis.outcome import PairView, Refused
from pipeline.scaling.fit.equivalence import Effect
from pipeline.scaling.fit.intervals import Interval
from pipeline.scaling.fit.noise import NoiseFloor
from pipeline.scaling.fit.points import Point

HYBRIDS = ("fnet_t5_positions", "fnet_t5")
NO_MIXING = ("ff_only_positions", "ff_only")
CONTROLS = {
    "fnet_t5_positions": ("ff_only_positions", "fnet_t5_top2_positions"),
    "fnet_t5": ("ff_only_positions", "ff_only", "fnet_t5_top2"),
}
"""Arms that differ from a hybrid in one thing: the differences from them show the effect of that thing. Fourier mixing brings
positions, which `ff_only` has not, so the hybrid without learnt positions is compared with `ff_only_positions`, too."""


def size_pairs(
    points: Sequence[Point], baseline: str, noise: NoiseFloor | Refused, regrets: Mapping[str, float]
) -> list[tuple[PairView, Effect | None]]:
    """Every arm against the baseline at each size that both have, with the effect for its test."""
    found = []
    for arm, size in dict.fromkeys((point.arm, point.size) for point in points if point.arm != baseline):
        ours = [point for point in points if (point.arm, point.size) == (arm, size)]
        theirs = [point for point in points if (point.arm, point.size) == (baseline, size)]
        by_budget = _by_budget(ours, theirs)
        if not by_budget:
            continue
        settled = max(by_budget, key=lambda entry: (entry[2], entry[0]))
        effect = _effect(settled, noise, _regret(ours, settled, regrets), _regret(theirs, settled, regrets))
        view = (
            PairView(
                arm=arm,
                against=baseline,
                size=size,
                parameters_ratio=ours[0].num_parameters / theirs[0].num_parameters,
                by_budget=by_budget,
                difference=None if effect is None else _interval(effect),
                budget=settled[0],
                test=None,
                equal_seconds=_at_equal("seconds", ours, theirs),
                equal_tokens=_at_equal("tokens", ours, theirs),
            ),
            effect,
        )
        found.append(view)
    return found


def _by_budget(ours: Sequence[Point], theirs: Sequence[Point]) -> tuple[tuple[float, float, int], ...]:
    """(budget, mean relative difference over the seeds that both have, number of seeds), by ascending budget."""
    losses = {(point.budget, point.seed): point.loss for point in theirs}
    logs: dict[float, list[float]] = {}
    for point in sorted(ours, key=lambda one: (one.budget, one.seed)):
        if (point.budget, point.seed) in losses:
            logs.setdefault(point.budget, []).append(math.log(point.loss / losses[point.budget, point.seed]))
    return tuple((budget, math.expm1(float(np.mean(values))), len(values)) for budget, values in logs.items())


def controls(
    points: Sequence[Point], noise: NoiseFloor | Refused, regrets: Mapping[str, float]
) -> list[tuple[PairView, Effect | None]]:
    """The controls against their hybrids."""
    found = []
    for hybrid, arms in CONTROLS.items():
        own = size_pairs([point for point in points if point.arm in (hybrid, *arms)], hybrid, noise, regrets)
        found += sorted(own, key=lambda entry: arms.index(entry[0].arm))
    return found


def _effect(entry: tuple[float, float, int], noise: NoiseFloor | Refused, ours: float, theirs: float) -> Effect | None:
    """From the noise floor. The noise of two arms is assumed to be independent, which is conservative. With the best learning
    rates the arm's loss would be lower by `ours`, the baseline's by `theirs`, at most."""
    if isinstance(noise, Refused):
        return None
    _, value, num_seeds = entry
    error = noise.deviation * math.sqrt(2 / num_seeds)
    return Effect(value=math.log1p(value), error=error, dof=noise.dof, down=ours, up=theirs)


def _regret(points: Sequence[Point], entry: tuple[float, float, int], regrets: Mapping[str, float]) -> float:
    """Mean regret of the runs of an arm and size at a budget, in log loss."""
    return math.log1p(float(np.mean([regrets.get(point.run, 0.0) for point in points if point.budget == entry[0]])))


def _interval(effect: Effect) -> Interval:
    width = float(stats.t.ppf(0.975, effect.dof)) * effect.error
    bounds = effect.value, effect.value - effect.down - width, effect.value + effect.up + width
    return Interval(*(math.expm1(bound) for bound in bounds))


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
