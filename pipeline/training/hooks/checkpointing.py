"""When a run is saved, and which checkpoints are kept."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.checkpoint.retention import prune
from pipeline.training.hooks.hook import Hook, StepReport

if TYPE_CHECKING:
    from pipeline.training.trainer import Trainer


class Checkpointing(Hook):
    """Requests a checkpoint by step and by time, and removes old ones after each.

    The end of a run is always saved. While steps are not finite nothing is saved, and so nothing is removed.
    """

    def __init__(
        self,
        *,
        every: int,
        steps: Collection[int] = (),
        minutes: float | None = None,
        keep_last: int | None = None,
        keep_every: int | None = None,
    ) -> None:
        """Every `every` steps, after each of `steps` (never removed), and `minutes` after the last one.

        `keep_last` and `keep_every` as in `prune`.
        """
        self._every, self._steps, self._minutes = every, steps, minutes
        self._keep_last, self._keep_every = keep_last, keep_every

    def on_start(self, trainer: Trainer) -> None:
        self._last_save = time.monotonic()

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        # the main rank's clock decides for all
        minutes = (time.monotonic() - self._last_save) / 60
        is_due = self._minutes is not None and minutes >= self._minutes and trainer.mesh.is_main
        if is_due or trainer.step % self._every == 0 or trainer.step in self._steps:
            trainer.request_checkpoint()

    def on_checkpoint(self, trainer: Trainer, checkpoint: Path) -> None:
        self._last_save = time.monotonic()
        if trainer.mesh.is_main:
            prune(trainer.run_folder, self._keep_last, self._keep_every, self._steps)
