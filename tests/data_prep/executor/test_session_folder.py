"""The temporary folder of Ray: short, with space, deleted also after a kill; and a machine without a network."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import pytest

from data_prep.executor import ray_session, session_folder
from data_prep.executor.ray_session import RaySessionError
from data_prep.executor.session_folder import plasma_folder

_PROGRAM = """
import sys, tempfile, time
tempfile.tempdir = sys.argv[1]
from data_prep.executor.session_folder import session_folder
with session_folder() as folder:
    print(folder, flush=True)
    time.sleep(100)
"""


@pytest.fixture
def short() -> "Path":
    """A temporary folder with a short name: pytest's are too long for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def _inside(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(base))


def test_the_folder_is_deleted_and_so_are_those_of_killed_processes(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _inside(monkeypatch, short)
    processes = [subprocess.Popen([sys.executable, "-c", _PROGRAM, short], stdout=subprocess.PIPE, text=True) for _ in "12"]
    folders = [Path(process.stdout.readline().strip()) for process in processes if process.stdout]
    processes[0].kill()
    processes[0].wait()
    (short / "fnt5-1-mine").mkdir()  # not locked, so perhaps not ours
    (short / "other").mkdir()
    old = time.time() - 100
    for path in short.iterdir():
        os.utime(path, (old, old))
    with session_folder.session_folder() as folder:
        assert folder.parent == short
        assert not folders[0].exists()
        assert folders[1].exists()
    assert not folder.exists()
    processes[1].kill()
    processes[1].wait()
    assert {path.name for path in short.iterdir()} == {"fnt5-1-mine", "other", folders[1].name}


def test_a_temporary_folder_with_a_long_name_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    _inside(monkeypatch, long)
    with session_folder.session_folder() as folder:
        socket_path = f"{folder}/session_2026-11-30_19-42-30_974055_4194304/sockets/plasma_store"
        assert len(socket_path) <= 107
        Path(socket_path).parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(socket_path)
    monkeypatch.setattr(session_folder, "_OTHER_BASES", ())
    expected = r"too long for Ray's sockets.*set TMPDIR to a short path"
    with pytest.raises(ValueError, match=expected), session_folder.session_folder():
        pass


def test_the_object_store_goes_where_the_space_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    free = {Path("/dev/shm"): 64_000_000, tmp_path: 900_000_000}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, free[path]))
    assert plasma_folder(tmp_path, 50_000_000) == Path("/dev/shm")
    assert plasma_folder(tmp_path, 500_000_000) == tmp_path
    with pytest.raises(ValueError, match=rf"needs 1,000 MB, but there are 64 MB in /dev/shm and 900 MB in {tmp_path}: free"):
        plasma_folder(tmp_path, 1_000_000_000)


def test_a_start_that_fails_is_tried_again_and_named_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    shutdowns: list[int] = []
    monkeypatch.setattr(ray, "shutdown", lambda: shutdowns.append(1))  # not the session of all tests
    answers = [Exception("The node timed out.\nMore lines"), Exception("again"), None, *[Exception("The node timed out.")] * 3]

    def start(**kwargs: object) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    ray_session._start(start, tries=3)
    assert len(answers) == 3
    assert len(shutdowns) == 2
    with pytest.raises(RaySessionError, match=r"^Ray did not start \(The node timed out\): the machine may be overloaded"):
        ray_session._start(start, tries=3)


def test_processes_of_a_failed_start_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives up a node whose processes do not answer in time, and forgets them: each start would leave some more."""
    import ray

    monkeypatch.setattr(ray, "shutdown", lambda: None)
    wait = "import time; time.sleep(100)"
    others = [subprocess.Popen([sys.executable, "-c", wait, "/another/folder"])]
    left: list[subprocess.Popen[bytes]] = []

    def start(**kwargs: object) -> None:
        left.append(subprocess.Popen([sys.executable, "-c", wait, f"--logs-dir={tmp_path}/logs"]))
        if len(left) < 3:
            raise Exception("The node timed out.")

    try:
        ray_session._start(start, tries=3, folder=tmp_path)
        assert [process.wait(timeout=30) for process in left[:2]] == [-9, -9]
        assert [process.poll() for process in (left[2], *others)] == [None, None]
        left.clear()
        with pytest.raises(RaySessionError, match="Ray did not start"):
            ray_session._start(start, tries=1, folder=tmp_path)
        assert left[0].wait(timeout=30) == -9
    finally:
        for process in (*left, *others):
            process.kill()
            process.wait()


def test_a_machine_without_a_network_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object, **kwargs: object) -> None:
        raise OSError(101, "Network is unreachable")

    ray_session._validate_loopback()
    monkeypatch.setattr(socket, "create_connection", unreachable)
    with pytest.raises(RaySessionError, match=r"no network interface is up.*unreachable.*ip link set lo up"):
        ray_session._validate_loopback()
