"""Steps made ahead in the background: each is a pure function of its number, so which thread makes it does not matter.

Threads and not processes: reading and numpy's work on arrays let go of the interpreter's lock, no batch has to be copied
between processes, and nothing is left behind when a run is killed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetch(Generic[Item]):
    """`make(step)` for rising steps up to `last`, `ahead` of them begun before they are asked for, by `workers` threads.

    With `ahead` 0 nothing runs in the background. An exception in `make` is raised when its step is asked for.
    """

    def __init__(self, make: Callable[[int], Item], last: int, ahead: int = 2, workers: int = 1) -> None:
        if ahead < 0 or workers < 1:
            raise ValueError(f"{ahead} steps ahead by {workers} workers: give 0 or more steps, and at least one worker")
        self._make, self._last, self._ahead = make, last, ahead
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="batches") if ahead else None
        self._begun: deque[tuple[int, Future[Item]]] = deque()

    def __call__(self, step: int) -> Item:
        """What `make(step)` returns. Asking for another step than the next one is right too, only slower."""
        if self._threads is None:
            return self._make(step)
        while self._begun and self._begun[0][0] != step:
            self._begun.popleft()[1].cancel()
        first = self._begun[-1][0] + 1 if self._begun else step
        for number in range(first, max(min(step + self._ahead, self._last), step) + 1):
            self._begun.append((number, self._threads.submit(self._make, number)))
        return self._begun.popleft()[1].result()

    def close(self) -> None:
        """End the threads; what they have begun is dropped."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
