"""Worker processes on Ray that do one call at a time: a dead one is replaced and its call repeated, a fat one recycled."""

import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

# Tries after the first for a worker that died, as opposed to one that raised. What runs here must bear repetition.
_RETRIES = 2
_DEFAULT_MAX_BYTES = 2 * 2**30


class WorkerError(ValueError):
    """A call that raised on its worker, or whose worker died again and again."""


class DiskFullError(ValueError):
    """No space left where outputs or temporary files go."""


@dataclass(frozen=True)
class Call:
    """`function(*arguments)` on some worker; object references among the arguments arrive as what they refer to.

    `function` must be importable by name there. `name` is what errors call the work.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    name: str
    tries: int = 0


class _Worker:
    def call(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
        """The result, and the memory that this process alone holds, in bytes."""
        import psutil

        return function(*arguments), psutil.Process().memory_full_info().uss


class WorkerPool:
    """`num_workers` processes (no more than the session has CPUs). Use as a context manager, inside a `ray_session`.

    A worker that holds more than `max_worker_bytes` after a call is replaced by a fresh one: tokenizers' caches grow
    without bound. `on_start` sees every call as it is started, repetitions included. Exceptions of classes in `passed`
    come out as they were raised; others as WorkerError naming the call, a full disk as DiskFullError.
    """

    def __init__(
        self,
        num_workers: int,
        max_worker_bytes: int = _DEFAULT_MAX_BYTES,
        on_start: Callable[[Call], None] = lambda call: None,
        passed: tuple[type[Exception], ...] = (),
    ) -> None:
        import ray

        cpus = int(ray.cluster_resources().get("CPU", 1))
        self.num_workers = max(1, min(num_workers, cpus))
        self.num_recycled = 0
        self._max_worker_bytes = max_worker_bytes
        self._on_start = on_start
        self._passed = passed
        self._actor = ray.remote(num_cpus=1)(_Worker)
        self._idle = [self._actor.remote() for _ in range(self.num_workers)]
        self._running: dict[Any, tuple[Any, Call]] = {}

    @property
    def has_idle(self) -> bool:
        return bool(self._idle)

    @property
    def running(self) -> list[Any]:
        """References to wait for, one a running call."""
        return list(self._running)

    def start(self, call: Call) -> None:
        """Give `call` to an idle worker."""
        worker = self._idle.pop()
        self._on_start(call)
        self._running[worker.call.remote(call.function, *call.arguments)] = (worker, call)

    def finish(self, reference: Any) -> tuple[Call, Any] | None:
        """The call and result of a reference that is ready; None where its worker died and the call was started again."""
        import ray

        worker, call = self._running.pop(reference)
        try:
            result, held_bytes = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._idle.append(worker)
            raise self._explained(call, error.cause) from error
        except ray.exceptions.RayError as error:
            self._idle.append(self._actor.remote())
            if call.tries == _RETRIES:
                raise WorkerError(
                    f"{call.name}: its worker died {_RETRIES + 1} times ({type(error).__name__}), "
                    "most often for want of memory: try fewer workers or smaller unit_bytes"
                ) from error
            self.start(Call(call.function, call.arguments, call.name, call.tries + 1))
            return None
        if held_bytes > self._max_worker_bytes:
            self.num_recycled += 1
            ray.kill(worker)
            worker = self._actor.remote()
        self._idle.append(worker)
        return call, result

    def map(self, calls: Iterable[Call]) -> Iterator[tuple[Call, Any]]:
        """Do all calls and give them with their results as these come."""
        import ray

        waiting = iter(calls)
        exhausted = False
        while True:
            while self.has_idle and not exhausted:
                call = next(waiting, None)
                if call is None:
                    exhausted = True
                else:
                    self.start(call)
            if not self._running:
                return
            for reference in ray.wait(self.running, num_returns=1)[0]:
                if finished := self.finish(reference):
                    yield finished

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        import ray

        for worker in [*self._idle, *(worker for worker, _ in self._running.values())]:
            ray.kill(worker)

    def _explained(self, call: Call, cause: BaseException) -> Exception:
        if isinstance(cause, self._passed):
            return cause
        if is_disk_full(cause):
            return DiskFullError(f"{call.name}: {cause}")
        return WorkerError(f"{call.name}: {type(cause).__name__}: {cause}")


def is_disk_full(error: BaseException | None) -> bool:
    """True for the operating system's ways to say that there is no room."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
