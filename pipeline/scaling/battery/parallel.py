"""Several runs of the battery at the same time, in processes of their own, until all are done, time is up or a signal comes.

A run takes a minute or two and is not saved in between: what is stopped is made again from its beginning.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from types import FrameType

import torch

from pipeline.scaling.battery.outcomes import BatteryOutcome, write_outcome
from pipeline.scaling.battery.settings import BatteryRun
from pipeline.scaling.battery.train_one import train_one

_POLL_SECONDS = 0.5
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class BatteryProgress:
    """How many runs were made, and how many are left."""

    done: int
    left: int


def run_battery(
    folder: Path, runs: Sequence[BatteryRun], *, jobs: int, minutes: float | None, log: Callable[[str], None]
) -> BatteryProgress:
    """Make `runs` in their order, at most `jobs` at a time, and write each result into `folder`.

    Raises the error of the first run that fails, and ValueError if a process was killed; results that were written stay.
    """
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    earlier = {number: signal.signal(number, lambda number, frame: stop.set()) for number in _STOPS}
    waiting, done = list(runs), 0
    futures: dict[Future[BatteryOutcome | None], BatteryRun] = {}
    try:
        with ProcessPoolExecutor(jobs, mp_context=context, initializer=_prepare, initargs=(stop,)) as executor:
            try:
                while futures or (waiting and not stop.is_set()):
                    while waiting and len(futures) < jobs and not stop.is_set():
                        run = waiting.pop(0)
                        futures[executor.submit(_work, folder, run)] = run
                    if deadline is not None and time.monotonic() > deadline:
                        stop.set()
                    ended, _ = wait(futures, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                    for future in ended:
                        run, outcome = futures.pop(future), future.result()
                        if outcome is not None:
                            done += 1
                            log(_line(run, outcome, done, len(runs)))
            except BrokenProcessPool as error:
                names = ", ".join([run.name, *(other.name for other in futures.values())])
                raise ValueError(f"a process was killed while it made one of {names}: rerun the same command") from error
            finally:
                stop.set()  # so that no process trains on after an error
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    return BatteryProgress(done, len(runs) - done)


_stop: Event | None = None


def _prepare(stop: Event) -> None:
    """Of a worker process: one thread, and only the parent decides when to stop."""
    global _stop
    _stop = stop
    torch.set_num_threads(1)
    for number in _STOPS:
        signal.signal(number, _ignore)


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def _work(folder: Path, run: BatteryRun) -> BatteryOutcome | None:
    assert _stop is not None
    outcome = train_one(run, _stop.is_set)
    if outcome is not None:
        write_outcome(folder, run, outcome)
    return outcome


def _line(run: BatteryRun, outcome: BatteryOutcome, done: int, total: int) -> str:
    return (
        f"[{done}/{total}] {run.name}: {100 * outcome.solved:.1f} % of rows solved, {100 * outcome.tokens:.1f} % of tokens, "
        f"{outcome.steps} steps, {outcome.seconds:.0f} s"
    )
