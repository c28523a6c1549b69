"""One result of a comparison: a finished run with all that a report shows of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.eval.measurements import Measurements
from pipeline.scaling.curves import ValidationPoint
from pipeline.scaling.fit.points import Point
from pipeline.scaling.ladder.planned_runs import FEWEST_STEPS, FEWEST_TOKENS, FEWEST_WARMUP


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run: its point and what else a report shows. What an archived table does not hold is None or empty."""

    point: Point
    name: str
    """Of its folder."""
    folder: Path | None
    """None for a result of an archived table."""
    objective: str
    own_loss: float
    """Last validation loss, nats per target token of its own objective."""
    sources: dict[str, float]
    """Bits per byte by source; empty if suffix bits per byte were not evaluated."""
    steps: int
    warmup_steps: int | None
    rows: int
    learning_rate: float
    encoder_tokens: float
    decoder_tokens: float
    target_tokens: float
    memory_gb: float | None
    """Peak memory of the process, or of the device, in GB."""
    non_embedding: int
    needed_flops: float | None
    """Training FLOPs with the head only where there is a loss, and causal attention at half."""
    shape: str
    """Layers x width and heads of the model that was trained."""
    config: dict[str, Any]
    provenance: dict[str, str]
    measurements: Measurements | None
    curve: tuple[ValidationPoint, ...]

    @property
    def shuffle_cost(self) -> float | None:
        """At its end, as measured, or at its last validation. None for a model of one stack, or where it is not known."""
        if self.measurements is not None:
            return self.measurements.shuffle_cost
        return self.curve[-1].shuffle_cost if self.curve else None

    @property
    def text_loss(self) -> float | None:
        """Nats per text target token at its end."""
        if self.measurements is not None:
            return self.measurements.text_loss
        return self.curve[-1].text_loss if self.curve else None

    @property
    def tokens_per_parameter(self) -> float:
        return self.point.tokens / self.point.num_parameters

    @property
    def is_short(self) -> bool:
        """Whether it made less than 1,000 steps or 200 of warm-up, or read less than 3 raw tokens a parameter."""
        warms_up_briefly = self.warmup_steps is not None and self.warmup_steps < FEWEST_WARMUP
        return warms_up_briefly or self.steps < FEWEST_STEPS or self.tokens_per_parameter < FEWEST_TOKENS
