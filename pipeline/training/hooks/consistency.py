"""The replica consistency check between steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.distributed.consistency import check_replica_consistency
from pipeline.training.hooks.hook import Hook

if TYPE_CHECKING:
    from pipeline.training.trainer import Trainer


class ReplicaConsistency(Hook):
    """Every `every` steps, fails the run if copies of weights or the data order differ between ranks: a collective."""

    def __init__(self, every: int) -> None:
        self._every = every

    def before_step(self, trainer: Trainer) -> None:
        if trainer.step % self._every == 0:
            check_replica_consistency(trainer.engine.stages, trainer.mesh, trainer.batches.sample_rows(trainer.step))
