"""Ray started in a separate process: what it leaves behind, and the environment of its workers."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import psutil
import pytest

from data_prep.executor.ray_session import RaySessionError, _validate_address
from data_prep.executor.workers import Call, DiskFullError, WorkerError, WorkerPool

_PROGRAM = """
import os, ray, signal, subprocess
from data_prep.executor.ray_session import ray_session
from data_prep.executor.workers import Call, WorkerPool
from data_prep.files import sha256_file

before = dict(os.environ)
with ray_session(1):
    assert os.getcwd() == {folder!r}
    workers = ray.remote(lambda: (os.environ["PYTHONSAFEPATH"], __import__("sys").path))
    safe, path = ray.get(workers.remote())
    assert safe == "1" and {folder!r} not in path, path
    with WorkerPool(1) as pool:
        print(list(pool.map([Call(function=sha256_file, arguments=({file!r},), name='hash')]))[0][1])
    children = {{line.split()[0] for line in subprocess.check_output(
        ["ps", "--ppid", str(os.getpid()), "-o", "pid="], text=True).split()}}
assert dict(os.environ) == before, set(os.environ) ^ set(before)
assert not ray.is_initialized()
assert not [child for child in children if os.path.exists(f"/proc/{{child}}/exe")], children
"""


def test_a_session_leaves_nothing_and_its_workers_import_this_package(tmp_path: Path) -> None:
    shadow = tmp_path / "data_prep"
    shadow.mkdir()
    (shadow / "__init__.py").write_text("raise ImportError('not ours')")
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(folder=str(tmp_path), file=str(file))],
        cwd=tmp_path,
        env={**environment, "HOME": str(home), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert not list(home.iterdir())


def _results(function: Callable[..., object], argument: object, pool: WorkerPool) -> list[object]:
    return [result for _, result in pool.map([Call(function=function, arguments=(argument,), name=str(argument))])]


@pytest.mark.usefixtures("real_ray")
def test_an_error_on_a_worker_names_the_argument(tmp_path: Path) -> None:
    from data_prep.files import sha256_file

    with WorkerPool(1) as pool, pytest.raises(WorkerError, match=r"missing: FileNotFoundError"):
        _results(sha256_file, tmp_path / "missing", pool)


@pytest.mark.usefixtures("real_ray")
def test_a_full_disk_has_its_own_error(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        Path("/dev/full").write_bytes(b"x")

    with WorkerPool(1) as pool, pytest.raises(DiskFullError, match="No space left"):
        _results(write, tmp_path, pool)


@pytest.mark.usefixtures("real_ray")
def test_a_dead_worker_is_replaced_and_repeated_deaths_are_an_error(tmp_path: Path) -> None:
    def die_unless(file: Path) -> str:
        import os
        import signal

        if not file.exists():
            file.with_suffix(".seen").touch()
            if file.name == "once":
                file.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return file.name

    started: list[Call] = []
    with WorkerPool(1, on_start=started.append) as pool:
        assert _results(die_unless, tmp_path / "once", pool) == ["once"]
        assert len(started) == 2
        assert (tmp_path / "once.seen").exists()
        with pytest.raises(WorkerError, match=r"always: its worker died 3 times.*fewer workers"):
            _results(die_unless, tmp_path / "always", pool)


@pytest.mark.usefixtures("real_ray")
def test_a_worker_above_its_memory_limit_is_restarted(tmp_path: Path) -> None:
    def hoard(size: int) -> int:
        import builtins
        import os

        builtins.hoard = b"x" * size  # type: ignore[attr-defined]
        return os.getpid()

    with WorkerPool(1, max_worker_bytes=400_000_000) as pool:
        small, large, after = (_results(hoard, size, pool)[0] for size in (1, 500_000_000, 1))
        assert small == large
        assert after != large
        assert pool.num_recycled == 1


def test_a_busy_cluster_is_told_and_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker ever starts, because other jobs have the CPUs."""
    import ray

    monkeypatch.setattr(ray, "wait", lambda references, num_returns, timeout: ([], references))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    monkeypatch.setattr(ray, "available_resources", dict)
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("data_prep.executor.workers.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(ray, "remote", lambda **options: lambda kind: MagicMock())
    told: list[str] = []
    pool = WorkerPool(2, on_wait=told.append, max_wait_seconds=60)
    with pytest.raises(WorkerError, match=r"no worker started in 70 s: 0 of 8 CPUs of Ray are free; wait for other jobs"):
        pool.wait(pool.awaited)
    assert told == ["waiting for a worker to start (0 of 8 CPUs of Ray are free), at most 60 s"] * 6


def test_a_killed_raylet_ends_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own calls would wait for ever."""
    import ray

    process = psutil.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    monkeypatch.setattr("data_prep.executor.ray_session._raylets", [process])
    monkeypatch.setattr(ray, "remote", lambda **options: lambda kind: MagicMock())
    monkeypatch.setattr(ray, "cluster_resources", dict)
    waits: list[int] = []

    def wait(references: list[object], num_returns: int, timeout: float) -> tuple[list[object], list[object]]:
        waits.append(1)
        if len(waits) == 3:
            process.kill()  # a zombie until it is waited for
            while process.status() != psutil.STATUS_ZOMBIE:
                pass
        return [], references

    monkeypatch.setattr(ray, "wait", wait)
    pool = WorkerPool(1)
    with pytest.raises(RaySessionError, match=r"raylet was killed.*memory ran out.*rerun the same command to resume"):
        pool.wait(pool.awaited)
    assert len(waits) == 3
    process.wait()


@pytest.mark.parametrize(("address", "expected"), [("nonsense", "not HOST:PORT"), ("127.0.0.1:9", "no Ray cluster answers")])
def test_an_address_without_a_cluster_fails_immediately(address: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        _validate_address(address)
