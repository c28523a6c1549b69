"""The watchdog: prints stacks when a step hangs, and ends all ranks when one has died.

Each rank runs a watchdog thread. When no rank makes progress for `hang_seconds`, the thread prints the stack of every thread of
its rank and, shortly after, ends the rank. Ranks that wait for each other all hang, so the log of every rank shows where it
was. A rank that waits for one which still works (it writes a larger share of a checkpoint) is not hanging: the ranks count
their progress in the store of the process group. They also send heartbeats there, and each watches one neighbour: when a rank
goes silent, or reports why it failed, all others end within a minute, each with the first reason.

What a rank asks of the store in a poll does not grow with the number of ranks: five requests.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn

import torch

_log = logging.getLogger(__name__)

FAILED_EXIT = 1
_FAILURE = "fnet_t5/failure"
_PROGRESS = "fnet_t5/progress"
PROGRESS_PIPE = "FNET_T5_PROGRESS_PIPE"
"""Environment variable with the file descriptor to which a local rank writes a byte when it makes progress."""
_PIPE_SECONDS = 1.0
_PEER_SECONDS = 40.0
_POLL_SECONDS = 5.0
_STACK_SECONDS = 15.0
"""Between the stacks and the end, so that the slowest rank prints too."""


def _exit() -> NoReturn:
    sys.stderr.flush()
    os._exit(FAILED_EXIT)  # the main thread may wait in a collective forever


class Watchdog:
    """Watches from `start` to `stop`. The training loop calls `beat` with what it is about to do."""

    def __init__(self, rank: int, world_size: int, hang_seconds: float, peer_seconds: float = _PEER_SECONDS) -> None:
        """`hang_seconds`, `peer_seconds`: how long this rank may make no progress, and another may send no heartbeat."""
        self._rank, self._world_size = rank, world_size
        self._hang_seconds, self._peer_seconds = hang_seconds, peer_seconds
        self._activity, self._last_beat, self._num_beats = "starting", time.monotonic(), 0
        self.at_end: Callable[[str], None] = lambda reason: None
        """Called with the reason before the watchdog ends the process."""
        self._pipe = _progress_pipe()
        self._last_told = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._neighbour = (rank + 1) % world_size
        self._heard: tuple[bytes, float] = (b"", 0.0)
        """The last heartbeat of the neighbour, and when it came."""
        self._num_polls, self._counted, self._progress, self._last_progress = 0, 0, 0, 0.0

    def start(self) -> None:
        self._last_beat = time.monotonic()
        self._store = _store()
        self._store.set(f"fnet_t5/alive/{self._rank}", "0")
        self._thread.start()

    def beat(self, activity: str) -> None:
        self._activity, self._last_beat = activity, time.monotonic()
        self._num_beats += 1
        if self._pipe >= 0 and self._last_beat - self._last_told > _PIPE_SECONDS:
            self._last_told = self._last_beat
            with suppress(OSError):  # full, because the launcher is stopped; or closed, because it has ended
                os.write(self._pipe, b".")

    def stop(self) -> None:
        """Stop watching, and tell the other ranks that this one has ended normally."""
        if self._stopped.is_set() or not self._thread.is_alive():
            return
        self._stopped.set()
        self._thread.join(2 * _POLL_SECONDS)
        self._publish(f"fnet_t5/alive/{self._rank}", "done")

    def fail(self, reason: str) -> None:
        """Report why this rank fails. All other ranks show the first reason that was reported."""
        self._stopped.set()
        self._publish(_FAILURE, f"rank {self._rank}: {reason}", only_first=True)

    def first_failure(self) -> str | None:
        """The reason of the first rank that failed, if it could report one."""
        try:
            return self._store.get(_FAILURE).decode() if self._store.check([_FAILURE]) else None
        except Exception:  # the rank that held the store is gone
            return None

    def _watch(self) -> None:
        self._heard, self._last_progress = (b"", time.monotonic()), time.monotonic()
        while not self._stopped.wait(min(_POLL_SECONDS, self._peer_seconds / 4, self._hang_seconds / 4)):
            self._poll()

    def _poll(self) -> None:
        self._num_polls += 1
        try:
            self._store.set(f"fnet_t5/alive/{self._rank}", str(self._num_polls))
            self._count_progress()
            reason = self.first_failure() or self._silent_neighbour()
        except Exception:
            reason = "rank 0, which holds the store of the process group, is gone"
        silent = time.monotonic() - max(self._last_beat, self._last_progress)
        if not reason and silent > self._hang_seconds:
            self._end_hang(silent)
        if reason and not self._stopped.is_set():
            _log.error("rank %d ends while %s: %s", self._rank, self._activity, reason)
            self._end(reason)

    def _count_progress(self) -> None:
        """Add this rank's progress since the last call to the common count, and see whether any rank made some."""
        has_progress, self._counted = self._num_beats != self._counted, self._num_beats
        progress = self._store.add(_PROGRESS, int(has_progress))
        if progress != self._progress:
            self._progress, self._last_progress = progress, time.monotonic()

    def _end_hang(self, silent: float) -> NoReturn:
        message = f"no progress for {silent:.0f} s while {self._activity}"
        _log.error("rank %d: %s; its threads:", self._rank, message)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        self._stopped.wait(_STACK_SECONDS)
        self._publish(_FAILURE, f"rank {self._rank}: {message}", only_first=True)
        self._end(message)

    def _end(self, reason: str) -> NoReturn:
        try:
            self.at_end(reason)
        finally:
            _exit()

    def _silent_neighbour(self) -> str | None:
        now, key = time.monotonic(), f"fnet_t5/alive/{self._neighbour}"
        if self._neighbour == self._rank or not self._store.check([key]):
            return None
        value = self._store.get(key)
        known, since = self._heard
        if value != known:
            self._heard = (value, now)
            return None
        if value == b"done" or now - since <= self._peer_seconds:
            return None
        reason = f"rank {self._neighbour} has been silent for {now - since:.0f} s: it was killed, or its machine is gone"
        self._publish(_FAILURE, reason, only_first=True)  # no other rank watches it
        return reason

    def _publish(self, key: str, value: str, only_first: bool = False) -> None:
        try:
            if only_first:
                self._store.compare_set(key, "", value)
            else:
                self._store.set(key, value)
        except Exception as error:  # the store is gone
            _log.warning("rank %d could not reach the other ranks (%s)", self._rank, type(error).__name__)


def _progress_pipe() -> int:
    """The descriptor of the launcher's pipe, or -1: a process that only inherited the variable may have another file there."""
    descriptor = int(os.environ.get(PROGRESS_PIPE, -1))
    try:
        return descriptor if descriptor >= 0 and stat.S_ISFIFO(os.fstat(descriptor).st_mode) else -1
    except OSError:
        return -1


def _store() -> Any:
    """A second connection to the store of the process group: the main thread may be waiting in the first."""
    default: Any = torch.distributed.distributed_c10d._get_default_store()
    store = default.clone()
    store.set_timeout(timedelta(seconds=20))
    return store
