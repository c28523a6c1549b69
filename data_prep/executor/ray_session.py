"""A Ray session that is started or joined for one block and always let go."""

import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

# Blocks of raw text go through the object store, tokens through files. Pages are taken as they are first used.
MIN_OBJECT_STORE_BYTES = 200 * 2**20

_CONNECT_SECONDS = 20

# PYTHONSAFEPATH and the empty folder below: the current folder may hold some other `data_prep`, and Ray puts the
# driver's current folder first on its workers' path. Each worker is one core's work, so the tokenizer may not start
# threads of its own.
_WORKER_ENVIRONMENT = {"PYTHONSAFEPATH": "1", "TOKENIZERS_PARALLELISM": "false"}


@contextmanager
def ray_session(
    num_workers: int, address: str | None = None, object_store_bytes: int = MIN_OBJECT_STORE_BYTES
) -> Iterator[None]:
    """Make `ray` usable inside the block: at `address` if given, else embedded with `num_workers` CPUs.

    A Ray that this process already runs is used as it is and left running. The environment and the current folder are
    as before once the session has started.
    """
    import ray  # late: 0.4 s that `--help` need not pay

    if ray.is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory() as empty_folder:
        try:
            if address:
                _refuse_silence(address)
                environment = {"env_vars": dict(_WORKER_ENVIRONMENT)}
                ray.init(address, log_to_driver=False, logging_level="ERROR", runtime_env=environment)
            else:
                with _environment(_embedded_environment()), _current_folder(empty_folder):
                    # "local", or Ray joins any cluster that was ever started on this machine and left its address.
                    ray.init(
                        "local",
                        num_cpus=num_workers,
                        num_gpus=0,
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level="ERROR",
                        object_store_memory=max(object_store_bytes, MIN_OBJECT_STORE_BYTES),
                    )
            yield
        finally:
            ray.shutdown()


def _refuse_silence(address: str) -> None:
    """Raise ValueError where nobody listens at `address`: Ray itself would try for minutes, or for ever."""
    if address in ("auto", "local"):
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"--ray-address {address}: not HOST:PORT; `ray start --head` prints the address to give")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(
            f"--ray-address {address}: no Ray cluster answers there ({error}); start one with `ray start --head`, or leave "
            "the option out to start one here"
        ) from error


def _embedded_environment() -> dict[str, str]:
    environment = dict(_WORKER_ENVIRONMENT)
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_enable_metrics_collection": "false",
    }
    # Ray listens on every interface and runs whatever it is sent, so it must ask for a token. Given none, recent
    # versions write one into the user's home; given one, they use it and leave no trace.
    if "RAY_AUTH_MODE" not in os.environ:
        defaults["RAY_AUTH_TOKEN"] = _process_token()
    return environment | {name: value for name, value in defaults.items() if name not in os.environ}


@lru_cache(maxsize=1)
def _process_token() -> str:
    # One for the life of the process, because Ray's client reads it once.
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
