"""Preemption: a signal ends the run after the current step, with a checkpoint."""

from __future__ import annotations

import logging
import signal
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.training.hooks.hook import Hook, StepReport

if TYPE_CHECKING:
    from pipeline.training.trainer import Trainer

_log = logging.getLogger(__name__)


class StopSignal:
    """Remembers that the process received SIGTERM, SIGINT or SIGUSR1 since `install`."""

    def __init__(self) -> None:
        self.received = False
        """Set at any time by the signal: hooks that take long look at it in between."""

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True


class StopOnSignal(Hook):
    """Requests a stop once this rank has received a signal. One rank's signal stops all."""

    def __init__(self, stop: StopSignal) -> None:
        self._stop = stop

    def on_start(self, trainer: Trainer) -> None:
        # not earlier: until all ranks are ready for the first step, a signal should just end them
        self._stop.install()

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        if self._stop.received:
            _log.info("stop signal received: saving and stopping")
            trainer.request_stop()
