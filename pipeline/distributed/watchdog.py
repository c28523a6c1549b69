"""A watch over a run's ranks: stacks where a step hangs, and an end for all where one rank has died.

Each rank has a thread of its own. When the training loop has not come round for a while it prints the stack of every thread
of its rank; as ranks that wait for each other all stand still, every rank's log then says where it was. A moment later the
rank ends. Meanwhile the ranks tell each other through the process group's store that they live: a rank that falls silent, or
that reports why it failed, ends all others within a minute, each with the reason of the first.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import torch

FAILED_EXIT = 1
_FAILURE = "fnet_t5/failure"
_PEER_SECONDS = 40.0
_POLL_SECONDS = 5.0
_STACK_SECONDS = 15.0
"""Between the stacks and the end: the slowest rank prints too."""


def _exit() -> NoReturn:
    sys.stderr.flush()
    os._exit(FAILED_EXIT)  # the main thread may wait in a collective forever


class Watchdog:
    """Watches from `start` to `stop`; the loop calls `beat` with what it is about to do."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        hang_seconds: float,
        peer_seconds: float = _PEER_SECONDS,
        end: Callable[[], None] = _exit,
    ) -> None:
        self._rank, self._world_size = rank, world_size
        self._hang_seconds, self._peer_seconds, self._end = hang_seconds, peer_seconds, end
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
        """No more watching; other ranks are told that this one's silence is an orderly end."""
        if self._stopped.is_set() or not self._thread.is_alive():
            return
        self._stopped.set()
        self._thread.join(2 * _POLL_SECONDS)
        self._tell(f"fnet_t5/alive/{self._rank}", "done")

    def fail(self, reason: str) -> None:
        """Say why this rank ends; the first reason is what all others will show."""
        self._stopped.set()
        self._tell(_FAILURE, f"rank {self._rank}: {reason}", only_first=True)

    def first_failure(self) -> str | None:
        """What the first rank to fail has said, where it could."""
        try:
            return self._store.get(_FAILURE).decode() if self._store.check([_FAILURE]) else None
        except Exception:  # the rank that kept the store is gone
            return None

    def _watch(self) -> None:
        beats = 0
        while not self._stopped.wait(min(_POLL_SECONDS, self._peer_seconds / 4)):
            silent = time.monotonic() - self._last_beat
            if silent > self._hang_seconds:
                self._hung(silent)
                return
            beats += 1
            try:
                self._store.set(f"fnet_t5/alive/{self._rank}", str(beats))
                reason = self.first_failure() or self._silent_peer()
            except Exception:
                reason = "the rank that keeps the process group's store (rank 0) has gone"
            if reason and not self._stopped.is_set():
                print(f"error: rank {self._rank} ends while {self._activity}: {reason}", file=sys.stderr, flush=True)
                self._end()
                return

    def _hung(self, silent: float) -> None:
        message = f"no progress for {silent:.0f} s while {self._activity}"
        print(f"error: rank {self._rank}: {message}; its threads:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        self._stopped.wait(_STACK_SECONDS)
        self._tell(_FAILURE, f"rank {self._rank}: {message}", only_first=True)
        self._end()

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

    def _tell(self, key: str, value: str, only_first: bool = False) -> None:
        try:
            if only_first:
                self._store.compare_set(key, "", value)
            else:
                self._store.set(key, value)
        except Exception as error:  # nobody is left to be told
            print(f"rank {self._rank} could not tell the others ({type(error).__name__})", file=sys.stderr)


def _store() -> Any:
    """A connection of our own to the process group's store: the main thread's may be waiting in it."""
    default: Any = torch.distributed.distributed_c10d._get_default_store()
    store = default.clone()
    store.set_timeout(timedelta(seconds=20))
    return store
