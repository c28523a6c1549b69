"""The optimizer state on disk, in segments that carry their names, so that any mesh can resume what any other wrote.

    state/engine/rank_00003.safetensors     one file for each rank that holds something no other rank writes

The key of a tensor is `<canonical name>@<tensor rank>@<first element>@<kind>`: a segment of the flattened shard of one tensor
rank. `kind` is master (the fp32 weights), exp_avg or exp_avg_sq. The metadata hold the full shape and the sharded dimension of
every parameter, and the step of the optimizer. Values move bit by bit: a run that resumes on another mesh starts from exactly
the same numbers, and differs later only because sums are taken in another order. Nothing is pickled, so a checkpoint cannot
hold code.
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
from pipeline.run_folder import Report, no_report

OPTIMIZER_FOLDER = "engine"
KINDS = ("master", *STATE_NAMES)


@dataclass(frozen=True)
class Layout:
    """The full shape of a parameter, and the dimension on which it was sharded (None: replicated)."""

    shape: tuple[int, ...]
    shard_dim: int | None


@dataclass(frozen=True)
class _Segment:
    start: int
    key: str
    file: Path


def save_optimizer_state(folder: Path, engine: Any, held: Sequence[Fragment], mesh: Mesh, report: Report = no_report) -> Path:
    """Write what only this rank holds into the existing `folder`; returns the file. Not a collective."""
    tensors: dict[str, Tensor] = {}
    layouts: dict[str, Any] = {}
    # without ZeRO all replicas hold the same state
    is_replica = inner_optimizer(engine) is engine.optimizer and mesh.data_rank > 0
    steps = {int(float(state["step"])) for state in inner_optimizer(engine).state.values() if state}
    assert len(steps) <= 1, steps
    for fragment, state in optimizer_states(engine, held):
        entry = fragment.entry
        if is_replica or entry.is_copy or (entry.shard_dim is None and mesh.tensor_rank > 0):
            continue
        report(f"copying the optimizer state of {entry.name}")
        for kind, value in (("master", fragment.master), *state.items()):
            tensors[tensor_key(entry.name, mesh.tensor_rank, fragment.start, kind)] = value.cpu().contiguous()
        layouts[entry.name] = [list(entry.full_shape), entry.shard_dim]
    report(f"writing {rank_file(mesh.rank)}")
    return write_rank(folder, mesh.rank, tensors, layouts, max(steps, default=0), mesh.tensor_parallel)


def load_optimizer_state(
    folder: Path, engine: Any, stages: Stages, held: Sequence[Fragment], mesh: Mesh, report: Report = no_report
) -> None:
    """Fill the weights and optimizer state of this rank from files of any mesh. Raises ValueError if something is missing."""
    stored = StoredState(folder)
    of_parameter: dict[str, list[tuple[Fragment, dict[str, Tensor]]]] = defaultdict(list)
    for fragment, state in optimizer_states(engine, held):
        of_parameter[fragment.entry.name].append((fragment, state))
    for entry in stages.canonical_parameters():
        if entry.name in stored.layouts and stored.layouts[entry.name].shape != entry.full_shape:
            raise ValueError(
                f"{folder}: {entry.name} has the shape {stored.layouts[entry.name].shape} there and {entry.full_shape} in this "
                "run: it is another model's checkpoint; give another --output"
            )
        for kind in KINDS:
            report(f"loading {kind} of {entry.name}")
            if kind != "master" and entry.name not in of_parameter:
                continue
            local = stored.shard(entry.name, kind, mesh.tensor_rank, mesh.tensor_parallel)
            if kind == "master":
                with torch.no_grad():
                    entry.parameter.copy_(local)  # rounds to bf16 exactly as the optimizer does after a step
            for fragment, state in of_parameter[entry.name]:
                target = fragment.master if kind == "master" else state[kind]
                target.copy_(local.reshape(-1)[fragment.start : fragment.start + fragment.numel])
    for state in inner_optimizer(engine).state.values():
        state["step"].fill_(float(stored.step))


class StoredState:
    """Index of the files of a folder. Reads single parameters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.layouts: dict[str, Layout] = {}
        self.step = self.tensor_parallel = 0
        self._segments: dict[tuple[str, int, str], list[_Segment]] = defaultdict(list)
        files = sorted(folder.glob("rank_*.safetensors"))
        if not files:
            raise ValueError(f"{folder} holds no optimizer state: resume from another checkpoint by editing `latest`")
        for path in files:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                self.step, self.tensor_parallel = int(metadata["step"]), int(metadata["tensor_parallel"])
                for name, (shape, shard_dim) in json.loads(metadata["parameters"]).items():
                    self.layouts[name] = Layout(tuple(shape), shard_dim)
                for key in file.keys():  # noqa: SIM118 - a safetensors file is not iterable
                    name, rank, start, kind = key.rsplit("@", 3)
                    self._segments[name, int(rank), kind].append(_Segment(int(start), key, path))

    def shard(self, name: str, kind: str, tensor_rank: int, tensor_parallel: int) -> Tensor:
        """One kind of a parameter's state for one of `tensor_parallel` ranks: fp32, on the CPU, in the shape of the shard."""
        if name not in self.layouts:
            raise ValueError(f"{self.folder} holds no {name}: it is another model's checkpoint, or incomplete")
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
        for segment in sorted(self._segments[name, rank, kind], key=lambda segment: segment.start):
            with safe_open(segment.file, framework="pt") as file:
                values = file.get_tensor(segment.key)
            if segment.start != filled:
                break
            flat[filled : filled + values.numel()] = values
            filled += values.numel()
        if filled != flat.numel():
            raise ValueError(
                f"{self.folder}: {name} ({kind}, tensor rank {rank}) has {filled} of {flat.numel()} elements in sequence: "
                "files are missing; resume from an earlier checkpoint by editing `latest`"
            )
        return flat.view(shape)


def tensor_key(name: str, tensor_rank: int, start: int, kind: str) -> str:
    return f"{name}@{tensor_rank}@{start}@{kind}"


def rank_file(rank: int) -> str:
    return f"rank_{rank:05d}.safetensors"


def write_rank(
    folder: Path, rank: int, tensors: Mapping[str, Tensor], layouts: Mapping[str, Any], step: int, tensor_parallel: int
) -> Path:
    """Write the file of one rank and return it. `layouts`: [full shape, sharded dimension] of every parameter in it."""
    metadata = {"step": str(step), "tensor_parallel": str(tensor_parallel), "parameters": json.dumps(layouts)}
    path = folder / rank_file(rank)
    save_file(dict(tensors), path, metadata=metadata)
    return path
