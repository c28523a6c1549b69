"""Validation during training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.eval.evaluation_sets import ALL
from pipeline.eval.validation import InputProbe, input_probe
from pipeline.training.hooks.hook import Hook, StepReport

if TYPE_CHECKING:
    from pipeline.training.trainer import Trainer


class Validation(Hook):
    """Every `every` steps and after the last one, evaluates each validation set and logs a row for it: a collective.

    The row of all sources of an encoder-decoder also has the loss on text tokens of a few rows, and the same with the encoder's
    text in random order: the difference shows whether the model uses the order of its input.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._probe: InputProbe | None = None

    def on_start(self, trainer: Trainer) -> None:
        self._probe = input_probe(trainer.config, trainer.engine.shard)

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
            if part.source == ALL and self._probe is not None:
                values["text_loss"] = trainer.engine.evaluate(self._probe.batches)
                values["shuffled_text_loss"] = trainer.engine.evaluate(self._probe.shuffled)
            trainer.log(**values, validation_target_tokens=part.target_tokens)
        trainer.hooks.on_validate(trainer, losses)
