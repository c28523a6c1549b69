import errno
import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.files import (
    FolderInUseError,
    atomic_write,
    canonical_json,
    only_writer,
    sha256_file,
    write_json_atomically,
)

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_appears_only_when_the_file_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"new"


@given(_JSON)
def test_canonical_json_keeps_the_value_and_ignores_the_key_order(value: object) -> None:
    assert json.loads(canonical_json(value)) == value
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


def test_canonical_json_refuses_values_that_json_does_not_have() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_json_and_hash_of_a_file(tmp_path: Path) -> None:
    write_json_atomically(tmp_path / "a.json", {"b": "é", "a": 1})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"a": 1, "b": "é"}
    assert sha256_file(tmp_path / "a.json") == hashlib.sha256((tmp_path / "a.json").read_bytes()).hexdigest()


def test_a_folder_has_one_writer_and_dead_writers_are_ignored(tmp_path: Path) -> None:
    program = (
        f"import sys; from data_prep.files import only_writer\n"
        f"with only_writer({str(tmp_path)!r}): print('mine', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"mine\n"
        with pytest.raises(FolderInUseError, match="another process is writing"), only_writer(tmp_path):
            pass
        other.kill()
        other.wait()
    with only_writer(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def no_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without flock, as Lustre without the option, FUSE and some NFS."""

    def flock(file: object, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_folder_has_one_writer(tmp_path: Path) -> None:
    lock = tmp_path / ".lock.owner"
    with only_writer(tmp_path):
        assert lock.read_text().split()[:2] == [socket.gethostname(), str(os.getpid())]
        with pytest.raises(FolderInUseError, match=rf"process {os.getpid()} on host .*{lock}"), only_writer(tmp_path):
            pass
    assert not list(tmp_path.iterdir())
    lock.write_text("another-host 12 1.0")
    with pytest.raises(FolderInUseError, match=rf"process 12 on host another-host .*delete {lock}"), only_writer(tmp_path):
        pass
    assert lock.read_text() == "another-host 12 1.0"


@pytest.mark.usefixtures("no_flock")
@pytest.mark.parametrize("owner", ["{host} 4194303 1.0", "{host} {pid} 1.0"])
def test_without_flock_the_lock_of_a_dead_process_is_replaced(tmp_path: Path, owner: str) -> None:
    """Also if its number was given to another process since."""
    (tmp_path / ".lock.owner").write_text(owner.format(host=socket.gethostname(), pid=os.getpid()))
    with only_writer(tmp_path):
        assert (tmp_path / ".lock.owner").read_text().split()[1] == str(os.getpid())
    assert not list(tmp_path.iterdir())


def test_another_error_of_a_lock_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match=rf"Input/output error: '{tmp_path}/\.lock'"), only_writer(tmp_path):
        pass
