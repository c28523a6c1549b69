"""The optimizer's state on disk, in pieces that say what they are: any mesh continues what any other wrote.

    state/engine/rank_00003.safetensors     one file a rank that holds something nobody else writes

A tensor's key is `<canonical name>@<tensor rank>@<first element>@<what>`: a run of elements of one tensor rank's flattened
shard, and `what` is master (the fp32 weights), exp_avg or exp_avg_sq. The metadata hold every parameter's whole shape and
sharded dimension, and the optimizer's step. Values move bit by bit: a run that goes on with another mesh starts from exactly
the same numbers, and drifts only as sums are taken in another order. Nothing is pickled, so a checkpoint can hold no code.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.distributed.mesh import Mesh
from pipeline.distributed.pipeline_stages import Stages
from pipeline.optim.zero_fragments import STATE_NAMES, Fragment, inner_optimizer, optimizer_states

ENGINE = "engine"
KINDS = ("master", *STATE_NAMES)


@dataclass(frozen=True)
class Layout:
    """A parameter's whole shape, and the dimension on which it was sharded."""

    shape: tuple[int, ...]
    shard_dim: int | None


@dataclass(frozen=True)
class _Run:
    start: int
    key: str
    file: Path


def save_engine(folder: Path, engine: Any, pieces: Sequence[Fragment], mesh: Mesh) -> None:
    """Write what this rank alone holds; `folder` exists. Ranks need not wait for each other."""
    tensors: dict[str, Tensor] = {}
    layouts: dict[str, Any] = {}
    is_replica = inner_optimizer(engine) is engine.optimizer and mesh.data_rank > 0  # without ZeRO replicas hold the same
    steps = {int(float(state["step"])) for state in inner_optimizer(engine).state.values() if state}
    assert len(steps) <= 1, steps
    for piece, state in optimizer_states(engine, pieces):
        entry = piece.entry
        if is_replica or entry.is_copy or (entry.shard_dim is None and mesh.tensor_rank > 0):
            continue
        for kind, value in (("master", piece.master), *state.items()):
            tensors[tensor_key(entry.name, mesh.tensor_rank, piece.start, kind)] = value.cpu().contiguous()
        layouts[entry.name] = [list(entry.full_shape), entry.shard_dim]
    write_rank(folder, mesh.rank, tensors, layouts, max(steps, default=0), mesh.tensor_parallel)


def load_engine(folder: Path, engine: Any, stages: Stages, pieces: Sequence[Fragment], mesh: Mesh) -> None:
    """Fill this rank's weights and optimizer from files of any mesh. Raises ValueError where something is missing."""
    stored = StoredState(folder)
    of_parameter: dict[str, list[tuple[Fragment, dict[str, Tensor]]]] = defaultdict(list)
    for piece, state in optimizer_states(engine, pieces):
        of_parameter[piece.entry.name].append((piece, state))
    for entry in stages.canonical_parameters():
        if entry.name in stored.layouts and stored.layouts[entry.name].shape != entry.full_shape:
            raise ValueError(
                f"{folder}: {entry.name} has the shape {stored.layouts[entry.name].shape} there and {entry.full_shape} in this "
                "run: it is another model's checkpoint; give another --output"
            )
        for kind in KINDS:
            if kind != "master" and entry.name not in of_parameter:
                continue
            local = stored.shard(entry.name, kind, mesh.tensor_rank, mesh.tensor_parallel)
            if kind == "master":
                with torch.no_grad():
                    entry.parameter.copy_(local)  # rounds to bf16 exactly as the optimizer does after a step
            for piece, state in of_parameter[entry.name]:
                target = piece.master if kind == "master" else state[kind]
                target.copy_(local.reshape(-1)[piece.start : piece.start + piece.numel])
    for state in inner_optimizer(engine).state.values():
        state["step"].fill_(float(stored.step))


class StoredState:
    """An index over the files of a folder; reads single parameters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.layouts: dict[str, Layout] = {}
        self.step = self.tensor_parallel = 0
        self._runs: dict[tuple[str, int, str], list[_Run]] = defaultdict(list)
        files = sorted(folder.glob("rank_*.safetensors"))
        if not files:
            raise ValueError(f"{folder} holds no optimizer state: continue from another checkpoint by editing `latest`")
        for path in files:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                self.step, self.tensor_parallel = int(metadata["step"]), int(metadata["tensor_parallel"])
                for name, (shape, shard_dim) in json.loads(metadata["parameters"]).items():
                    self.layouts[name] = Layout(tuple(shape), shard_dim)
                for key in file.keys():  # noqa: SIM118 - a file of safetensors cannot be iterated over
                    name, rank, start, kind = key.rsplit("@", 3)
                    self._runs[name, int(rank), kind].append(_Run(int(start), key, path))

    def shard(self, name: str, kind: str, tensor_rank: int, tensor_parallel: int) -> Tensor:
        """The shard of a parameter's `kind` for one of `tensor_parallel` ranks, fp32 on the CPU, in its own shape."""
        if name not in self.layouts:
            raise ValueError(f"{self.folder} holds no {name}: it is another model's checkpoint, or not whole")
        layout = self.layouts[name]
        if layout.shard_dim is None:
            return self._stored_shard(name, kind, 0, layout.shape)
        stored_shape = list(layout.shape)
        stored_shape[layout.shard_dim] //= self.tensor_parallel
        if tensor_parallel == self.tensor_parallel:
            return self._stored_shard(name, kind, tensor_rank, tuple(stored_shape))
        shards = [self._stored_shard(name, kind, rank, tuple(stored_shape)) for rank in range(self.tensor_parallel)]
        return torch.cat(shards, layout.shard_dim).chunk(tensor_parallel, layout.shard_dim)[tensor_rank].contiguous()

    def _stored_shard(self, name: str, kind: str, rank: int, shape: tuple[int, ...]) -> Tensor:
        flat = torch.empty(torch.Size(shape).numel())
        filled = 0
        for run in sorted(self._runs[name, rank, kind], key=lambda run: run.start):
            with safe_open(run.file, framework="pt") as file:
                values = file.get_tensor(run.key)
            if run.start != filled:
                break
            flat[filled : filled + values.numel()] = values
            filled += values.numel()
        if filled != flat.numel():
            raise ValueError(
                f"{self.folder}: {name} ({kind}, tensor rank {rank}) has {filled} of {flat.numel()} elements in sequence: "
                "files are missing; continue from an earlier checkpoint by editing `latest`"
            )
        return flat.view(shape)


def tensor_key(name: str, tensor_rank: int, start: int, kind: str) -> str:
    return f"{name}@{tensor_rank}@{start}@{kind}"


def rank_file(rank: int) -> str:
    return f"rank_{rank:05d}.safetensors"


def write_rank(
    folder: Path, rank: int, tensors: Mapping[str, Tensor], layouts: Mapping[str, Any], step: int, tensor_parallel: int
) -> None:
    """Write one rank's file; `layouts` has [shape, sharded dimension] for every parameter in it."""
    metadata = {"step": str(step), "tensor_parallel": str(tensor_parallel), "parameters": json.dumps(layouts)}
    save_file(dict(tensors), folder / rank_file(rank), metadata=metadata)
