"""Checkpoints: weights under canonical names, independent of the mesh, and the state that resumes the run on any mesh.

    checkpoints/step_00000100/weights/   model-0000k-of-0000n.safetensors + model.safetensors.index.json
    checkpoints/step_00000100/state/     engine/ (optimizer state), probe.safetensors (load check), position.json, and
                                         manifest.json with the sha256 of every file
    checkpoints/latest                   the name of the newest complete checkpoint, written last

A checkpoint is written under a temporary name and renamed when every rank has finished, so one with its final name is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_prep.files import atomic_write, fsync_folder, sha256_file, write_json_atomically
from pipeline.checkpoint.load_check import check_logits, save_logits
from pipeline.checkpoint.optimizer_state import OPTIMIZER_FOLDER, load_optimizer_state, save_optimizer_state
from pipeline.data.batches import PipelineBatch
from pipeline.distributed.mesh import Mesh
from pipeline.distributed.pipeline_stages import Stages
from pipeline.distributed.tensor_parallel import gather_shards
from pipeline.engine.engine import Engine
from pipeline.run_folder import INDEX, LATEST, POSITION, STATE, WEIGHTS, check_file, checkpoints_of, checksums, step_name
from pipeline.tracking.metrics import Counters


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run is (position.json): enough to resume its data order, schedule, counters and spike detector."""

    step: int
    seed: int
    dataset_fingerprint: str
    counters: Counters
    mesh: dict[str, int]
    guards: dict[str, list[float]] = field(default_factory=dict)
    """The state of the spike detector."""
    next_sample: int | None = None
    """The next global sample. None in checkpoints of early versions, where it is step x global batch size."""

    @classmethod
    def read(cls, checkpoint: Path) -> Position:
        """The position of a checkpoint folder."""
        values = json.loads((checkpoint / STATE / POSITION).read_bytes())
        return cls(**{**values, "counters": Counters(**values["counters"])})


def save(run: Path, engine: Engine, position: Position, check_batch: PipelineBatch) -> Path:
    """Write a checkpoint and return its folder: a collective, called by every rank at the same step.

    Logits of `check_batch` are stored for the load check. Raises OSError if a file cannot be written; earlier checkpoints are
    then unchanged.
    """
    mesh = engine.mesh
    folder = checkpoints_of(run)
    final = folder / step_name(position.step)
    partial = folder / f".{final.name}.partial"
    if mesh.is_main:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / WEIGHTS).mkdir(parents=True)
        (partial / STATE / OPTIMIZER_FOLDER).mkdir(parents=True)
    torch.distributed.barrier()
    try:
        _save_weights(partial / WEIGHTS, engine.stages, mesh)
        save_optimizer_state(partial / STATE / OPTIMIZER_FOLDER, engine.deepspeed, engine.fragments, mesh)
        save_logits(partial / STATE, engine, check_batch)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"checkpoint {final} could not be written ({error}): earlier ones are kept; free space or fix the disk, then rerun "
            "the same command to resume"
        ) from error
    torch.distributed.barrier()
    if mesh.is_main:
        _finish_weights(partial / WEIGHTS, mesh)
        finish(partial, final, position)
    torch.distributed.barrier()
    return final


