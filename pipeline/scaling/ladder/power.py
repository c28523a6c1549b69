"""The power of a design before any run, from an assumed loss surface and noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline.scaling.fit.bootstrap import fit_columns
from pipeline.scaling.fit.joint.simulated import PlannedResult, PredictedInterval, predicted_interval
from pipeline.scaling.fit.multiplier import detectable_multiplier
from pipeline.scaling.fit.points import Columns, Floats
from pipeline.scaling.fit.surface import FEWEST_RUNS, log_loss
from pipeline.scaling.ladder.planned_runs import PlannedRun
from pipeline.scaling.ladder.recipe import AssumedConfig, LadderRecipe

_SEED, _DRAWS = 0, 1000


def planned_results(runs: Sequence[PlannedRun], arms: Sequence[str]) -> list[PlannedResult]:
    """The ends of the main runs of `arms`, in their order, under the first objective."""
    return [
        PlannedResult(
            arm=run.arm,
            size=run.size,
            budget=end.budget,
            seed=run.seed,
            num_parameters=run.num_parameters,
            tokens=end.tokens,
            flops=end.flops,
        )
        for arm in arms
        for run in runs
        if (run.phase, run.objective, run.arm) == ("main", 0, arm)
        for end in run.ends
    ]


def predicted(recipe: LadderRecipe, runs: Sequence[PlannedRun], arm: str) -> PredictedInterval:
    """The interval that the first objective's ladder is expected to give for an arm against the baseline, whose surface the
    recipe assumes. Raises ValueError if the runs give no multiplier."""
    assert recipe.assumed is not None
    ends = planned_results(runs, (recipe.baseline, arm))
    return predicted_interval(ends, _coefficients(recipe.assumed))


def detectable(assumed: AssumedConfig, places: Sequence[tuple[float, float, float]]) -> float | None:
    """The compute multiplier below 1 that two arms with runs at these (parameters, tokens, FLOPs) show with a power of 80 %,
    at the largest budget; None if the runs are too few for a surface."""
    n, d, c = (np.array(column, dtype=np.float64) for column in zip(*places, strict=True))
    if len(n) < FEWEST_RUNS or len(np.unique(n)) < 3:
        return None
    coefficients = _coefficients(assumed)
    losses = np.exp(log_loss(coefficients[None], np.log(n), np.log(d))[0])
    design = fit_columns("assumed", Columns(num_parameters=n, tokens=d, flops=c, loss=losses))
    found = detectable_multiplier(design, assumed.deviation, float(c.max()), np.random.default_rng(_SEED), _DRAWS)
    return float(found) if math.isfinite(found) else None


def _coefficients(assumed: AssumedConfig) -> Floats:
    return np.array([*np.log([assumed.A, assumed.B, assumed.E]), assumed.alpha, assumed.beta])
