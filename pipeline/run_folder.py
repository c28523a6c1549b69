"""A run folder: the names of its files, its status, and its checkpoints with their canonical weights.

Nothing here depends on the mesh that wrote them, on DeepSpeed or on Megatron.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from data_prep.files import atomic_write, sha256_file

METRICS, STATUS, LATEST = "metrics.jsonl", "STATUS", "latest"
WEIGHTS, STATE, INDEX, POSITION = "weights", "state", "model.safetensors.index.json", "position.json"


def checkpoints_of(run: Path) -> Path:
    return run / "checkpoints"


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def latest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None.

    It is the one that `latest` names. If that file is missing, or names a missing or incomplete checkpoint (after a crash
    between two renames, or in a partial copy of a run), it is the newest complete one.
    """
    folder = checkpoints_of(run)
    pointer = folder / LATEST
    named = folder / pointer.read_text().strip() if pointer.is_file() else None
    if named is not None and is_complete(named):
        return named
    return max((path for path in folder.glob("step_*[0-9]") if is_complete(path)), default=None)


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of a checkpoint's manifest exists. `checkpoint.verify` also checks their contents."""
    if not (checkpoint / STATE / "manifest.json").is_file():
        return False
    return all((checkpoint / name).is_file() for name in checksums(checkpoint))


def find(run: Path, step: int | None = None) -> Path:
    """The checkpoint of `step`, or the latest. Raises ValueError, with the existing ones, if it does not exist."""
    if step is None:
        path = latest(run)
        if path is None:
            raise ValueError(f"{run} has no complete checkpoint: train it first, or give another run folder")
        return path
    path = checkpoints_of(run) / step_name(step)
    if not path.is_dir():
        names = ", ".join(sorted(child.name for child in path.parent.glob("step_*[0-9]"))) or "none"
        raise ValueError(f"{run} has no checkpoint of step {step}; it has: {names}")
    return path


def load_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Every parameter by its canonical name, on the CPU. Raises ValueError if a file is missing or damaged."""
    sums = checksums(checkpoint)
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(checkpoint):
        check_file(path, sums.get(f"{WEIGHTS}/{path.name}"))
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
    """The SHA-256 of every file of a checkpoint by its path there; empty if the weights were copied without it."""
    path = checkpoint / STATE / "manifest.json"
    sums: dict[str, str] = json.loads(path.read_bytes())["sha256"] if path.is_file() else {}
    return sums


def check_file(path: Path, sha256: str | None) -> None:
    """Raise ValueError if a file of a checkpoint is missing, or if its hash is not `sha256` (None: any)."""
    remedy = "the checkpoint is damaged; take another one (--step)"
    if not path.is_file():
        raise ValueError(f"{path} is missing: {remedy}")
    if sha256 is not None and sha256_file(path) != sha256:
        raise ValueError(f"{path} differs from its checksum: {remedy}")


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
    is_complete: bool


def describe(checkpoint: Path) -> StoredCheckpoint:
    """Describe a checkpoint from its own files; it may be damaged."""
    path = checkpoint / STATE / POSITION
    position = json.loads(path.read_bytes()) if path.is_file() else {}
    mesh = position.get("mesh")
    return StoredCheckpoint(
        step=int(checkpoint.name.removeprefix("step_")),
        mesh=f"{mesh['tensor']} × {mesh['pipeline']} × {mesh['data']}" if mesh else "?",
        num_bytes=sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()),
        target_tokens=position.get("counters", {}).get("target_tokens", 0),
        is_complete=is_complete(checkpoint),
    )
