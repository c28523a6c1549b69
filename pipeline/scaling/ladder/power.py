"""The power of a design before any run, from an assumed loss surface and noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline.scaling.fit.bootstrap import fit_columns
from pipeline.scaling.fit.multiplier import detectable_multiplier
from pipeline.scaling.fit.points import Columns
from pipeline.scaling.fit.surface import FEWEST_RUNS, log_loss
from pipeline.scaling.ladder.recipe import AssumedConfig

_SEED, _DRAWS = 0, 1000


def detectable(assumed: AssumedConfig, places: Sequence[tuple[float, float, float]]) -> float | None:
    """The compute multiplier below 1 that two arms with runs at these (parameters, tokens, FLOPs) show with a power of 80 %,
    at the largest budget; None if the runs are too few for a surface."""
    n, d, c = (np.array(column, dtype=np.float64) for column in zip(*places, strict=True))
    if len(n) < FEWEST_RUNS or len(np.unique(n)) < 3:
        return None
    coefficients = np.array([*np.log([assumed.A, assumed.B, assumed.E]), assumed.alpha, assumed.beta])
    losses = np.exp(log_loss(coefficients[None], np.log(n), np.log(d))[0])
    design = fit_columns("assumed", Columns(num_parameters=n, tokens=d, flops=c, loss=losses))
    found = detectable_multiplier(design, assumed.deviation, float(c.max()), np.random.default_rng(_SEED), _DRAWS)
    return float(found) if math.isfinite(found) else None
