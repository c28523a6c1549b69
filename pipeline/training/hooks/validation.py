"""Validation during training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pipeline.data.batches import PipelineBatch
from pipeline.eval.evaluation_sets import ALL
from pipeline.eval.validation import InputProbe, ValidationSet, input_probe
from pipeline.run_folder import METRICS
from pipeline.tracking.metrics import read_metrics
from pipeline.training.hooks.hook import Hook, StepReport
from pipeline.training.hooks.preemption import StopSignal

if TYPE_CHECKING:
    from pipeline.training.trainer import Trainer

_PORTION = 32
"""Micro-batches between two looks for a stop signal."""


class Validation(Hook):
    """Every `every` steps and after the last one, evaluates each validation set and logs a row for it: a collective.

    The row of all sources of an encoder-decoder also has the loss on text tokens of a few rows, and the same with the encoder's
    text in random order: the difference shows whether the model uses the order of its input.
    """

    def __init__(self, every: int, stop: StopSignal) -> None:
        self._every, self._stop = every, stop
        self._probe: InputProbe | None = None

    def on_start(self, trainer: Trainer) -> None:
        self._probe = input_probe(trainer.config, trainer.engine.shard)

    def on_ready(self, trainer: Trainer) -> None:
        # a stop signal interrupted the last validation: the weights are the same now
        is_missing = trainer.mesh.is_main and trainer.step > 0 and self._is_due(trainer) and not _has_row(trainer)
        if any(trainer.mesh.any(is_missing)):
            self._validate(trainer)

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        if self._is_due(trainer):
            self._validate(trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        return trainer.step % self._every == 0 or trainer.step == trainer.config.train.steps

    def _validate(self, trainer: Trainer) -> None:
        """Nothing is logged of a validation that a stop signal interrupts: it is done again when the run resumes."""
        trainer.report(f"validating at step {trainer.step}")
        losses: dict[str, float] = {}
        rows = []
        for part in trainer.validation_sets:
            loss = self._evaluate(trainer, part.batches)
            values: dict[str, Any] = {"validation_loss": loss, "source": part.source}
            if part.source == ALL and self._probe is not None:
                values["text_loss"] = self._evaluate(trainer, self._probe.batches)
                values["shuffled_text_loss"] = self._evaluate(trainer, self._probe.shuffled)
            if None in values.values():
                trainer.has_pending_validation = True
                return
            rows.append(_row(trainer, part, values))
            if part.target_tokens:
                losses[part.source] = values["validation_loss"]
        for row in rows:
            trainer.log(**row)
        trainer.has_pending_validation = False
        trainer.hooks.on_validate(trainer, losses)

    def _evaluate(self, trainer: Trainer, batches: list[PipelineBatch]) -> float | None:
        """The mean loss of micro-batches; None where any rank has received a stop signal meanwhile."""
        portions = [batches[start : start + _PORTION] for start in range(0, len(batches), _PORTION)]
        losses = []
        for portion in portions:
            trainer.report(f"validating at step {trainer.step}")
            if any(trainer.mesh.any(self._stop.received)):
                return None
            losses.append(trainer.engine.evaluate(portion))
        if len(losses) == 1:
            return losses[0]
        return math.fsum(loss * len(portion) for loss, portion in zip(losses, portions, strict=True)) / len(batches)


def _row(trainer: Trainer, part: ValidationSet, values: dict[str, Any]) -> dict[str, Any]:
    """The columns of metrics.jsonl. Without a target the loss is unknown (null): it is not 0."""
    tokens = {"validation_target_tokens": part.target_tokens}
    if not part.target_tokens:
        return {"validation_loss": None, "source": part.source, **tokens}
    bits = part.bits_per_byte(values["validation_loss"])
    # an encoder's loss includes the order of its segments, which is no text
    if bits is not None and not trainer.config.model.is_encoder_only:
        values["bits_per_byte"] = bits
    return {**values, **tokens}


def _has_row(trainer: Trainer) -> bool:
    rows = read_metrics(trainer.run_folder / METRICS)
    return any(row["step"] == trainer.step and row.get("source") == ALL for row in rows)
