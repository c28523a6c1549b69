"""Batches made ahead in the background. A step is a pure function of its number, so any thread may make it.

Threads and not processes: reading and numpy's array operations release the interpreter's lock, no batch is copied between
processes, and no process remains when a run is killed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetch(Generic[Item]):
    """`make(step)` for ascending steps up to `last`; `workers` threads start `ahead` steps before they are requested.

    With `ahead` 0 nothing runs in the background. An exception in `make` is raised when its step is requested.
    """

    def __init__(self, make: Callable[[int], Item], last: int, ahead: int = 2, workers: int = 1) -> None:
        if ahead < 0 or workers < 1:
            raise ValueError(f"{ahead} steps ahead by {workers} workers: give 0 or more steps, and at least one worker")
        self._make, self._last, self._ahead = make, last, ahead
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="batches") if ahead else None
        self._begun: deque[tuple[int, Future[Item]]] = deque()

    def __call__(self, step: int) -> Item:
        """The result of `make(step)`. Any step may be requested; the next one is the fastest."""
        if self._threads is None:
            return self._make(step)
        while self._begun and self._begun[0][0] != step:
            self._begun.popleft()[1].cancel()
        first = self._begun[-1][0] + 1 if self._begun else step
        for number in range(first, max(min(step + self._ahead, self._last), step) + 1):
            self._begun.append((number, self._threads.submit(self._make, number)))
        return self._begun.popleft()[1].result()

    def close(self) -> None:
        """End the threads and drop unfinished steps."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
