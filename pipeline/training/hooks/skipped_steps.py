"""What follows from skipped steps. The decision to skip one is taken before the optimizer: `pipeline/optim/skip_step.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.optim.skip_step import ASKED, REASONS
from pipeline.training.hooks.hook import Hook, StepReport

if TYPE_CHECKING:
    from pipeline.training.trainer import Trainer


class SkippedSteps(Hook):
    """Reports each skipped step with its samples, and fails the run after `max_skips` in a row.

    Steps of `train.skip_steps` are neither reported nor counted.
    """

    def __init__(self, max_skips: int) -> None:
        self._max_skips = max_skips
        self._in_a_row = 0

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.skipped is None:
            self._in_a_row = 0
        elif report.skipped != REASONS[ASKED]:
            self._in_a_row += 1
            samples = trainer.batches.samples(trainer.step)
            line = (
                f"step {trainer.step} skipped ({report.skipped}): loss {report.loss:.4g}, gradient norm "
                f"{report.grad_norm:.4g}, samples {samples[0]} to {samples[-1]}"
            )
            trainer.hooks.on_note(trainer, line)
        if self._in_a_row >= self._max_skips:
            raise ValueError(
                f"{self._in_a_row} steps in a row were skipped ({report.skipped} at step {trainer.step}): the run has "
                "diverged. Lower optimizer.learning_rate, or resume from an earlier checkpoint with train.skip_steps"
            )
