"""A Ray session that is started or joined for one block and always shut down."""

import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path

import psutil

from data_prep.executor.session_folder import plasma_folder, session_folder

# Blocks of raw text go through the object store, tokens through files. Memory pages are allocated at their first use.
MIN_OBJECT_STORE_BYTES = 200 * 2**20

_CONNECT_SECONDS = 20
_START_TRIES = 3

# PYTHONSAFEPATH and the empty folder below: the current folder may contain another package called `data_prep`, and Ray
# puts the driver's current folder first on its workers' path. Each worker uses one core, so the tokenizer must not start
# threads.
_WORKER_ENVIRONMENT = {"PYTHONSAFEPATH": "1", "TOKENIZERS_PARALLELISM": "false"}


class RaySessionError(ValueError):
    """Ray that cannot be started or joined, or whose processes were killed."""


# The raylet of the session that this process has started: without it no call ever ends.
_raylets: list[psutil.Process] = []


def validate_session() -> None:
    """Raise RaySessionError if the raylet of the session that `ray_session` has started here was killed."""
    for raylet in _raylets:
        if not raylet.is_running() or raylet.status() == psutil.STATUS_ZOMBIE:
            raise RaySessionError(
                "Ray's raylet was killed, usually because memory ran out: use fewer workers or smaller unit_bytes, and rerun "
                "the same command to resume"
            )


@contextmanager
def ray_session(
    num_workers: int, address: str | None = None, object_store_bytes: int = MIN_OBJECT_STORE_BYTES
) -> Iterator[None]:
    """Connect to Ray inside the block: to the cluster at `address`, or else start Ray here with `num_workers` CPUs.

    A Ray session that already runs in this process is used and left running. The environment, the current folder and the
    handlers of signals are restored as soon as the session has started. Raises RaySessionError if no cluster answers at
    `address` or if Ray does not start.
    """
    import ray  # imported late: it takes 0.4 s, which `--help` does not need

    if ray.is_initialized():
        yield
        return
    with ExitStack() as stack:
        if address:
            _validate_address(address)
            environment = {"env_vars": dict(_WORKER_ENVIRONMENT)}
            start = partial(ray.init, address, runtime_env=environment)
        else:
            _validate_loopback()
            num_bytes = max(object_store_bytes, MIN_OBJECT_STORE_BYTES)
            folder = stack.enter_context(session_folder())
            (folder / "empty").mkdir()
            # Without "local", Ray would join any cluster whose address was left on this machine.
            start = partial(
                ray.init,
                "local",
                num_cpus=num_workers,
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=num_bytes,
                _plasma_directory=str(plasma_folder(folder, num_bytes)),
                _temp_dir=str(folder),
            )
        stack.callback(ray.shutdown)
        with _signal_handlers_kept(), ExitStack() as starting:
            if not address:
                starting.enter_context(_environment(_embedded_environment()))
                starting.enter_context(_current_folder(str(folder / "empty")))
            _start(start, tries=1) if address else _start(start, _START_TRIES, folder)
        if not address:
            stack.callback(_raylets.clear)
            children = psutil.Process().children(recursive=True)
            _raylets.extend(child for child in children if child.name() == "raylet")
        yield


def _start(start: Callable[..., object], tries: int, folder: Path | None = None) -> None:
    """Start Ray, again if it gives up: it waits only half a minute for its processes, which a busy machine may exceed.

    `folder`: the folder of a session that is started here. Processes of a failed start have it in their command lines.
    """
    import ray

    for number in range(1, tries + 1):
        try:
            start(log_to_driver=False, logging_level="ERROR")
            return
        except Exception as error:  # Ray raises bare Exceptions, some of many lines
            ray.shutdown()
            if folder:
                _kill_processes_of(folder)
            if number < tries:
                continue
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RaySessionError(
                f"Ray did not start ({reason.rstrip('. ')}): the machine may be overloaded or out of memory or processes; "
                "rerun the same command"
            ) from error


def _kill_processes_of(folder: Path) -> None:
    """Kill what a failed start has left: Ray forgets the processes of a node that it gives up."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(str(folder) in argument for argument in child.cmdline()):
                child.kill()


def _validate_loopback() -> None:
    """Raise RaySessionError if no network interface is up: Ray would wait forever, without a word."""
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            socket.create_connection(listener.getsockname(), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise RaySessionError(
            f"no network interface is up, not even loopback ({error}), and Ray's processes talk over the network: run "
            "`ip link set lo up`, or start the container with a network"
        ) from error


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Restore the handlers of signals after the block: Ray's print its own stack and exit with 15 instead of 143."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)


def _validate_address(address: str) -> None:
    """Raise RaySessionError if nothing listens at `address`. Ray itself would retry for minutes, or forever."""
    if address in ("auto", "local"):
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        raise RaySessionError(f"--ray-address {address}: not HOST:PORT; `ray start --head` prints the address to give")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise RaySessionError(
            f"--ray-address {address}: no Ray cluster answers ({error}); start one with `ray start --head`, or omit "
            "the option to start Ray on this machine"
        ) from error


def _embedded_environment() -> dict[str, str]:
    environment = dict(_WORKER_ENVIRONMENT)
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_enable_metrics_collection": "false",
    }
    # Ray listens on every network interface and runs the code that it receives, so it must require a token. Without one,
    # recent versions write a token into the user's home folder; with one, they use it and write nothing.
    if "RAY_AUTH_MODE" not in os.environ:
        defaults["RAY_AUTH_TOKEN"] = _process_token()
    return environment | {name: value for name, value in defaults.items() if name not in os.environ}


@lru_cache(maxsize=1)
def _process_token() -> str:
    # One per process, because Ray's client reads it only once.
    return secrets.token_hex(32)


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _current_folder(folder: str) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
