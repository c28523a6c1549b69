"""The peak memory of this process and all its descendants, sampled while a block runs."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil


class PeakMemory:
    """Peak of the summed proportional set sizes (bytes) of this process and its descendants.

    Shared pages are divided among the processes that share them, so the sum is the memory in use on the machine.
    """

    def __init__(self, every_seconds: float = 2.0) -> None:
        self.peak_bytes = 0
        self._every = every_seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        while not self._stopped.wait(self._every):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    memory = process.memory_full_info()
                except psutil.Error:  # the process has ended
                    continue
                total += getattr(memory, "pss", memory.uss)
            self.peak_bytes = max(self.peak_bytes, total)
