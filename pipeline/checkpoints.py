"""Checkpoints: canonical weights that know no mesh, beside the engine's state that continues this one.

    checkpoints/step_00000100/weights/   model-0000k-of-0000n.safetensors + model.safetensors.index.json
    checkpoints/step_00000100/state/     deepspeed/, position.json, manifest.json with the sha256 of every file
    checkpoints/latest                   the name of the newest complete one, written last

A checkpoint is written under a temporary name and renamed when every rank has finished, so one with its final name is whole.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_prep.files import atomic_write, sha256_file, write_json_atomically
from pipeline.mesh import Mesh
from pipeline.metrics import Counters
from pipeline.run_folder import INDEX, LATEST, STATE, WEIGHTS, check_file, checkpoints_of, checksums, step_name
from pipeline.stages import Stages

_ENGINE = "deepspeed"


@dataclass(frozen=True)
class Position:
    """Where a run stands: enough to continue its data, its schedule and its counters."""

    step: int
    seed: int
    dataset_fingerprint: str
    counters: Counters
    mesh: dict[str, int]
    next_sample: int | None = None
    """The global sample that training goes on with. None in checkpoints of before it was kept: step x global batch size."""

    @classmethod
    def read(cls, path: Path) -> Position:
        values = json.loads(path.read_bytes())
        return cls(**{**values, "counters": Counters(**values["counters"])})


def save(run: Path, engine: Any, stages: Stages, mesh: Mesh, position: Position) -> Path:
    """Write a checkpoint: a collective, called by every rank at the same step."""
    folder = checkpoints_of(run)
    final = folder / step_name(position.step)
    partial = folder / f".{final.name}.partial"
    if mesh.is_main:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / WEIGHTS).mkdir(parents=True)
    torch.distributed.barrier()
    _save_weights(partial / WEIGHTS, stages, mesh)
    # No "latest" of DeepSpeed's own: ours is the only one.
    rng = {"torch_rng": torch.get_rng_state()}
    engine.save_checkpoint(str(partial / STATE), tag=_ENGINE, client_state=rng, save_latest=False)
    torch.distributed.barrier()
    if mesh.is_main:
        _finish_weights(partial / WEIGHTS, mesh)
        for script in (partial / STATE).glob("*.py"):  # DeepSpeed's converters, which know nothing of pipelines
            script.unlink()
        write_json_atomically(partial / STATE / "position.json", asdict(position))
        sums = {str(path.relative_to(partial)): sha256_file(path) for path in sorted(partial.rglob("*")) if path.is_file()}
        write_json_atomically(partial / STATE / "manifest.json", {"step": position.step, "sha256": sums})
        if final.exists():  # the same step again, after a restart from an earlier one
            shutil.rmtree(final)
        partial.rename(final)
        with atomic_write(folder / LATEST) as file:
            file.write(final.name.encode() + b"\n")
    torch.distributed.barrier()
    return final


def verify(checkpoint: Path) -> None:
    """Compare every file with the checkpoint's manifest. Raises ValueError naming the first that differs."""
    for name, expected in checksums(checkpoint).items():
        check_file(checkpoint / name, expected)


def load_state(checkpoint: Path, engine: Any, mesh: Mesh, position: Position) -> None:
    """Continue a checkpoint on the mesh that wrote it: a collective.

    Raises ValueError on another mesh: the engine's files are cut along it.
    """
    current = mesh_shape(mesh)
    if position.mesh != current:
        raise ValueError(f"{checkpoint} was written on the mesh {position.mesh}, this run has {current}: use the same mesh")
    path, client_state = engine.load_checkpoint(str(checkpoint / STATE), tag=_ENGINE)
    if path is None:
        raise ValueError(
            f"DeepSpeed found no state in {checkpoint / STATE}: continue an earlier checkpoint by editing `latest`"
        )
    torch.set_rng_state(client_state["torch_rng"])


def mesh_shape(mesh: Mesh) -> dict[str, int]:
    return {"tensor": mesh.tensor_parallel, "pipeline": mesh.pipeline_parallel, "data": mesh.data_parallel}


def gather_full(stages: Stages, mesh: Mesh) -> dict[str, Tensor]:
    """This stage's own parameters, whole, on the CPU: a collective over the tensor group."""
    from megatron.core import parallel_state

    group = parallel_state.get_tensor_model_parallel_group()
    tensors = {}
    for entry in stages.canonical_parameters():
        if entry.is_copy:
            continue
        value = entry.parameter.detach()
        if entry.shard_dim is not None and mesh.tensor_parallel > 1:
            shards = [torch.empty_like(value) for _ in range(mesh.tensor_parallel)]
            torch.distributed.all_gather(shards, value.contiguous(), group=group)
            value = torch.cat(shards, dim=entry.shard_dim)
        tensors[entry.name] = value.cpu().contiguous()
    return tensors


def _save_weights(folder: Path, stages: Stages, mesh: Mesh) -> None:
    tensors = gather_full(stages, mesh)
    if mesh.tensor_rank == 0 and mesh.data_rank == 0:
        save_file(tensors, folder / _part_name(mesh.pipeline_rank, mesh.pipeline_parallel))


def _finish_weights(folder: Path, mesh: Mesh) -> None:
    """Write the index that says which file holds which parameter (the layout of Hugging Face's sharded safetensors)."""
    weight_map, total_size = {}, 0
    for part in range(mesh.pipeline_parallel):
        path = folder / _part_name(part, mesh.pipeline_parallel)
        with safe_open(path, framework="pt") as file:
            weight_map.update(dict.fromkeys(file.keys(), path.name))
        total_size += path.stat().st_size
    write_json_atomically(folder / INDEX, {"metadata": {"total_size": total_size}, "weight_map": weight_map})


def _part_name(part: int, num_parts: int) -> str:
    return f"model-{part + 1:05d}-of-{num_parts:05d}.safetensors"