def finish(partial: Path, final: Path, position: Position) -> None:
    """Complete a checkpoint whose files are written: position, checksums, fsync, final name, and the pointer `latest`."""
    write_json_atomically(partial / STATE / POSITION, asdict(position))
    files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
    for path in files:
        _fsync(path)  # a power cut must not leave a final name with empty files
    sums = {str(path.relative_to(partial)): sha256_file(path) for path in files}
    write_json_atomically(partial / STATE / "manifest.json", {"step": position.step, "sha256": sums})
    if final.exists():  # the same step was saved before, and the run restarted from an earlier one
        replaced = final.with_name(f".{final.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
        partial.rename(final)
        shutil.rmtree(replaced)
    else:
        partial.rename(final)
    fsync_folder(final.parent)
    with atomic_write(final.parent / LATEST) as file:
        file.write(final.name.encode() + b"\n")


def prune(run: Path, keep_last: int | None, keep_every: int | None, keep: Collection[int] = ()) -> list[Path]:
    """Remove all checkpoints but the newest `keep_last`, those at multiples of `keep_every`, and those of the steps in `keep`.

    Returns what was removed. None for `keep_last` keeps all. The newest is never removed.
    """
    if keep_last is None:
        return []
    found = sorted(checkpoints_of(run).glob("step_*[0-9]"))
    removed = []
    for path in found[: -max(1, keep_last)]:
        step = int(path.name.removeprefix("step_"))
        if step in keep or (keep_every is not None and step % keep_every == 0):
            continue
        hidden = path.with_name(f".{path.name}.removed")  # a half-removed one must not look like a checkpoint
        path.rename(hidden)
        shutil.rmtree(hidden)
        removed.append(path)
    return removed


def set_aside(checkpoint: Path) -> Path:
    """Rename a corrupt checkpoint to `….damaged`, which nothing loads, and return the new path."""
    number = 0
    while (aside := checkpoint.with_name(f"{checkpoint.name}.damaged{number or ''}")).exists():
        number += 1
    checkpoint.rename(aside)
    return aside


def verify(checkpoint: Path) -> None:
    """Compare every file with the manifest of the checkpoint. Raises ValueError naming the first that differs."""
    sums = checksums(checkpoint)
    if not sums:
        raise ValueError(f"{checkpoint} has no {STATE}/manifest.json: not a checkpoint of fnet-t5, or an incomplete one")
    for name, expected in sums.items():
        check_file(checkpoint / name, expected)


def load_state(checkpoint: Path, engine: Engine, check_batch: PipelineBatch) -> None:
    """Load weights and optimizer state written by any mesh, then run the load check on `check_batch`: a collective.

    Raises ValueError if the checkpoint is one of another model, or if the stored logits do not come out again.
    """
    load_optimizer_state(checkpoint / STATE / OPTIMIZER_FOLDER, engine.deepspeed, engine.stages, engine.fragments, engine.mesh)
    check_logits(checkpoint / STATE, engine, check_batch)


def mesh_shape(mesh: Mesh) -> dict[str, int]:
    """The degrees of parallelism, as position.json keeps them."""
    return {"tensor": mesh.tensor_parallel, "pipeline": mesh.pipeline_parallel, "data": mesh.data_parallel}


def gather_full(stages: Stages, mesh: Mesh) -> dict[str, Tensor]:
    """The full tensors of the parameters that this stage owns, on the CPU: a collective over the tensor group."""
    tensors = {}
    for entry in stages.canonical_parameters():
        if entry.is_copy:
            continue
        value = entry.parameter.detach()
        if entry.shard_dim is not None and mesh.tensor_parallel > 1:
            value = gather_shards(value, entry.shard_dim)
        tensors[entry.name] = value.cpu().contiguous()
    return tensors


def _save_weights(folder: Path, stages: Stages, mesh: Mesh) -> None:
    tensors = gather_full(stages, mesh)
    if mesh.tensor_rank == 0 and mesh.data_rank == 0:
        save_file(tensors, folder / _part_name(mesh.pipeline_rank, mesh.pipeline_parallel))


def _finish_weights(folder: Path, mesh: Mesh) -> None:
    """Write the index of parameters and files, in the layout of Hugging Face's sharded safetensors."""
    weight_map: dict[str, Any] = {}
    total_size = 0
    for part in range(mesh.pipeline_parallel):
        path = folder / _part_name(part, mesh.pipeline_parallel)
        with safe_open(path, framework="pt") as file:
            weight_map.update(dict.fromkeys(file.keys(), path.name))
        total_size += path.stat().st_size
    write_json_atomically(folder / INDEX, {"metadata": {"total_size": total_size}, "weight_map": weight_map})


def _part_name(part: int, num_parts: int) -> str:
    return f"model-{part + 1:05d}-of-{num_parts:05d}.safetensors"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
