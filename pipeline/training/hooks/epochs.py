"""Reports how often the rows of the data have been read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.data.run_length import epochs_read
from pipeline.training.hooks.hook import Hook, StepReport

if TYPE_CHECKING:
    from pipeline.training.trainer import Trainer


class Epochs(Hook):
    """A line when a folder has been read once, twice, four times, …, and after the last step of the run."""

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        batches, data = trainer.batches, trainer.config.data
        before, now = (batches.position_after(trainer.step - 1), batches.position_after(trainer.step))
        is_last = trainer.step == trainer.config.train.steps
        doubled = any(
            int(new).bit_length() > int(old).bit_length()
            for old, new in zip(batches.order.epochs(before), batches.order.epochs(now), strict=True)
        )
        if doubled or is_last:
            trainer.hooks.on_note(trainer, f"step {trainer.step}: read {epochs_read(data, batches, now)}")
