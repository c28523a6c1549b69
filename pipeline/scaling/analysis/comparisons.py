"""An arm against the baseline, each at its best size: multipliers by the joint fit, by separate surfaces and by minima."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.scaling.analysis.arm_fits import design_of, generator
from pipeline.scaling.analysis.joint_fit import FittedJointly
from pipeline.scaling.analysis.outcome import Comparison, Refused, attempt
from pipeline.scaling.fit.bootstrap import FittedArm, draw_pair, paired_runs
from pipeline.scaling.fit.equivalence import Effect
from pipeline.scaling.fit.intervals import Interval
from pipeline.scaling.fit.joint.by_compute import MultiplierBand, difference_estimate, multiplier_band
from pipeline.scaling.fit.joint.leave_out import WithoutSize, without_each_size
from pipeline.scaling.fit.joint.regret import interval_with_regret, place_regrets, regret_shifts
from pipeline.scaling.fit.multiplier import compute_multiplier, crossover, difference, n_exponent
from pipeline.scaling.fit.overlap import minima_bias, overlap_multiplier
from pipeline.scaling.fit.points import Point


def compare(
    arms: tuple[FittedArm | Refused, FittedArm | Refused],
    groups: tuple[Sequence[Point], Sequence[Point]],
    joint: FittedJointly | Refused,
    regrets: Mapping[str, float],
    num_draws: int,
) -> tuple[Comparison, Effect | None]:
    """The second arm against the first, the baseline, with the effect for its test. `groups` are their points."""
    (baseline, points), (first, second) = groups, arms
    names = baseline[0].arm, points[0].arm
    top = max(point.flops for point in baseline)
    low = max(min(point.flops for point in group) for group in groups)
    band, without, loss, effect = _jointly(joint, names, regrets)
    surfaces: Interval | Refused
    minima: Interval | Refused
    exponents: Interval | Refused
    crossing: float | Refused | None
    if isinstance(first, Refused) or isinstance(second, Refused):
        surfaces = minima = exponents = crossing = first if isinstance(first, Refused) else second  # type: ignore[assignment]
    else:
        fitted = first, second
        drawn = attempt(lambda: draw_pair(*fitted, generator(), num_draws))
        if isinstance(drawn, Refused):
            surfaces = minima = exponents = crossing = drawn
        else:
            pair = drawn
            surfaces = attempt(lambda: compute_multiplier(*fitted, pair, top))
            minima = attempt(lambda: _of_minima(fitted, groups, num_draws))
            exponents = attempt(lambda: difference(*fitted, pair, n_exponent))
            crossing = attempt(lambda: crossover(*fitted, low, top))
    comparison = Comparison(
        arm=names[1],
        flops=top if isinstance(band, Refused) else float(band.flops[-1]),
        multiplier=band if isinstance(band, Refused) else band.at_largest,
        band=band,
        without_size=without,
        loss_difference=loss,
        test=None,
        multiplier_of_surfaces=surfaces,
        multiplier_of_minima=minima,
        n_exponent_difference=exponents,
        crossover=crossing,
    )
    return comparison, effect


def _jointly(
    joint: FittedJointly | Refused, names: tuple[str, str], regrets: Mapping[str, float]
) -> tuple[MultiplierBand | Refused, tuple[WithoutSize, ...], Interval | Refused, Effect | None]:
    if isinstance(joint, Refused):
        return joint, (), joint, None
    fit = joint.sharing.fit
    places = fit.model.places
    if names[1] not in places.arms:
        reason = Refused(f"{names[1]} has {dict(joint.shown.not_fitted)[names[1]]}")
        return reason, (), reason, None
    arms = places.arms.index(names[0]), places.arms.index(names[1])
    regret = place_regrets(places, regrets) if regrets else None
    band = attempt(lambda: multiplier_band(fit, arms, regret))
    without = () if isinstance(band, Refused) else without_each_size(fit, arms, math.log(band.flops[-1]))
    measured = attempt(lambda: difference_estimate(fit, arms))
    if isinstance(measured, Refused):
        return band, without, measured, None
    found = measured[1]
    low, high = interval_with_regret(fit, found, regret)
    down, up, error = (float(part[0]) for part in regret_shifts(fit, found, regret))
    value = float(found.value[0])
    effect = Effect(value=value, error=float(np.hypot(found.error[0], error)), dof=float(found.dof[0]), down=down, up=up)
    return band, without, Interval(*(math.expm1(one) for one in (value, float(low[0]), float(high[0])))), effect


def _of_minima(arms: tuple[FittedArm, FittedArm], groups: tuple[Sequence[Point], Sequence[Point]], num_draws: int) -> Interval:
    designs = design_of(arms[0], groups[0]), design_of(arms[1], groups[1])
    bias = minima_bias(arms, designs)
    if not math.isfinite(bias):
        raise ValueError("the bias of parabolas in this design is unknown: the fitted surfaces' minima do not overlap")
    return overlap_multiplier((arms[0].name, arms[1].name), designs, paired_runs(*arms), generator(), num_draws, bias)
