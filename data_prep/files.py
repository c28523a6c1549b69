"""Atomic writes, a folder lock, canonical JSON and SHA-256, for data_prep and pipeline."""

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
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


class FolderInUseError(ValueError):
    """Another process is writing to a folder."""


@contextmanager
def only_writer(folder: Path | str) -> Iterator[None]:
    """Hold an exclusive lock on `folder`; the operating system releases it if this process dies.

    Raises FolderInUseError immediately if another process holds it. The lock is a hidden file, deleted afterwards.
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
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


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
