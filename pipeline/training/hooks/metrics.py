"""metrics.jsonl: which steps get a row, what is in it, and the file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pipeline.run_folder import METRICS
from pipeline.tracking.metrics import MetricsFile
from pipeline.tracking.throughput import Throughput
from pipeline.training.hooks.hook import Hook, StepReport

if TYPE_CHECKING:
    from pipeline.training.trainer import Trainer


class StepMetrics(Hook):
    """Logs a row for the first step, every `every` steps, the last step, and each skipped one."""

    def __init__(self, every: int) -> None:
        self._every = every

    def on_start(self, trainer: Trainer) -> None:
        flops = trainer.config.train.global_batch_size * trainer.flops_per_row
        self._throughput = Throughput(trainer.mesh, flops, trainer.engine.accumulation_steps)

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        is_planned = trainer.step in (1, trainer.config.train.steps) or trainer.step % self._every == 0
        if not is_planned and report.skipped is None:
            return
        values = {"loss": report.loss, "grad_norm": report.grad_norm, "learning_rate": report.learning_rate}
        # JSON knows no NaN, and neither do reports: a value that is not finite has no column
        row: dict[str, Any] = {name: value for name, value in values.items() if math.isfinite(value)}
        if report.skipped is not None:
            row["skipped"] = report.skipped
        batches = trainer.batches
        position = batches.position_after(trainer.step)
        row["epoch"] = float(batches.order.epochs(position).max())
        row["repeated_rows"] = batches.order.repeated_rows(position)
        row["tokens_per_second"] = report.tokens_per_second
        trainer.log(**row, **self._throughput.step(report.seconds, report.wait_seconds))


class MetricsWriter(Hook):
    """Writes every logged row to metrics.jsonl. For the main rank."""

    def on_start(self, trainer: Trainer) -> None:
        self._file = MetricsFile(trainer.run_folder / METRICS, resume_step=trainer.step)

    def on_log(self, trainer: Trainer, row: dict[str, Any]) -> None:
        self._file.write(row)

    def on_end(self, trainer: Trainer, status: str) -> None:
        self._file.close()
