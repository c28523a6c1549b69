"""Rewrites a checkpoint for another mesh in one process: weights and optimizer state keep every bit.

A run can resume a checkpoint of any mesh directly; each rank then picks its part out of all files. Rewriting the checkpoint
first avoids this where reading is slow (many ranks, remote storage): every rank of the new mesh then reads one file.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from models.architectures.pieces import pieces
from models.layers.factory import TorchLayers
from pipeline.checkpoint.checkpoint import Position, finish, verify
from pipeline.checkpoint.load_check import LOAD_CHECK_FILE
from pipeline.checkpoint.optimizer_state import KINDS, OPTIMIZER_FOLDER, StoredState, tensor_key, write_rank
from pipeline.config import MeshConfig, RunConfig
from pipeline.planner.partition import stage_bounds
from pipeline.run_folder import STATE, WEIGHTS, checkpoints_of, find


def reshard(run: Path, output: Path, mesh: MeshConfig, data_parallel: int, step: int | None = None) -> Path:
    """Write a run folder `output` that resumes `run` on another mesh; returns its checkpoint.

    `output` gets the configuration with the new mesh and one checkpoint (the latest, or that of `step`). Raises ValueError
    if the mesh does not divide the model, or if `output` is not empty.
    """
    config = RunConfig.load(run)
    config = RunConfig.model_validate({**config.model_dump(), "mesh": mesh.model_dump()})
    config.train.accumulation_steps(data_parallel)
    checkpoint = find(run, step)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty: give another --output")
    verify(checkpoint)
    position = Position.read(checkpoint)
    folder = checkpoints_of(output)
    partial = folder / f".{checkpoint.name}.partial"
    (partial / STATE / OPTIMIZER_FOLDER).mkdir(parents=True)
    shutil.copytree(checkpoint / WEIGHTS, partial / WEIGHTS)
    if (checkpoint / STATE / LOAD_CHECK_FILE).is_file():
        shutil.copyfile(checkpoint / STATE / LOAD_CHECK_FILE, partial / STATE / LOAD_CHECK_FILE)
    stored = StoredState(checkpoint / STATE / OPTIMIZER_FOLDER)
    stages = stage_of_parameters(config, list(stored.layouts), data_parallel)
    for rank in range(mesh.tensor_parallel * mesh.pipeline_parallel * data_parallel):
        _write_rank(partial / STATE / OPTIMIZER_FOLDER, rank, stored, stages, mesh, data_parallel)
    shape = {"tensor": mesh.tensor_parallel, "pipeline": mesh.pipeline_parallel, "data": data_parallel}
    for name in ("tokenizer.json", "metrics.jsonl"):
        if (run / name).is_file():
            shutil.copyfile(run / name, output / name)
    (output / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
    final = folder / checkpoint.name
    finish(partial, final, replace(position, mesh=shape))
    return final


def stage_of_parameters(config: RunConfig, names: list[str], data_parallel: int) -> dict[str, int]:
    """The pipeline stage that holds each parameter on the mesh of the configuration."""
    model = pieces(config.model, TorchLayers(), config.data.lengths)
    bounds = stage_bounds(config, data_parallel)
    result = {}
    for name in names:
        index = max(
            (index for index, piece in enumerate(model) if name.startswith(f"{piece.name}.")),
            key=lambda index: len(model[index].name),
        )
        result[name] = next(stage for stage, end in enumerate(bounds[1:]) if index < end)
    return result


def _write_rank(
    folder: Path, rank: int, stored: StoredState, stages: dict[str, int], mesh: MeshConfig, data_parallel: int
) -> None:
    # rank order: pipe, data, model, with model fastest
    tensor_rank = rank % mesh.tensor_parallel
    data_rank = rank // mesh.tensor_parallel % data_parallel
    stage = rank // mesh.tensor_parallel // data_parallel
    tensors: dict[str, Tensor] = {}
    layouts: dict[str, Any] = {}
    for name, layout in stored.layouts.items():
        if stages[name] != stage or (layout.shard_dim is None and tensor_rank > 0):
            continue
        for kind in KINDS:
            flat = stored.shard(name, kind, tensor_rank, mesh.tensor_parallel).reshape(-1)
            # evenly among replicas: DeepSpeed's own bounds depend on the length of a whole group, and any bounds can be read
            bounds = [flat.numel() * part // data_parallel for part in (data_rank, data_rank + 1)]
            if bounds[0] < bounds[1]:
                piece = flat[bounds[0] : bounds[1]].clone()
                tensors[tensor_key(name, tensor_rank, bounds[0], kind)] = piece
                layouts[name] = [list(layout.shape), layout.shard_dim]
    write_rank(folder, rank, tensors, layouts, stored.step, mesh.tensor_parallel)
