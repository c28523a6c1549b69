"""Several runs of a ladder side by side: one process a run, each with its log, sweeps before what needs them."""

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
_SHOWN_LINES = 12


@dataclass
class _Child:
    run: PlannedRun
    process: subprocess.Popen[bytes]
    log: Path
    began: float
    was_asked: bool = False

    def stop(self) -> None:
        """Ask once: a second signal would kill its training before it is saved."""
        if not self.was_asked:
            self.was_asked = True
            self.process.send_signal(signal.SIGTERM)


@dataclass(frozen=True)
class Outcome:
    done: int
    failed: tuple[str, ...]
    left: int
    """Runs that were not brought to their end: time was up, or somebody asked to stop."""


class Pool:
    """Runs children until nothing is left that can be started, time is up, or a signal asks to stop."""

    def __init__(self, folder: Path, ladder: Ladder, jobs: int, minutes: float | None, say: Callable[[str], None]) -> None:
        self._folder, self._ladder, self._jobs, self._say = folder, ladder, jobs, say
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._stopping = False

    def run(self, chosen: Sequence[PlannedRun]) -> Outcome:
        waiting, children = list(chosen), list[_Child]()
        done, failed = 0, list[str]()
        earlier = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        try:
            while waiting or children:
                if self._deadline is not None and time.monotonic() > self._deadline and not self._stopping:
                    self._say("time is up: runs save themselves and stop")
                    self._stopping = True
                if self._stopping:
                    waiting = []
                    for child in children:
                        child.stop()
                while len(children) < self._jobs and (run := self._next(waiting, children)) is not None:
                    waiting.remove(run)
                    children.append(self._start(run))
                if waiting and not children:  # all that is left waits for a sweep that failed
                    failed += [f"{run.name} (its sweeps are not complete)" for run in waiting]
                    break
                time.sleep(_POLL_SECONDS if not self._stopping else 2)
                for child in [child for child in children if child.process.poll() is not None]:
                    children.remove(child)
                    code = child.process.returncode
                    minutes = (time.monotonic() - child.began) / 60
                    if code == 0:
                        done += 1
                        self._say(f"{_last_line(child.log)} [{minutes:.1f} min; {len(waiting) + len(children)} runs to go]")
                    elif code != PREEMPTED_EXIT and not (child.was_asked and code < 0):
                        failed.append(child.run.name)
                        self._say(f"{child.run.name} failed after {minutes:.1f} min; the end of {child.log}:")
                        for line in child.log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:]:
                            self._say(f"  | {line}")
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
        return Outcome(done, tuple(failed), len(chosen) - done - len(failed))

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _next(self, waiting: Sequence[PlannedRun], children: Sequence[_Child]) -> PlannedRun | None:
        """The first run whose sweeps are complete."""
        if self._stopping:
            return None
        for run in waiting:
            if run.phase == "sweep" or state_of(self._folder, self._ladder, run).state != "waiting":
                return run
        return None

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
        return _Child(run, process, log, time.monotonic())


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else log.stem
