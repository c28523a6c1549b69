"""Which checkpoints and leftover folders of a run are removed, renamed or kept."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from pipeline.run_folder import checkpoints_of, problem, step_of

_log = logging.getLogger(__name__)

_LEFTOVER = re.compile(r"\.(?P<name>step_\d{8})\.(?P<kind>partial|removed|replaced)")
# Of `atomic_write`, in files that only the holder of the run's lock writes.
_TEMPORARY = re.compile(r"\.(latest|metrics\.jsonl|mlflow_run_id|provenance\.json|STATUS)\.\d+\.[0-9a-f]{8}\.tmp")


def prune(run: Path, keep_last: int | None, keep_every: int | None, keep: Collection[int] = ()) -> list[Path]:
    """Remove all checkpoints but the newest `keep_last`, those at multiples of `keep_every`, and those of the steps in `keep`.

    Returns what was removed. None for `keep_last` keeps all. The newest is never removed. A damaged one is neither removed nor
    counted: it must not push out one that can be used.
    """
    if keep_last is None:
        return []
    found = [path for path in sorted(checkpoints_of(run).glob("step_*[0-9]")) if problem(path) is None]
    removed = []
    for path in found[: -max(1, keep_last)]:
        step = step_of(path)
        if step in keep or (keep_every is not None and step % keep_every == 0):
            continue
        hidden = path.with_name(f".{path.name}.removed")  # a half-removed one must not look like a checkpoint
        path.rename(hidden)
        remove_folder(hidden)
        removed.append(path)
    return removed


def remove_folder(hidden: Path) -> bool:
    """Remove a folder that nothing loads; returns whether it is gone. If not, a warning is logged and the run goes on.

    On a network file system a file that another process has open, or that is seen late, keeps its folder for a while.
    """
    error: OSError | None = None
    for wait in (0.1, 0.5, 0.0):
        try:
            shutil.rmtree(hidden)
        except OSError as failure:
            error = failure
        if not hidden.exists():
            return True
        time.sleep(wait)
    _log.warning("%s could not be removed (%s): the next start tries it again", hidden, error)
    return False


def set_aside(checkpoint: Path, why: str = "damaged") -> Path:
    """Rename a checkpoint to `….<why>`, which nothing loads, and return the new path."""
    number = 0
    while (aside := checkpoint.with_name(f"{checkpoint.name}.{why}{number or ''}")).exists():
        number += 1
    checkpoint.rename(aside)
    return aside


def were_set_aside(run: Path) -> list[Path]:
    """The checkpoints that `set_aside` has renamed."""
    folder = checkpoints_of(run)
    return sorted(path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{8}\.(damaged|diverged)\d*", path.name))


def remove_leftovers(run: Path) -> list[Path]:
    """Remove what earlier starts of this run left unfinished: partial, half-removed and replaced checkpoints, temporary files.

    For the process that holds the run's lock. A replaced checkpoint whose successor did not get its name is restored. Returns
    what was removed.
    """
    folder = checkpoints_of(run)
    removed = []
    # `replaced` sorts last: its successor is then settled
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or not path.is_dir():
            continue
        original = folder / match["name"]
        if match["kind"] == "replaced" and not original.exists():
            path.rename(original)
            continue
        if remove_folder(path):
            removed.append(path)
    for parent in (run, folder):
        for path in parent.iterdir() if parent.is_dir() else ():
            if _TEMPORARY.fullmatch(path.name) and path.is_file():
                path.unlink()
                removed.append(path)
    return removed
