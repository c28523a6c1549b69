"""What a person sees of a training run on the console: loss, tokens per second, time left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.eval.evaluation_sets import ALL
from pipeline.training.hooks.hook import Hook, StepReport

if TYPE_CHECKING:
    from pipeline.training.trainer import Trainer


class TrainingProgress(Hook):
    """A bar on a terminal; a line every twentieth of the run where the output is a file. For the main rank."""

    def on_start(self, trainer: Trainer) -> None:
        self._num_steps = trainer.config.train.steps
        self._line_every = max(1, self._num_steps // 20)
        self._console = Console()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]} tokens/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=self._num_steps, completed=trainer.step, loss="-", rate="-")
        self._bar.start()

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        step, loss, rate = trainer.step, f"{report.loss:.3f}", f"{report.tokens_per_second:,.0f}"
        self._bar.update(self._task, completed=step, loss=loss, rate=rate)
        if not self._console.is_terminal and (step % self._line_every == 0 or step == self._num_steps):
            self._console.print(f"step {step}/{self._num_steps}  loss {loss}  {rate} tokens/s")

    def on_validate(self, trainer: Trainer, losses: dict[str, float]) -> None:
        found = f"validation loss {losses[ALL]:.4f}" if ALL in losses else "no validation loss: its rows have no target"
        self._console.print(f"step {trainer.step}: {found}", highlight=False)

    def on_note(self, trainer: Trainer, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)  # brackets and paths as they are

    def on_end(self, trainer: Trainer, status: str) -> None:
        self._bar.stop()
