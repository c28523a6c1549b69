"""The base class of hooks: named events in the life of a training run, as OLMo-core's callbacks.

    on_start   on_ready
      repeated:   before_step   the step   after_step   [on_validate]   [on_checkpoint]
    on_end        also after a failure

`on_activity`, `on_log`, `on_note` and `on_artifact` come in between, whenever the trainer or a hook has something to report.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The result of a step that has just ended."""

    loss: float
    """Nats per target token over the global batch. Not finite for a step that was skipped for that reason."""
    grad_norm: float
    """Global gradient norm before clipping."""
    learning_rate: float
    skipped: str | None
    """Why no update was made; None where it was."""
    seconds: float
    """Wall-clock of the whole step, `before_step` included."""
    wait_seconds: float
    """How long the step waited for its batch."""
    tokens_per_second: float
    """Encoder and decoder positions computed per second, over all replicas."""


class Hook:
    """Does nothing at every event; a subclass overrides those that it needs.

    Every rank calls its hooks at the same points, so a hook may call collectives if every rank has it. `trainer.step` is the
    step that is running or has just ended, counted from 1.
    """

    def on_start(self, trainer: Trainer) -> None:
        """The model is built and resumed, the first step comes next. `trainer.step` is the last step already done."""

    def on_ready(self, trainer: Trainer) -> None:
        """Every hook has started: events may be sent."""

    def on_activity(self, trainer: Trainer, activity: str) -> None:
        """This rank is about to do something that may take long ("training step 7"). The first calls precede `on_start`."""

    def before_step(self, trainer: Trainer) -> None:
        """A step begins; its batch has not been taken yet."""

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        """A step has ended and is counted. Here a hook may call `trainer.request_stop` or `trainer.request_checkpoint`."""

    def on_log(self, trainer: Trainer, row: dict[str, Any]) -> None:
        """A row of metrics, with the columns of metrics.jsonl."""

    def on_note(self, trainer: Trainer, line: str) -> None:
        """Something out of the ordinary that a person should read."""

    def on_validate(self, trainer: Trainer, losses: dict[str, float]) -> None:
        """A validation has ended. Losses in nats per target token by source; `all` is that of the whole split.

        A source without a target token is missing.
        """

    def on_artifact(self, trainer: Trainer, path: Path, folder: str) -> None:
        """A file was written that belongs to the results of the run; `folder` is where a tracker shows it."""

    def on_checkpoint(self, trainer: Trainer, checkpoint: Path) -> None:
        """A checkpoint is complete on disk and named by `latest`."""

    def on_end(self, trainer: Trainer, status: str) -> None:
        """The run ends as `finished`, `preempted` or `failed`. Called for every hook whose `on_start` succeeded."""


class HookList(Hook):
    """Passes every event on to several hooks, in the order of the list."""

    def __init__(self, hooks: Iterable[Hook]) -> None:
        self._hooks = list(hooks)
        self._started: list[Hook] = []

    def on_start(self, trainer: Trainer) -> None:
        for hook in self._hooks:
            hook.on_start(trainer)
            self._started.append(hook)

    def on_ready(self, trainer: Trainer) -> None:
        for hook in self._hooks:
            hook.on_ready(trainer)

    def on_activity(self, trainer: Trainer, activity: str) -> None:
        for hook in self._hooks:
            hook.on_activity(trainer, activity)

    def before_step(self, trainer: Trainer) -> None:
        for hook in self._hooks:
            hook.before_step(trainer)

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        for hook in self._hooks:
            hook.after_step(trainer, report)

    def on_log(self, trainer: Trainer, row: dict[str, Any]) -> None:
        for hook in self._hooks:
            hook.on_log(trainer, row)

    def on_note(self, trainer: Trainer, line: str) -> None:
        for hook in self._hooks:
            hook.on_note(trainer, line)

    def on_validate(self, trainer: Trainer, losses: dict[str, float]) -> None:
        for hook in self._hooks:
            hook.on_validate(trainer, losses)

    def on_artifact(self, trainer: Trainer, path: Path, folder: str) -> None:
        for hook in self._hooks:
            hook.on_artifact(trainer, path, folder)

    def on_checkpoint(self, trainer: Trainer, checkpoint: Path) -> None:
        for hook in self._hooks:
            hook.on_checkpoint(trainer, checkpoint)

    def on_end(self, trainer: Trainer, status: str) -> None:
        """Every started hook is ended, even where an earlier one raises; its error is raised afterwards."""
        with ExitStack() as ends:
            for hook in reversed(self._started):  # an ExitStack calls the last one first
                ends.callback(hook.on_end, trainer, status)
