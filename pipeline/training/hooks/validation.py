"""Validation during training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.training.hooks.hook import Hook, StepReport

if TYPE_CHECKING:
    from pipeline.training.trainer import Trainer


class Validation(Hook):
    """Every `every` steps and after the last one, evaluates each validation set and logs a row for it: a collective."""

    def __init__(self, every: int) -> None:
        self._every = every

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        if trainer.step % self._every != 0 and trainer.step != trainer.config.train.steps:
            return
        trainer.hooks.on_activity(trainer, f"validating at step {trainer.step}")
        losses = {}
        for part in trainer.validation_sets:
            loss = losses[part.source] = trainer.engine.evaluate(part.batches)
            values: dict[str, Any] = {"validation_loss": loss, "source": part.source}
            bits = part.bits_per_byte(loss)
            # an encoder's loss includes the order of its segments, which is no text
            if bits is not None and not trainer.config.model.is_encoder_only:
                values["bits_per_byte"] = bits
            trainer.log(**values, validation_target_tokens=part.target_tokens)
        trainer.hooks.on_validate(trainer, losses)
