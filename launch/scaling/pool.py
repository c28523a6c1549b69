"""Several runs of a ladder at the same time: one process and one log each, sweeps before the runs that need them.

Children save and stop when this process is killed, even by kill -9: the kernel sends them SIGTERM.
"""

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
from launch.worker import LAUNCHER_PID
from pipeline.scaling.ladder.ladder import Ladder, PlannedRun
from pipeline.scaling.ladder.states import state_of

_POLL_SECONDS = 0.5
_STOPPING_POLL_SECONDS = 2.0
_SHOWN_LINES = 12
_CHILD = (
    "import signal; from launch.worker import die_with_launcher; die_with_launcher(signal.SIGTERM); "
    "from launch.cli import main; main()"
)


@dataclass(frozen=True, kw_only=True)
class JobSlots:
    """Where runs are trained at the same time."""

    jobs: int
    devices: tuple[str, ...] = ()
    """GPUs, each for one process of one run; empty: runs share what they find."""
    threads: int | None = None
    """OMP_NUM_THREADS of each run. Default: as in the environment, or the cores divided by `jobs`."""
    niceness: int = 0
    """Added to the niceness of each run."""

    @classmethod
    def automatic(cls, niceness: int = 0) -> JobSlots:
        """One job for each GPU, or for each OMP_NUM_THREADS cores (default: for each core) of this machine."""
        import torch

        if torch.cuda.is_available():
            named = os.environ.get("CUDA_VISIBLE_DEVICES")
            devices = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
            return cls(jobs=len(devices), devices=tuple(devices), niceness=niceness)
        threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
        return cls(jobs=max(1, len(os.sched_getaffinity(0)) // threads), threads=threads, niceness=niceness)


@dataclass(kw_only=True)
class _Child:
    run: PlannedRun
    process: subprocess.Popen[bytes]
    log: Path
    start_time: float
    """Of `time.monotonic`."""
    devices: tuple[str, ...] = ()
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

    def __init__(
        self, folder: Path, ladder: Ladder, *, slots: JobSlots, minutes: float | None, log: Callable[[str], None]
    ) -> None:
        self._folder, self._ladder, self._slots, self._log = folder, ladder, slots, log
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._stopping = False
        self._waiting: list[PlannedRun] = []
        self._children: list[_Child] = []
        self._done = 0
        self._failed: list[str] = []

    def run(self, chosen: Sequence[PlannedRun]) -> Outcome:
        """Run `chosen`, each in one child process, sweeps before the runs that need them.

        Raises ValueError if a run needs more devices than there are.
        """
        self._check_devices(chosen)
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
        while len(self._children) < self._slots.jobs and (run := self._next()) is not None:
            self._waiting.remove(run)
            self._children.append(self._start(run))

    def _next(self) -> PlannedRun | None:
        """The first run that waits for nothing: its sweeps are complete, and a check's run too."""
        if self._stopping:
            return None
        free = len(self._free_devices())
        for run in self._waiting:
            if self._slots.devices and self._needed(run) > free:
                continue
            if run.phase == "sweep" or state_of(self._folder, self._ladder, run).state != "waiting":
                return run
        return None

    def _needed(self, run: PlannedRun) -> int:
        return self._ladder.recipe.sizes[run.size].num_processes

    def _check_devices(self, chosen: Sequence[PlannedRun]) -> None:
        largest = max(chosen, key=self._needed, default=None)
        if self._slots.devices and largest is not None and self._needed(largest) > len(self._slots.devices):
            raise ValueError(
                f"{largest.name} is trained by {self._needed(largest)} processes (sizes.{largest.size}.num_processes), a GPU "
                f"each, and this machine has {len(self._slots.devices)}: run it elsewhere (--only), or give --jobs 1"
            )

    def _free_devices(self) -> list[str]:
        taken = {device for child in self._children for device in child.devices}
        return [device for device in self._slots.devices if device not in taken]

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
        slots, devices = self._slots, tuple(self._free_devices()[: self._needed(run)])
        threads = slots.threads or os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // slots.jobs)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONSAFEPATH": "1",
            LAUNCHER_PID: str(os.getpid()),
            **({"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}),
        }
        command = [*(["nice", "-n", str(slots.niceness)] if slots.niceness else []), sys.executable, "-c", _CHILD]
        with log.open("ab") as file:
            process = subprocess.Popen(
                [*command, "scaling", "run", str(self._folder), "--only", run.name],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
                start_new_session=True,
            )
        return _Child(run=run, process=process, log=log, start_time=time.monotonic(), devices=devices)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else log.stem
