"""A run folder: the names of its files, its status, and its checkpoints with their canonical weights.

Nothing here depends on the mesh that wrote them, on DeepSpeed or on Megatron.
"""

from __future__ import annotations

import io
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from data_prep.files import FolderInUseError, atomic_write, only_writer, sha256_stream

_log = logging.getLogger(__name__)

METRICS, STATUS, LATEST = "metrics.jsonl", "STATUS", "latest"
WEIGHTS, STATE, INDEX, POSITION = "weights", "state", "model.safetensors.index.json", "position.json"
CHECKPOINT_MANIFEST = "manifest.json"
_LOCK = ".lock"

Report = Callable[[str], None]
"""Called with what is being done, between the parts of something that may take long: that counts as progress."""
_REPORTED_BYTES = 256 << 20
_REMEDY = "the checkpoint is damaged; use another one, by --step where the command takes it"


def no_report(activity: str) -> None:
    """Reports to nobody."""


def checkpoints_of(run: Path) -> Path:
    return run / "checkpoints"


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint. Raises ValueError for another name."""
    return int(checkpoint.name.removeprefix("step_"))


def latest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None.

    It is the one that `latest` names. If that file is missing, or names a missing or incomplete checkpoint (after a crash
    between two renames, or in a partial copy of a run), it is the newest complete one.
    """
    return next((path for path in by_preference(run) if problem(path) is None), None)


def by_preference(run: Path) -> list[Path]:
    """The checkpoints of a run, complete or not: the one that `latest` names, then the others from the newest on.

    Where `latest` names an older one, because someone went back to it, those before it come before those after it.
    """
    folder = checkpoints_of(run)
    found = sorted((path for path in folder.glob("step_*[0-9]") if path.is_dir()), reverse=True)
    pointer = folder / LATEST
    named = folder / pointer.read_text(errors="replace").strip() if pointer.is_file() else None
    if named not in found:
        return found
    return [*(path for path in found if path <= named), *(path for path in found if path > named)]


def problem(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, or None, from the names of its files: `checkpoint.verify` also reads them.

    Every command judges checkpoints by this function.
    """
    try:
        sums = checksums(checkpoint)
    except ValueError as error:
        return str(error)
    if not sums:
        return f"{checkpoint} has no {STATE}/{CHECKPOINT_MANIFEST}: not a checkpoint of fnet-t5, or an incomplete one"
    missing = next((name for name in sums if not (checkpoint / name).is_file()), None)
    return None if missing is None else f"{checkpoint / missing} is missing: {_REMEDY}"


def find(run: Path, step: int | None = None) -> Path:
    """The checkpoint of `step`, or the latest, for which a warning names each preferable one that is damaged.

    Raises ValueError, with the existing ones, if it does not exist or is damaged.
    """
    if step is None:
        skipped: list[str] = []
        for path in by_preference(run):
            wrong = problem(path)
            if wrong is None:
                for text in skipped:
                    _log.warning("skipped checkpoint %s; using %s", text, path.name)
                return path
            skipped.append(wrong)
        why = f" ({skipped[0]})" if skipped else ""
        raise ValueError(f"{run} has no complete checkpoint{why}: train it first, or give another run folder")
    path = checkpoints_of(run) / step_name(step)
    if not path.is_dir():
        names = ", ".join(sorted(child.name for child in path.parent.glob("step_*[0-9]"))) or "none"
        raise ValueError(f"{run} has no checkpoint of step {step}; it has: {names}")
    if (wrong := problem(path)) is not None:
        raise ValueError(wrong)
    return path


def load_weights(checkpoint: Path, report: Report = no_report) -> dict[str, Tensor]:
    """Every parameter by its canonical name, on the CPU. Raises ValueError if a file is missing or damaged."""
    sums = checksums(checkpoint)
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(checkpoint):
        report(f"reading {path.name}")
        check_file(path, sums.get(f"{WEIGHTS}/{path.name}"), report)
        tensors.update(load_file(path))
    return tensors


def weight_shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by its canonical name, without reading any. Raises ValueError if there are none."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _weight_files(checkpoint):
        check_file(path, None)
        with safe_open(path, framework="pt") as file:
            shapes.update({key: tuple(file.get_slice(key).get_shape()) for key in file.keys()})  # noqa: SIM118
    return shapes


def _weight_files(checkpoint: Path) -> list[Path]:
    index_path = checkpoint / WEIGHTS / INDEX
    if not index_path.is_file():
        raise ValueError(f"{checkpoint} holds no {WEIGHTS}/{INDEX}: it is no checkpoint of this project, or incomplete")
    names = set(json.loads(index_path.read_bytes())["weight_map"].values())
    return [checkpoint / WEIGHTS / name for name in sorted(names)]


def checksums(checkpoint: Path) -> dict[str, str]:
    """The SHA-256 of every file of a checkpoint by its path there; empty if the weights were copied without it.

    Raises ValueError if the manifest is there and is damaged.
    """
    path = checkpoint / STATE / CHECKPOINT_MANIFEST
    if not path.is_file():
        return {}
    try:
        sums = json.loads(path.read_bytes())["sha256"]
    except (ValueError, KeyError, TypeError):
        sums = None
    if not isinstance(sums, dict) or not sums or not all(isinstance(value, str) for value in sums.values()):
        raise ValueError(f"{path} ({path.stat().st_size} bytes) is not a manifest of checksums: {_REMEDY}")
    return sums


def check_file(path: Path, sha256: str | None, report: Report = no_report) -> None:
    """Raise ValueError if a file of a checkpoint is missing, or if its hash is not `sha256` (None: any)."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: {_REMEDY}")
    if sha256 is not None and hash_file(path, report) != sha256:
        raise ValueError(f"{path} differs from its checksum: {_REMEDY}")


