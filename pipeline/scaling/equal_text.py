"""How far one arm is ahead of another at equal text: between the ends of runs, or on the curves at the peak learning rate.

Ends of runs can be compared at equal text where the other arm has several budgets around it. With one budget, the arm that
costs less per token has read more text at its end. The validations before the learning rate decays can be compared at any text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.config import OptimizerConfig
from pipeline.optim.lr_schedule import learning_rate
from pipeline.scaling.curves import ValidationPoint
from pipeline.scaling.fit.points import Point
from pipeline.scaling.run_result import RunResult

_EQUAL = 0.01
"""Texts whose lengths differ by less than this share are equal."""


@dataclass(frozen=True, kw_only=True)
class Lead:
    """How far an arm is ahead of another at one size."""

    log_lead: float
    """Log loss of the other arm minus that of the arm."""
    text_of_other: float
    """Raw tokens that the other arm had read over those of the arm; 1 if read at equal text."""
    noise: float
    """Standard deviation of log loss between seeds, at this place."""
    is_on_plateau: bool = False
    """Whether validations at the peak learning rate were compared, and not ends of runs."""

    @property
    def note(self) -> str:
        if self.is_on_plateau:
            return " (before the learning rate decays)"
        if self.text_of_other == 1:
            return ""
        return f" (not at equal text: the control had read {self.text_of_other:.2f} times as much)"

    def is_above(self, times: float) -> bool | None:
        """Whether it exceeds `times` the noise. None if the side with less text is behind: equal text could turn that."""
        if self.log_lead > times * self.noise:
            return True if self.text_of_other >= 1 else None
        return False if self.text_of_other <= 1 else None


def lead(ours: Sequence[RunResult], theirs: Sequence[RunResult], noise: float, times: float) -> Lead:
    """The lead of runs at one place over all runs of another arm at the same size.

    Ends are compared first. If they leave it open whether the lead exceeds `times` the noise, because texts differ, the curves
    are compared, where both arms have them.
    """
    by_ends = _lead_by_ends([one.point for one in ours], [one.point for one in theirs], noise)
    if by_ends.is_above(times) is None:
        return _lead_on_plateau(ours, theirs, noise) or by_ends
    return by_ends


def plateau(run: RunResult) -> tuple[ValidationPoint, ...]:
    """The validations of a run at its peak learning rate, after the warm-up and before any decay."""
    values = run.config.get("optimizer")
    if not values:
        return ()
    optimizer = OptimizerConfig.model_validate(values)
    peak = optimizer.learning_rate
    return tuple(
        point
        for point in run.curve
        if point.step >= optimizer.warmup_steps and learning_rate(point.step, run.steps, optimizer) == peak
    )


def _lead_by_ends(ours: Sequence[Point], theirs: Sequence[Point], noise: float) -> Lead:
    """At our text, means over seeds, read between the other arm's budgets in logarithms, never beyond them."""
    at, ours_loss = math.log(ours[0].tokens), float(np.mean([math.log(point.loss) for point in ours]))
    places = sorted({point.budget for point in theirs})
    grouped = [[point for point in theirs if point.budget == budget] for budget in places]
    tokens = [math.log(group[0].tokens) for group in grouped]
    losses = [float(np.mean([math.log(point.loss) for point in group])) for group in grouped]
    nearest = min(max(at, tokens[0]), tokens[-1])
    share = math.exp(nearest - at)
    log_lead = float(np.interp(nearest, tokens, losses)) - ours_loss
    return Lead(log_lead=log_lead, text_of_other=1.0 if math.isclose(share, 1, rel_tol=_EQUAL) else share, noise=noise)


def _lead_on_plateau(ours: Sequence[RunResult], theirs: Sequence[RunResult], noise: float) -> Lead | None:
    """At the most text that all of these runs had read at their peak rates. None where a run has no such validations.

    Losses are those on text targets if all validations have logged them, else those of the objective.
    """
    plateaus = [[plateau(run) for run in side] for side in (ours, theirs)]
    points = [point for side in plateaus for run in side for point in run]
    by_text = all(point.text_loss is not None for point in points)
    mine, others = [[_losses(run, by_text) for run in side] for side in plateaus]
    curves = [*mine, *others]
    if not all(tokens for tokens, _ in curves):
        return None
    at = min(tokens[-1] for tokens, _ in curves)
    if at < max(tokens[0] for tokens, _ in curves):
        return None
    sides = [np.array([np.interp(at, *curve) for curve in side]) for side in (mine, others)]
    squares = sum(float(np.sum((side - side.mean()) ** 2)) for side in sides)
    freedom = len(curves) - 2
    here = math.sqrt(squares / freedom) if freedom else 0.0
    log_lead = float(sides[1].mean() - sides[0].mean())
    return Lead(log_lead=log_lead, text_of_other=1.0, noise=max(noise, here), is_on_plateau=True)


def _losses(points: Sequence[ValidationPoint], by_text: bool) -> tuple[list[float], list[float]]:
    """Logarithms of raw tokens and of losses: on text targets, or of the objective."""
    losses = [point.text_loss if by_text else point.validation_loss for point in points]
    found = [(point.raw_tokens, loss) for point, loss in zip(points, losses, strict=True) if loss is not None]
    return [math.log(tokens) for tokens, _ in found], [math.log(loss) for _, loss in found]
