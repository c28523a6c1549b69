"""The progress line of a training run: loss, tokens per second, time left."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class NoProgress:
    """Shows nothing: for every rank but one."""

    def __enter__(self) -> NoProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def step(self, step: int, loss: float, tokens_per_second: float) -> None: ...

    def validated(self, step: int, loss: float) -> None: ...

    def note(self, line: str) -> None: ...


class TrainingProgress(NoProgress):
    """A bar on a terminal; a line every twentieth of the run where the output is a file."""

    def __init__(self, num_steps: int, first_step: int) -> None:
        self._console = Console()
        self._num_steps = num_steps
        self._line_every = max(1, num_steps // 20)
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
        self._task = self._bar.add_task("training", total=num_steps, completed=first_step, loss="-", rate="-")

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        self._bar.update(self._task, completed=step, loss=f"{loss:.3f}", rate=f"{tokens_per_second:,.0f}")
        if not self._console.is_terminal and (step % self._line_every == 0 or step == self._num_steps):
            self._console.print(f"step {step}/{self._num_steps}  loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s")

    def validated(self, step: int, loss: float) -> None:
        self._console.print(f"step {step}: validation loss {loss:.4f}", highlight=False)

    def note(self, line: str) -> None:
        """Something out of the ordinary, as a line of its own."""
        self._console.print(line, highlight=False)
