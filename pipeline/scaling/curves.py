"""The validations of a run over its training, and when it begins to use the order of its encoder's text.

A model reads a bag of words first. Reading order comes as a jump: from one validation to the next, shuffling the text costs the
model much more. Losses before the jump say nothing about what the model can do after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.run_folder import METRICS
from pipeline.tracking.metrics import read_metrics

LEAST_SHUFFLE_COST = 0.02
"""Nats per text target token that shuffling must cost at least before a model is said to read order."""
TIMES_NOISE = 3.0
"""And it must cost this many times the noise between seeds."""


@dataclass(frozen=True, kw_only=True)
class ValidationPoint:
    """One validation over all sources. Spent so far: FLOPs, tokens, seconds."""

    step: int
    flops: float
    raw_tokens: float
    target_tokens: float
    seconds: float
    validation_loss: float | None
    text_loss: float | None = None
    """Nats per text target token on a few validation rows."""
    shuffled_text_loss: float | None = None
    """The same with the encoder's text in random order."""

    @property
    def shuffle_cost(self) -> float | None:
        if self.text_loss is None or self.shuffled_text_loss is None:
            return None
        return self.shuffled_text_loss - self.text_loss


@dataclass(frozen=True, kw_only=True)
class Jump:
    """When a run begins to read order, interpolated between two validations."""

    step: float
    flops: float
    raw_tokens: float
    is_at_first: bool
    """Whether it read order at its first validation already: the true values are smaller."""


def read_curve(run: Path) -> tuple[ValidationPoint, ...]:
    """The validations of a run folder over all sources, by ascending step. Raises ValueError for a damaged file."""
    return tuple(
        ValidationPoint(
            step=int(row["step"]),
            flops=float(row["flops"]),
            raw_tokens=float(row["raw_tokens"]),
            target_tokens=float(row.get("target_tokens", 0)),
            seconds=float(row["seconds"]),
            validation_loss=row.get("validation_loss"),
            text_loss=row.get("text_loss"),
            shuffled_text_loss=row.get("shuffled_text_loss"),
        )
        for row in read_metrics(run / METRICS)
        if row.get("source") == "all"
    )


def threshold(text_loss: float, noise: float | None) -> float:
    """The shuffle cost in nats from which on a model reads order. `noise` is the deviation of log loss between seeds."""
    return max(LEAST_SHUFFLE_COST, TIMES_NOISE * (noise or 0.0) * text_loss)


def jump_of(curve: Sequence[ValidationPoint], least: float) -> Jump | None:
    """From when on the shuffle cost stays at `least` or above for the rest of the run; None: not by the end, or not logged."""
    probed = [(point, point.shuffle_cost) for point in curve if point.shuffle_cost is not None]
    costs = [cost for _, cost in probed if cost is not None]
    below = [number for number, cost in enumerate(costs) if cost < least]
    if not costs or (below and below[-1] == len(costs) - 1):
        return None
    if not below:
        first = probed[0][0]
        return Jump(step=first.step, flops=first.flops, raw_tokens=first.raw_tokens, is_at_first=True)
    last = below[-1]
    before, after = probed[last][0], probed[last + 1][0]
    share = (least - costs[last]) / (costs[last + 1] - costs[last])

    def between(low: float, high: float) -> float:
        return low + share * (high - low)

    return Jump(
        step=between(before.step, after.step),
        flops=between(before.flops, after.flops),
        raw_tokens=between(before.raw_tokens, after.raw_tokens),
        is_at_first=False,
    )
