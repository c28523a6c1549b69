"""The temporary folder of an embedded Ray: short, with space, deleted after the session, also if the process was killed."""

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME = re.compile(r"fnt5-\d+-\w+")
# A socket's path has at most 107 bytes; Ray adds "/session_<date>_<time>_<process>/sockets/plasma_store" to its folder.
_MAX_SOCKET_PATH = 107
_RAY_ADDS = 68
_NAME_BYTES = len("fnt5-4194304-") + 8
_OTHER_BASES = ("/tmp", "/var/tmp", "/dev/shm")
# A younger folder may belong to a process that has not locked it yet.
_MIN_AGE_SECONDS = 60
_DELETE_TRIES = 25


@contextmanager
def session_folder() -> Iterator[Path]:
    """A new folder for one session. Folders of processes that were killed are deleted first.

    Raises ValueError if no temporary folder has a short enough name.
    """
    base = _base()
    _delete_abandoned(base)
    folder = Path(tempfile.mkdtemp(prefix=f"fnt5-{os.getpid()}-", dir=base))
    try:
        with open(folder / ".alive", "wb") as alive:
            with suppress(OSError):  # without flock, other processes never delete this folder
                fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
    finally:
        # Processes of Ray that are just ending may still write a file.
        for _ in range(_DELETE_TRIES):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.2)


def plasma_folder(session: Path, num_bytes: int) -> Path:
    """Where Ray's object store of `num_bytes` goes: shared memory if it has the space, else the session's folder.

    Raises ValueError if neither has the space.
    """
    shared = Path("/dev/shm")
    free = {path: shutil.disk_usage(path).free for path in (shared, session) if path.is_dir()}
    for path in (shared, session):
        if free.get(path, 0) >= num_bytes:
            return path
    found = " and ".join(f"{number / 1e6:,.0f} MB in {path}" for path, number in free.items())
    raise ValueError(
        f"Ray's object store needs {num_bytes / 1e6:,.0f} MB, but there are {found}: free some space, set TMPDIR to a folder "
        "with space, or use fewer workers or smaller unit_bytes"
    )


def _base() -> str:
    longest = _MAX_SOCKET_PATH - _RAY_ADDS - _NAME_BYTES - 1
    given = tempfile.gettempdir()
    for base in (given, *_OTHER_BASES):
        if len(os.fsencode(base)) <= longest and os.access(base, os.W_OK | os.X_OK):
            return base
    raise ValueError(
        f"the temporary folder {given} has a name of over {longest} bytes, too long for Ray's sockets, and none of "
        f"{', '.join(_OTHER_BASES)} can be written: set TMPDIR to a short path"
    )


def _delete_abandoned(base: str) -> None:
    with suppress(OSError):
        for entry in list(os.scandir(base)):
            if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                if status.st_uid == os.getuid() and time.time() - status.st_mtime > _MIN_AGE_SECONDS:
                    _delete_if_abandoned(Path(entry.path))


def _delete_if_abandoned(folder: Path) -> None:
    with suppress(OSError), open(folder / ".alive", "rb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if its process lives
        shutil.rmtree(folder, ignore_errors=True)
