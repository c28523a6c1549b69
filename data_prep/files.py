"""Files that are either whole or absent: atomic writes, a lock, canonical JSON and SHA-256, for data_prep and pipeline."""

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
    """Open a binary file that takes the name `path` only when the block ends without an exception.

    The bytes go to a hidden temporary file in the same folder, which must exist; they are on disk (fsync of file and
    folder) before the call returns. After an exception `path` is what it was before.
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
    """Make renames and new names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FolderInUseError(ValueError):
    """Another process is writing to a folder."""


@contextmanager
def only_writer(folder: Path | str) -> Iterator[None]:
    """Hold `folder` against other processes that ask for it too; the operating system lets go when we die.

    Raises FolderInUseError at once where another holds it. The lock is a hidden file that is gone afterwards.
    """
    path = Path(folder) / ".lock"
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed the file between our opening and our locking it.
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                raise BlockingIOError
        except BlockingIOError:
            raise FolderInUseError(f"{folder}: another process is writing here; wait for it or end it") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value that hashes are taken over: ASCII, sorted keys, no spaces.

    Raises ValueError for NaN and infinities, which JSON does not have.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def readable_json(value: Any) -> bytes:
    """The one spelling of a JSON value that people read: UTF-8, sorted keys, indented, newline at the end."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def write_json_atomically(path: Path | str, value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all."""
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
    """SHA-256 in hexadecimal of what is left of a binary stream, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
