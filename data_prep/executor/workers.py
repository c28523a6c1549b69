"""Worker processes on Ray that do one call at a time: replaced when they die (the call is retried) or use too much memory."""

import errno
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from data_prep.executor.ray_session import RaySessionError, validate_session

# Retries of a call whose worker died; a call that raised is not retried. So calls must be safe to repeat.
_RETRIES = 2
# So many workers in a row that die while starting make the job fail.
_FAILED_STARTS = 5
_DEFAULT_MAX_BYTES = 2 * 2**30
_DEFAULT_MAX_WAIT_SECONDS = 1800
# How often a wait looks after Ray's processes, and how often the wait for the first worker is told.
_POLL_SECONDS = 2
_TELL_SECONDS = 10


class WorkerError(ValueError):
    """A call that raised on its worker, or whose worker died at every try."""


class DiskFullError(ValueError):
    """No space left for outputs or temporary files."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """`function(*arguments)`, to be run on a worker. Ray object references among the arguments arrive as their values.

    `function` must be importable on the worker. `name` identifies the work in error messages.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    name: str
    tries: int = 0


class LostInputError(Exception):
    """An input of `call` was lost together with the node that stored it."""

    def __init__(self, call: Call) -> None:
        super().__init__(call.name)
        self.call = call


class _Worker:
    def ready(self) -> None:
        """Return as soon as the process has started."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
        """The result, and the memory in bytes that only this process uses (unique set size)."""
        import psutil

        return function(*arguments), psutil.Process().memory_full_info().uss


class WorkerPool:
    """`num_workers` processes (at most as many as the session has CPUs). Use as a context manager, inside a `ray_session`.

    A worker that uses more than `max_worker_bytes` after a call is replaced, because tokenizers' caches grow without
    limit. Only workers that have started get calls, so on a cluster that lost a node or is busy the others do all the work.
    `on_start` is called with every call that is started, retries included. While no worker has started, because other jobs
    use the cluster's CPUs, `on_wait` is called with a message, and after `max_wait_seconds` the job fails.

    Exceptions of the classes `passed` are raised unchanged; a full disk becomes DiskFullError and any other exception becomes
    WorkerError, both naming the call.
    """

    def __init__(
        self,
        num_workers: int,
        max_worker_bytes: int = _DEFAULT_MAX_BYTES,
        on_start: Callable[[Call], None] = lambda call: None,
        passed: tuple[type[Exception], ...] = (),
        on_wait: Callable[[str], None] = lambda message: None,
        max_wait_seconds: float = _DEFAULT_MAX_WAIT_SECONDS,
    ) -> None:
        import ray

        cpus = int(ray.cluster_resources().get("CPU", 1))
        self.num_workers = max(1, min(num_workers, cpus))
        self.num_recycled = 0
        self._max_worker_bytes = max_worker_bytes
        self._on_start = on_start
        self._passed = passed
        self._on_wait = on_wait
        self._max_wait_seconds = max_wait_seconds
        self._actor = ray.remote(num_cpus=1)(_Worker)
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}  # by the reference of `ready`
        self._running: dict[Any, tuple[Any, Call]] = {}
        self._retry_queue: deque[Call] = deque()
        self._failed_starts = 0
        for _ in range(self.num_workers):
            self._replace()

    @property
    def has_idle(self) -> bool:
        return bool(self._idle)

    @property
    def awaited(self) -> list[Any]:
        """References to wait for: one per running call, and if calls wait for workers, one per starting worker."""
        return [*self._running, *(self._starting if self._retry_queue or not self._idle else ())]

    def start(self, call: Call) -> None:
        """Give `call` to an idle worker."""
        worker = self._idle.pop()
        self._on_start(call)
        self._running[worker.call.remote(call.function, *call.arguments)] = (worker, call)

    def wait(self, references: Sequence[Any]) -> list[Any]:
        """Those of `references` that are ready, at least one.

        Raises WorkerError if no worker starts for too long, and RaySessionError if Ray's own process was killed.
        """
        import ray

        begin = time.monotonic()
        told = 0
        while True:
            ready: list[Any] = ray.wait(references, num_returns=1, timeout=_POLL_SECONDS)[0]
            if ready:
                return ready
            validate_session()
            waited = time.monotonic() - begin
            if self._running or self._idle or not self._starting or waited < (told + 1) * _TELL_SECONDS:
                continue
            told += 1
            total, free = (int(found().get("CPU", 0)) for found in (ray.cluster_resources, ray.available_resources))
            state = f"{free} of {total} CPUs of Ray are free"
            if waited > self._max_wait_seconds:
                raise WorkerError(
                    f"no worker started in {waited:,.0f} s: {state}; wait for other jobs, add nodes or raise max_wait_seconds, "
                    "and rerun the same command to resume"
                )
            self._on_wait(f"waiting for a worker to start ({state}), at most {self._max_wait_seconds:,.0f} s")

    def finish(self, reference: Any) -> tuple[Call, Any] | None:
        """The call and result of a ready reference; None if a worker has started, or has died and was replaced.

        Raises LostInputError if an object among the call's arguments was lost.
        """
        import ray

        if reference in self._starting:
            self._on_started(reference)
            return None
        worker, call = self._running.pop(reference)
        try:
            result, held_bytes = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._release(worker)
            if isinstance(error.cause, ray.exceptions.ObjectLostError):
                raise LostInputError(call) from error
            raise self._as_error(call, error.cause) from error
        except ray.exceptions.ObjectLostError as error:
            self._release(worker)
            raise LostInputError(call) from error
        except ray.exceptions.OutOfDiskError as error:
            raise DiskFullError(f"{call.name}: Ray's temporary folder or /dev/shm is full") from error
        except ray.exceptions.RayError as error:
            ray.kill(worker)
            self._replace()
            if call.tries == _RETRIES:
                raise WorkerError(
                    f"{call.name}: its worker died {_RETRIES + 1} times ({type(error).__name__}), "
                    "usually out of memory: use fewer workers or smaller unit_bytes"
                ) from error
            self._retry_queue.append(
                Call(function=call.function, arguments=call.arguments, name=call.name, tries=call.tries + 1)
            )
            if self._idle:
                self.start(self._retry_queue.popleft())
            return None
        if held_bytes > self._max_worker_bytes:
            self.num_recycled += 1
            ray.kill(worker)
            self._replace()
        else:
            self._release(worker)
        return call, result

    def drain(self) -> None:
        """Wait for all running calls and forget their results and errors, because their work is thrown away."""
        while self._running or self._retry_queue:
            self._retry_queue.clear()
            for reference in self.wait([*self._running]) if self._running else ():
                try:
                    self.finish(reference)
                except RaySessionError:
                    raise
                except Exception:
                    continue

    def _replace(self) -> None:
        worker = self._actor.remote()
        self._starting[worker.ready.remote()] = worker

    def _on_started(self, reference: Any) -> None:
        import ray

        worker = self._starting.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                raise WorkerError(
                    f"workers do not start ({str(error).splitlines()[0]}): install this version of the package on every node, "
                    "in the Python that runs Ray"
                ) from error
            self._replace()
            return
        self._failed_starts = 0
        self._release(worker)

    def _release(self, worker: Any) -> None:
        self._idle.append(worker)
        if self._retry_queue:
            self.start(self._retry_queue.popleft())

    def map(self, calls: Iterable[Call]) -> Iterator[tuple[Call, Any]]:
        """Run all calls; yield each with its result as soon as it is finished."""
        waiting = iter(calls)
        exhausted = False
        while True:
            while self.has_idle and not exhausted:
                call = next(waiting, None)
                if call is None:
                    exhausted = True
                else:
                    self.start(call)
            if exhausted and not self._running and not self._retry_queue:
                return
            for reference in self.wait(self.awaited):
                if finished := self.finish(reference):
                    yield finished

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        import ray

        if kind is not None and issubclass(kind, RaySessionError):
            return  # nothing answers any more
        for worker in [*self._idle, *self._starting.values(), *(worker for worker, _ in self._running.values())]:
            ray.kill(worker)

    def _as_error(self, call: Call, cause: BaseException) -> Exception:
        if isinstance(cause, self._passed):
            return cause
        if is_disk_full(cause):
            return DiskFullError(f"{call.name}: {cause}")
        return WorkerError(f"{call.name}: {type(cause).__name__}: {cause}")


def is_disk_full(error: BaseException | None) -> bool:
    """True for the errors by which the operating system reports a full disk or an exceeded quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
