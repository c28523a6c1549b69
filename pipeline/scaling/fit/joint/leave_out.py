"""How a multiplier depends on single sizes: the joint fit again without each of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.scaling.fit.intervals import Interval
from pipeline.scaling.fit.joint.by_compute import multiplier_estimate
from pipeline.scaling.fit.joint.surfaces import JointFit, fit_jointly


@dataclass(frozen=True, kw_only=True)
class WithoutSize:
    """The multiplier of a fit without one size."""

    size: str
    multiplier: Interval | None
    refused: str | None = None
    """Why there is none."""


def without_each_size(fit: JointFit, arms: tuple[int, int], log_c: float) -> tuple[WithoutSize, ...]:
    """The multiplier of the second arm over the first at the first's compute `log_c`, without the runs of one size in all arms.

    The same constants are shared as in `fit`. Sizes that neither arm has are not left out.
    """
    places, found = fit.model.places, []
    own = [size for size, arm in zip(places.sizes, places.arm.tolist(), strict=True) if arm in arms]
    for size in dict.fromkeys(own):
        rest = places.take(np.flatnonzero([one != size for one in places.sizes]))
        try:
            for arm in arms:
                left = len({one for one, number in zip(rest.sizes, rest.arm.tolist(), strict=True) if number == arm})
                if rest.arms != places.arms or left < 3:
                    raise ValueError(f"{places.arms[arm]} has {left} sizes without {size}, too few for a surface")
            smaller = fit_jointly(rest, fit.model.shared, fit.model.with_kappa)
            estimate = multiplier_estimate(smaller, arms, np.array([log_c]))
        except ValueError as error:
            found.append(WithoutSize(size=size, multiplier=None, refused=str(error)))
            continue
        value, width = float(estimate.value[0]), float(estimate.half_width()[0])
        found.append(WithoutSize(size=size, multiplier=Interval(value, value - width, value + width).exp()))
    return tuple(found)
