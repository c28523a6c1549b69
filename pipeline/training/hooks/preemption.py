"""Preemption: a signal ends the run after the current step, with a checkpoint. Before the first step it ends it at once."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.training.hooks.hook import Hook, StepReport

if TYPE_CHECKING:
    from pipeline.training.trainer import Trainer

_log = logging.getLogger(__name__)

BEFORE_FIRST_STEP = "before the first step"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class StopSignal:
    """SIGTERM, SIGINT, SIGUSR1 and SIGHUP: remembered from `install` on. Before it they end the process."""

    def __init__(self) -> None:
        self.received = False
        """Set at any time by the signal: hooks that take long look at it in between."""
        self.at_start: Callable[[str], None] = lambda reason: None
        """Called with the reason, within `watched`, when a signal ends the process before `install`."""
        self._is_installed = False

    def install(self) -> None:
        """From now on all ranks are ready for the first step: a signal waits for its end and a save."""
        self._is_installed = True
        for number in _not_ignored():
            signal.signal(number, self._receive)

    @contextmanager
    def watched(self, exit_code: int) -> Iterator[None]:
        """Until `install` a signal ends the process with `exit_code`, after `at_start`. For the main thread.

        A thread does it: the main one may be waiting for other ranks in a library, where Python calls no signal handler.
        """
        earlier = {number: signal.getsignal(number) for number in _not_ignored()}
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        for number in earlier:
            signal.signal(number, lambda number, frame: None)  # any handler of Python's has the number written to the pipe
        before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        watching = [True]

        def forget() -> None:
            if watching:  # a signal to a forked process would come through the same pipe
                signal.set_wakeup_fd(-1)
                for number in earlier:
                    signal.signal(number, signal.SIG_DFL)

        os.register_at_fork(after_in_child=forget)
        threading.Thread(target=self._end_at_signal, args=(read_end, exit_code), name="signals", daemon=True).start()
        try:
            yield
        finally:
            watching.clear()
            signal.set_wakeup_fd(before)
            for number, handler in earlier.items():
                signal.signal(number, handler)
            os.close(write_end)  # which ends the thread

    def _end_at_signal(self, read_end: int, exit_code: int) -> None:
        while data := os.read(read_end, 1):
            if self._is_installed:
                self.received = True
            elif data[0] in _SIGNALS:
                reason = f"stopped by {signal.Signals(data[0]).name} {BEFORE_FIRST_STEP}"
                try:
                    self.at_start(reason)
                    os.write(2, f"{reason}\n".encode())
                finally:
                    os._exit(exit_code)
        os.close(read_end)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True


def _not_ignored() -> list[signal.Signals]:
    """The signals that stop a run, but those that whoever started this process ignores, as nohup does SIGHUP."""
    return [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


class StopOnSignal(Hook):
    """Requests a stop once this rank has received a signal. One rank's signal stops all."""

    def __init__(self, stop: StopSignal) -> None:
        self._stop = stop

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        if self._stop.received:
            _log.info("stop signal received: saving and stopping")
            trainer.request_stop()
