"""The joint fit of all arms with enough runs, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.scaling.analysis.outcome import JointSurfaces
from pipeline.scaling.fit.joint.sharing import Sharing, choose_sharing
from pipeline.scaling.fit.joint.surfaces import joint_places, too_few
from pipeline.scaling.fit.points import Point

_CONSTANTS = ("A", "B", "E", "alpha", "beta", "kappa")


@dataclass(frozen=True)
class FittedJointly:
    """The fit, and what a report shows of it."""

    sharing: Sharing
    shown: JointSurfaces


def fit_arms_jointly(points: Sequence[Point], baseline: str) -> FittedJointly:
    """Fit the arms with enough runs together, the baseline first.

    Raises ValueError if the baseline or all others have too few runs, or if the fit is refused.
    """
    by_arm = {arm: [point for point in points if point.arm == arm] for arm in dict.fromkeys(point.arm for point in points)}
    few = {arm: reason for arm, own in by_arm.items() if (reason := too_few(own)) is not None}
    if baseline not in by_arm or baseline in few:
        raise ValueError(f"the baseline {baseline} has {few.get(baseline, 'no runs')}")
    others = [arm for arm in by_arm if arm != baseline and arm not in few]
    if not others:
        raise ValueError(f"no arm besides {baseline} has enough runs: {'; '.join(f'{arm} has {few[arm]}' for arm in few)}")
    places = joint_places([point for arm in (baseline, *others) for point in by_arm[arm]])
    sharing = choose_sharing(places)
    fit = sharing.fit
    every = [fit.model.of_arm(fit.coefficients[None], number)[0].tolist() for number in range(len(places.arms))]
    constants = {
        arm: dict(zip(_CONSTANTS, (*map(math.exp, own[:3]), *own[3:]), strict=True))
        for arm, own in zip(places.arms, every, strict=True)
    }
    errors = zip(places.arm.tolist(), places.sizes, places.runs.flops.tolist(), np.expm1(fit.residuals).tolist(), strict=True)
    return FittedJointly(
        sharing,
        JointSurfaces(
            arms=places.arms,
            not_fitted=tuple(few.items()),
            shared=sharing.shared,
            tests=sharing.tests,
            untested=sharing.untested,
            constants=constants,
            num_runs=sum(len(seeds) for seeds in places.seeds),
            num_places=len(places.sizes),
            deviation=math.sqrt(fit.squares / fit.dof),
            residuals=tuple((places.arms[arm], size, flops, error) for arm, size, flops, error in errors),
        ),
    )
