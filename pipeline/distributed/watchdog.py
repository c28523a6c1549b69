"""The watchdog: prints stacks when a step hangs, and ends all ranks when one has died.

Each rank runs a watchdog thread. When the training loop makes no progress for `hang_seconds`, the thread prints the stack of
every thread of its rank and, shortly after, ends the rank. Ranks that wait for each other all hang, so the log of every rank
shows where it was. The ranks also send heartbeats through the store of the process group: when a rank goes silent, or
reports why it failed, all others end within a minute, each with the first reason.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from datetime import timedelta
from typing import Any, NoReturn

import torch

_log = logging.getLogger(__name__)

FAILED_EXIT = 1
_FAILURE = "fnet_t5/failure"
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
        self._activity, self._last_beat = "starting", time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._seen: dict[int, tuple[bytes, float]] = {}

    def start(self) -> None:
        self._last_beat = time.monotonic()
        self._store = _store()
        self._store.set(f"fnet_t5/alive/{self._rank}", "0")
        self._thread.start()

    def beat(self, activity: str) -> None:
        self._activity, self._last_beat = activity, time.monotonic()

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
        beats = 0
        while not self._stopped.wait(min(_POLL_SECONDS, self._peer_seconds / 4)):
            silent = time.monotonic() - self._last_beat
            if silent > self._hang_seconds:
                self._end_hang(silent)
            beats += 1
            try:
                self._store.set(f"fnet_t5/alive/{self._rank}", str(beats))
                reason = self.first_failure() or self._silent_peer()
            except Exception:
                reason = "rank 0, which holds the store of the process group, is gone"
            if reason and not self._stopped.is_set():
                _log.error("rank %d ends while %s: %s", self._rank, self._activity, reason)
                _exit()

    def _end_hang(self, silent: float) -> NoReturn:
        message = f"no progress for {silent:.0f} s while {self._activity}"
        _log.error("rank %d: %s; its threads:", self._rank, message)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        self._stopped.wait(_STACK_SECONDS)
        self._publish(_FAILURE, f"rank {self._rank}: {message}", only_first=True)
        _exit()

    def _silent_peer(self) -> str | None:
        now = time.monotonic()
        for peer in range(self._world_size):
            key = f"fnet_t5/alive/{peer}"
            if peer == self._rank or not self._store.check([key]):
                continue
            value = self._store.get(key)
            if value == b"done":
                continue
            known, since = self._seen.get(peer, (b"", now))
            if value != known:
                self._seen[peer] = (value, now)
            elif now - since > self._peer_seconds:
                return f"rank {peer} has been silent for {now - since:.0f} s: it was killed, or its machine is gone"
        return None

    def _publish(self, key: str, value: str, only_first: bool = False) -> None:
        try:
            if only_first:
                self._store.compare_set(key, "", value)
            else:
                self._store.set(key, value)
        except Exception as error:  # the store is gone
            _log.warning("rank %d could not reach the other ranks (%s)", self._rank, type(error).__name__)


def _store() -> Any:
    """A second connection to the store of the process group: the main thread may be waiting in the first."""
    default: Any = torch.distributed.distributed_c10d._get_default_store()
    store = default.clone()
    store.set_timeout(timedelta(seconds=20))
    return store
