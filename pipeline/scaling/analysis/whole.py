"""The analysis of a set of results: all fits and comparisons, and the tests of the differences as one family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from pipeline.scaling.analysis.arm_fits import fit_all
from pipeline.scaling.analysis.comparisons import compare
from pipeline.scaling.analysis.joint_fit import fit_arms_jointly
from pipeline.scaling.analysis.outcome import Analysis, Comparison, PairView, Refused, attempt
from pipeline.scaling.analysis.size_pairs import HYBRIDS, controls, size_pairs
from pipeline.scaling.fit.bootstrap import fit_arm
from pipeline.scaling.fit.equivalence import Effect, EffectTest, judge
from pipeline.scaling.fit.intervals import NUM_DRAWS
from pipeline.scaling.fit.noise import noise_floor, smallest_difference
from pipeline.scaling.fit.points import Point
from pipeline.scaling.results import ResultSet

Tested = TypeVar("Tested", Comparison, PairView)


@dataclass(frozen=True, kw_only=True)
class AnalysisOptions:
    """What the plan and the runs say beside the losses."""

    margin: float | None = None
    """Relative difference of losses up to which two arms count as equivalent; None: equivalence is not tested."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Reasons by run (as in `Point.run`): results that no fit reads, such as those before a model reads order."""
    regrets: Mapping[str, float] = field(default_factory=dict)
    """Relative loss by run that its learning rate cost (`fit/joint/regret.py`)."""


def analyse(results: ResultSet, baseline: str, options: AnalysisOptions | None = None, num_draws: int = NUM_DRAWS) -> Analysis:
    """Fit every arm by itself and all together, and compare each arm with the baseline.

    Comparisons at one size read all results, fits those that are not left out.
    """
    options = options or AnalysisOptions()
    every = results.checked.points
    left_out = {point.run: options.left_out[point.run] for point in every if point.run in options.left_out}
    points = [point for point in every if point.run not in left_out]
    arms = list(dict.fromkeys(point.arm for point in every))
    by_arm = {arm: [point for point in points if point.arm == arm] for arm in arms}
    fitted = {arm: attempt(partial(fit_arm, arm, by_arm[arm])) for arm in arms}
    joint = attempt(lambda: fit_arms_jointly(points, baseline))
    noise = attempt(lambda: noise_floor(_independent(every)))
    compared = [
        compare((fitted[baseline], fitted[arm]), (by_arm[baseline], by_arm[arm]), joint, options.regrets, num_draws)
        for arm in arms
        if arm != baseline and by_arm[arm] and by_arm.get(baseline)
    ]
    pairs = size_pairs(every, baseline, noise, options.regrets)
    against_hybrid = [] if baseline in HYBRIDS else controls(every, noise, options.regrets)
    tests = _judged([effect for _, effect in (*compared, *pairs, *against_hybrid)], options.margin)
    return Analysis(
        name=results.name,
        measure=results.measure,
        baseline=baseline,
        noise=noise,
        smallest=None if isinstance(noise, Refused) else math.expm1(smallest_difference(noise.deviation, 1, noise.dof)),
        margin=options.margin,
        left_out=tuple(left_out.items()),
        regrets={point.run: options.regrets[point.run] for point in every if point.run in options.regrets},
        joint=joint if isinstance(joint, Refused) else joint.shown,
        fits=tuple(fit_all(arm, fitted[arm], by_arm[arm], num_draws) for arm in arms),
        comparisons=tuple(_tested(one, tests.pop(0)) for one, _ in compared),
        pairs=tuple(_tested(one, tests.pop(0)) for one, _ in pairs),
        controls=tuple(_tested(one, tests.pop(0)) for one, _ in against_hybrid),
    )


def _judged(effects: Sequence[Effect | None], margin: float | None) -> list[EffectTest | None]:
    """The tests of all effects as one family, in their order; None where the noise is unknown."""
    tests = judge([effect for effect in effects if effect is not None], margin)
    return [None if effect is None else tests.pop(0) for effect in effects]


def _tested(view: Tested, test: EffectTest | None) -> Tested:
    return replace(view, test=test)


def _independent(points: Sequence[Point]) -> list[Point]:
    """For each arm and size the largest budget with several seeds only: the ends of one run share its plateau and its noise."""
    kept = []
    for arm, size in dict.fromkeys((point.arm, point.size) for point in points):
        here = [point for point in points if (point.arm, point.size) == (arm, size)]
        several = [budget for budget in {point.budget for point in here} if sum(one.budget == budget for one in here) > 1]
        if several:
            kept += [point for point in here if point.budget == max(several)]
    return kept