def hash_file(path: Path, report: Report = no_report) -> str:
    """SHA-256 of a file in hexadecimal, with a report every 256 MiB."""
    with _ReportingFile(path, report) as file:
        return sha256_stream(file)


class _ReportingFile(io.FileIO):
    def __init__(self, path: Path, report: Report) -> None:
        super().__init__(path)
        self._name, self._report, self._unreported = path.name, report, _REPORTED_BYTES

    def read(self, size: int | None = -1) -> bytes:
        self._unreported += size or 0
        if self._unreported >= _REPORTED_BYTES:
            self._report(f"reading {self._name}")
            self._unreported = 0
        return super().read(size) or b""


@contextmanager
def hold(run: Path) -> Iterator[None]:
    """Be the only process that trains in a run folder, and leave its name for others there.

    Raises FolderInUseError, naming the holder, if another one trains there.
    """
    try:
        with only_writer(run):
            # where the lock is another file (without flock), that one has the holder's name
            with suppress(FileNotFoundError), (run / _LOCK).open("r+") as file:
                file.truncate()
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
            yield
    except FolderInUseError as error:
        raise FolderInUseError(_in_use(run, error)) from None


def _in_use(run: Path, error: FolderInUseError) -> str:
    try:
        holder = (run / _LOCK).read_text(errors="replace")
    except OSError:
        holder = ""
    return f"{run}: {holder} is training here; wait for it or stop it" if holder else str(error)


def write_status(run: Path, status: str) -> None:
    """Write STATUS: running, finished, preempted or failed."""
    with atomic_write(run / STATUS) as file:
        file.write(status.encode() + b"\n")


def read_status(run: Path) -> str | None:
    """The word in STATUS, or None if there is no such file."""
    path = run / STATUS
    return path.read_text().strip() if path.is_file() else None


def settle_status(run: Path) -> None:
    """Mark a run as failed if it still says running after its processes have ended."""
    if read_status(run) == "running":
        write_status(run, "failed")


@dataclass(frozen=True, kw_only=True)
class StoredCheckpoint:
    """A checkpoint in a list."""

    step: int
    mesh: str
    """tensor × pipeline × data, or "?" if it is not recorded."""
    num_bytes: int
    target_tokens: int
    problem: str | None
    """Why it cannot be used, if so."""


def describe(checkpoint: Path) -> StoredCheckpoint:
    """Describe a checkpoint from its own files; it may be damaged."""
    path = checkpoint / STATE / POSITION
    try:
        position = json.loads(path.read_bytes())
        mesh, target_tokens = position.get("mesh"), position["counters"]["target_tokens"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        mesh, target_tokens = None, 0
    return StoredCheckpoint(
        step=step_of(checkpoint),
        mesh=f"{mesh['tensor']} × {mesh['pipeline']} × {mesh['data']}" if mesh else "?",
        num_bytes=sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()),
        target_tokens=target_tokens,
        problem=problem(checkpoint),
    )
