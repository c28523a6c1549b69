"""Worker processes on Ray that do one call at a time: a dead one is replaced and its call repeated, a fat one recycled."""

import errno
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

# Tries after the first for a worker that died, as opposed to one that raised. What runs here must bear repetition.
_RETRIES = 2
# Workers that die before they have done anything, one after another, until we stop to replace them.
_FAILED_STARTS = 5
_DEFAULT_MAX_BYTES = 2 * 2**30


class WorkerError(ValueError):
    """A call that raised on its worker, or whose worker died again and again."""


class DiskFullError(ValueError):
    """No space left where outputs or temporary files go."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """`function(*arguments)` on some worker; object references among the arguments arrive as what they refer to.

    `function` must be importable by name there. `name` is what errors call the work.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    name: str
    tries: int = 0


class LostInputError(Exception):
    """What a call was to work on went down with the node that held it; `call` is the call."""

    def __init__(self, call: Call) -> None:
        super().__init__(call.name)
        self.call = call


class _Worker:
    def ready(self) -> None:
        """Returns once the process is there."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
        """The result, and the memory that this process alone holds, in bytes."""
        import psutil

        return function(*arguments), psutil.Process().memory_full_info().uss


class WorkerPool:
    """`num_workers` processes (no more than the session has CPUs). Use as a context manager, inside a `ray_session`.

    A worker that holds more than `max_worker_bytes` after a call is replaced by a fresh one: tokenizers' caches grow
    without bound. Only workers whose process is there get calls: on a cluster that lost a node or is busy, the others do
    them all. `on_start` sees every call as it is started, repetitions included. Exceptions of classes in `passed` come
    out as they were raised; others as WorkerError naming the call, a full disk as DiskFullError.
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
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}  # by the reference of `ready`
        self._running: dict[Any, tuple[Any, Call]] = {}
        self._orphans: deque[Call] = deque()
        self._failed_starts = 0
        for _ in range(self.num_workers):
            self._replace()

    @property
    def has_idle(self) -> bool:
        return bool(self._idle)

    @property
    def awaited(self) -> list[Any]:
        """References to wait for: one a running call, and where work waits for workers, one a worker that starts."""
        return [*self._running, *(self._starting if self._orphans or not self._idle else ())]

    def start(self, call: Call) -> None:
        """Give `call` to an idle worker."""
        worker = self._idle.pop()
        self._on_start(call)
        self._running[worker.call.remote(call.function, *call.arguments)] = (worker, call)

    def finish(self, reference: Any) -> tuple[Call, Any] | None:
        """The call and result of a reference that is ready; None for a worker that started, or died and was replaced.

        Raises LostInputError where an object that the call was given is gone.
        """
        import ray

        if reference in self._starting:
            self._greet(reference)
            return None
        worker, call = self._running.pop(reference)
        try:
            result, held_bytes = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._welcome(worker)
            if isinstance(error.cause, ray.exceptions.ObjectLostError):
                raise LostInputError(call) from error
            raise self._explained(call, error.cause) from error
        except ray.exceptions.ObjectLostError as error:
            self._welcome(worker)
            raise LostInputError(call) from error
        except ray.exceptions.RayError as error:
            ray.kill(worker)
            self._replace()
            if call.tries == _RETRIES:
                raise WorkerError(
                    f"{call.name}: its worker died {_RETRIES + 1} times ({type(error).__name__}), "
                    "most often for want of memory: try fewer workers or smaller unit_bytes"
                ) from error
            self._orphans.append(Call(function=call.function, arguments=call.arguments, name=call.name, tries=call.tries + 1))
            if self._idle:
                self.start(self._orphans.popleft())
            return None
        if held_bytes > self._max_worker_bytes:
            self.num_recycled += 1
            ray.kill(worker)
            self._replace()
        else:
            self._welcome(worker)
        return call, result

    def _replace(self) -> None:
        worker = self._actor.remote()
        self._starting[worker.ready.remote()] = worker

    def _greet(self, reference: Any) -> None:
        import ray

        worker = self._starting.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                raise WorkerError(
                    f"workers do not start ({str(error).splitlines()[0]}): every node needs this package, of this version, "
                    "in the Python that Ray was started with"
                ) from error
            self._replace()
            return
        self._failed_starts = 0
        self._welcome(worker)

    def _welcome(self, worker: Any) -> None:
        self._idle.append(worker)
        if self._orphans:
            self.start(self._orphans.popleft())

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
            if exhausted and not self._running and not self._orphans:
                return
            for reference in ray.wait(self.awaited, num_returns=1)[0]:
                if finished := self.finish(reference):
                    yield finished

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        import ray

        for worker in [*self._idle, *self._starting.values(), *(worker for worker, _ in self._running.values())]:
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
