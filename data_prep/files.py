"""Atomic writes, a folder lock, canonical JSON and SHA-256, for data_prep and pipeline."""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK_BYTES = 1 << 20


@contextmanager
def atomic_write(path: Path | str) -> Iterator[BinaryIO]:
    """Open a binary file that gets the name `path` only if the block ends without an exception.

    The bytes are written to a hidden temporary file (its path is the file's `name`) in the same folder, which must exist.
    File and folder are synced to disk before the block is left. After an exception `path` is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path | str) -> None:
    """Sync a folder to disk, so that new names and renames in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


VISIBLE_SECONDS = 90.0
"""How long a file that another node has written may take to be seen here: NFS keeps what it knows of a folder for a minute."""
_VISIBLE_POLL_SECONDS = 0.5


def await_visible(folder: Path, problem: Callable[[], str | None], seconds: float = VISIBLE_SECONDS) -> str | None:
    """Wait until `problem` finds no fault with what another node has written below `folder`; returns what it found last.

    Network file systems (NFS, Lustre, FUSE) may show new files and new names late on other nodes.
    """
    deadline = time.monotonic() + seconds
    while (found := problem()) is not None and time.monotonic() < deadline:
        time.sleep(_VISIBLE_POLL_SECONDS)
        for place in (folder.parent, folder):
            with suppress(OSError):
                os.listdir(place)  # opening a folder makes NFS ask its server again
    return found


class FolderInUseError(ValueError):
    """Another process is writing to a folder."""


# What file systems without flock answer: Lustre without the option, FUSE, NFS without a lock server.
_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def only_writer(folder: Path | str) -> Iterator[None]:
    """Hold an exclusive lock on `folder`; the operating system releases it if this process dies.

    Raises FolderInUseError immediately if another process holds it. The lock is a hidden file, deleted afterwards. Where the
    file system has no flock, the lock is a file with the holder's host and process, made if it does not exist; that of a
    process which died on this host is replaced, that of another host must be deleted by hand.
    """
    path = Path(folder) / ".lock"
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have deleted the file after we opened it and before we locked it.
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                raise BlockingIOError
        except BlockingIOError:
            raise FolderInUseError(f"{folder}: another process is writing here; wait for it or stop it") from None
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise OSError(error.errno, error.strerror, str(path)) from error
            has_flock = False
        else:
            has_flock = True
        if has_flock:
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
        else:
            path.unlink(missing_ok=True)
            with _owner_file(Path(folder)):
                yield


@contextmanager
def _owner_file(folder: Path) -> Iterator[None]:
    """The lock of `only_writer` without flock."""
    path = folder / ".lock.owner"
    mine = f"{socket.gethostname()} {os.getpid()} {_start_time(os.getpid())}"
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            _remove_dead_owner(folder, path)
            continue
        with os.fdopen(descriptor, "w") as file:
            file.write(mine)
            file.flush()
            os.fsync(file.fileno())
        break
    else:
        raise FolderInUseError(f"{folder}: another process is writing here; wait for it or stop it")
    try:
        yield
    finally:
        with suppress(OSError):
            if path.read_text() == mine:
                path.unlink()


def _remove_dead_owner(folder: Path, path: Path) -> None:
    """Delete the lock of a process that died on this host. Raises FolderInUseError if it may be alive."""
    try:
        owner = path.read_text()
    except FileNotFoundError:
        return
    host, _, process = owner.partition(" ")
    number, _, start = process.partition(" ")
    if host == socket.gethostname() and number.isdigit() and start != _start_time(int(number)):
        # Renamed first: of two processes that find the dead owner, only one may delete its file.
        aside = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        with suppress(FileNotFoundError):
            os.rename(path, aside)
            if aside.read_text() != owner:
                raise FolderInUseError(f"{folder}: another process is writing here; wait for it or stop it")
            aside.unlink()
        return
    raise FolderInUseError(
        f"{folder}: process {number or '?'} on host {host or '?'} is writing here (this file system has no flock); wait for "
        f"it or stop it. If it no longer runs, delete {path}"
    )


def _start_time(process: int) -> str:
    """When a process started, to tell it from a later one with its number; "" if there is none."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    return status.rpartition(")")[2].split()[19]  # in clock ticks since the machine was started


def canonical_json(value: Any) -> bytes:
    """The canonical bytes of a JSON value, used for hashing: ASCII, sorted keys, no spaces.

    Raises ValueError for NaN and infinities, which are not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def readable_json(value: Any) -> bytes:
    """The readable bytes of a JSON value: UTF-8, sorted keys, indented, newline at the end."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def write_json_atomically(path: Path | str, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically."""
    with atomic_write(path) as file:
        file.write(readable_json(value))


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes in hexadecimal."""
    with open(path, "rb") as file:
        return sha256_stream(file)


def sha256_stream(file: BinaryIO) -> str:
    """SHA-256 in hexadecimal of the rest of a binary stream, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
