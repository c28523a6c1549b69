"""Ray's calls in this process: tests of what is prepared, not of processes, run in a fraction of a second.

The part of Ray's interface that `data_prep` uses. As between processes, arguments and results are pickled, calls run in
another current folder, and of several calls any may end first (here a seeded random one, so that a test is repeatable).
"""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

_NUM_CPUS = 2


class _Reference:
    """The result of a call, pickled, or its error."""

    def __init__(self, value: object, error: Exception | None = None) -> None:
        self._pickled = pickle.dumps(value)
        self._error = error

    def get(self) -> Any:
        if self._error is not None:
            raise self._error
        return pickle.loads(self._pickled)


class _Actor:
    """An object that does each call at once."""

    def __init__(self, kind: type, folder: Path) -> None:
        self._object = kind()
        self._folder = folder
        self._killed = False

    def __getattr__(self, name: str) -> _Method:
        return _Method(self, name)

    def _run(self, name: str, arguments: tuple[Any, ...], num_returns: int) -> list[_Reference]:
        import ray

        assert not self._killed, f"{name} of an actor that was killed"
        before = os.getcwd()
        try:
            # As in Ray, references among the arguments arrive as their values.
            values = [value.get() if isinstance(value, _Reference) else value for value in arguments]
            values = pickle.loads(pickle.dumps(values))
            os.chdir(self._folder)
            result = getattr(self._object, name)(*values)
        except ray.exceptions.RayError as error:  # raised by a test: the death of the actor
            return [_Reference(None, error)] * num_returns
        except Exception as error:
            failed = ray.exceptions.RayTaskError(name, str(error), error).as_instanceof_cause()
            return [_Reference(None, failed)] * num_returns
        finally:
            os.chdir(before)
        return [_Reference(value) for value in (result if num_returns > 1 else [result])]


class _Method:
    def __init__(self, actor: _Actor, name: str, num_returns: int = 1) -> None:
        self._actor, self._name, self._num_returns = actor, name, num_returns

    def options(self, num_returns: int) -> _Method:
        return _Method(self._actor, self._name, num_returns)

    def remote(self, *arguments: Any) -> Any:
        references = self._actor._run(self._name, arguments, self._num_returns)
        return references if self._num_returns > 1 else references[0]


class _Kind:
    def __init__(self, kind: type, folder: Path) -> None:
        self._kind, self._folder = kind, folder

    def remote(self) -> _Actor:
        return _Actor(self._kind, self._folder)


@contextmanager
def inline_ray(folder: Path) -> Iterator[None]:
    """Let `ray_session` and all that follows run in this process, with two CPUs; calls see `folder` as current folder."""
    import ray

    chance = random.Random(0)

    def remote(num_cpus: int) -> Callable[[type], _Kind]:
        return lambda kind: _Kind(kind, folder)

    def wait(references: list[_Reference], num_returns: int, timeout: float) -> tuple[list[_Reference], list[_Reference]]:
        ready = chance.sample(references, num_returns)
        return ready, [reference for reference in references if reference not in ready]

    def kill(actor: _Actor) -> None:
        actor._killed = True

    resources = {"CPU": float(_NUM_CPUS)}
    with (
        # No test cuts the power, and on a busy disk the syncs would take most of the time.
        patch("os.fsync", lambda descriptor: None),
        # Of a worker: this process has the memory of all tests, and finding out takes milliseconds.
        patch("psutil.Process.memory_full_info", lambda process: SimpleNamespace(uss=0)),
        patch.multiple(
            ray,
            remote=remote,
            wait=wait,
            get=_Reference.get,
            kill=kill,
            is_initialized=lambda: True,
            cluster_resources=lambda: resources,
            available_resources=lambda: resources,
        ),
    ):
        yield
