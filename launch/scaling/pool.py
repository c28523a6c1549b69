"""Several runs of a ladder at the same time: one process and one log each, sweeps before the runs that need them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launch.local import PREEMPTED_EXIT
from pipeline.scaling.ladder.ladder import Ladder, PlannedRun
from pipeline.scaling.ladder.states import state_of

_POLL_SECONDS = 0.5
_STOPPING_POLL_SECONDS = 2.0
_SHOWN_LINES = 12


@dataclass(kw_only=True)
class _Child:
    run: PlannedRun
    process: subprocess.Popen[bytes]
    log: Path
    start_time: float
    """Of `time.monotonic`."""
    was_asked: bool = False

    def stop(self) -> None:
        """Ask once: a second signal would kill its training before it is saved."""
        if not self.was_asked:
            self.was_asked = True
            self.process.send_signal(signal.SIGTERM)


@dataclass(frozen=True)
class Outcome:
    """How many runs ended how."""

    done: int
    failed: tuple[str, ...]
    left: int
    """Runs that were not completed: time was up, or a signal asked to stop."""


class Pool:
    """Runs children until nothing is left that can be started, time is up, or a signal asks to stop."""

    def __init__(self, folder: Path, ladder: Ladder, *, jobs: int, minutes: float | None, log: Callable[[str], None]) -> None:
        self._folder, self._ladder, self._jobs, self._log = folder, ladder, jobs, log
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._stopping = False
        self._waiting: list[PlannedRun] = []
        self._children: list[_Child] = []
        self._done = 0
        self._failed: list[str] = []

    def run(self, chosen: Sequence[PlannedRun]) -> Outcome:
        """Run `chosen`, each in one child process, at most `jobs` at a time, sweeps before the runs that need them."""
        self._waiting = list(chosen)
        earlier = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        try:
            while self._waiting or self._children:
                self._check_deadline()
                if self._stopping:
                    self._stop_children()
                self._start_children()
                if self._waiting and not self._children:  # each of them needs a sweep that failed
                    self._failed += [f"{run.name} (what it waits for is not complete)" for run in self._waiting]
                    break
                time.sleep(_STOPPING_POLL_SECONDS if self._stopping else _POLL_SECONDS)
                self._collect_children()
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
        return Outcome(self._done, tuple(self._failed), len(chosen) - self._done - len(self._failed))

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _check_deadline(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline and not self._stopping:
            self._log("time is up: runs save their state and stop")
            self._stopping = True

    def _stop_children(self) -> None:
        self._waiting = []
        for child in self._children:
            child.stop()

    def _start_children(self) -> None:
        while len(self._children) < self._jobs and (run := self._next()) is not None:
            self._waiting.remove(run)
            self._children.append(self._start(run))

    def _next(self) -> PlannedRun | None:
        """The first run that waits for nothing: its sweeps are complete, and a check's run too."""
        if self._stopping:
            return None
        for run in self._waiting:
            if run.phase == "sweep" or state_of(self._folder, self._ladder, run).state != "waiting":
                return run
        return None

    def _collect_children(self) -> None:
        """Count and report the children that have ended."""
        for child in [child for child in self._children if child.process.poll() is not None]:
            self._children.remove(child)
            code = child.process.returncode
            minutes = (time.monotonic() - child.start_time) / 60
            if code == 0:
                self._done += 1
                remaining = len(self._waiting) + len(self._children)
                self._log(f"{_last_line(child.log)} [{minutes:.1f} min; {remaining} runs remaining]")
            elif code != PREEMPTED_EXIT and not (child.was_asked and code < 0):
                self._failed.append(child.run.name)
                self._log(f"{child.run.name} failed after {minutes:.1f} min; last lines of {child.log}:")
                for line in child.log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:]:
                    self._log(f"  | {line}")

    def _start(self, run: PlannedRun) -> _Child:
        log = self._folder / "logs" / f"{run.name}.log"
        log.parent.mkdir(exist_ok=True)
        threads = max(1, (os.cpu_count() or 1) // self._jobs)
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONSAFEPATH": "1"}
        command = [sys.executable, "-c", "from launch.cli import main; main()"]
        with log.open("ab") as file:
            process = subprocess.Popen(
                [*command, "scaling", "run", str(self._folder), "--only", run.name],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
                start_new_session=True,
            )
        return _Child(run=run, process=process, log=log, start_time=time.monotonic())


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else log.stem
