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
from pipeline.distributed.pipeline_stages import CanonicalParameter, Stages
from pipeline.optim.zero_fragments import STATE_NAMES, Fragment, inner_optimizer, optimizer_states
from pipeline.run_folder import INDEX, WEIGHTS, Report, checksums, no_report

OPTIMIZER_FOLDER = "engine"
KINDS = ("master", *STATE_NAMES)
_MAX_OPEN = 32


@dataclass(frozen=True)
class Layout:
    """The full shape of a parameter, and the dimension on which it was sharded (None: replicated)."""

    shape: tuple[int, ...]
    shard_dim: int | None


@dataclass(frozen=True, kw_only=True)
class _Segment:
    start: int
    numel: int
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
    """Fill the weights and optimizer state of this rank from files of any mesh. Raises ValueError if something is missing.

    Each rank reads its shard of the weights, and of the fp32 weights and moments only the fragments that its optimizer updates,
    unless the mesh that wrote them had another tensor parallelism: then it reads whole parameters.
    """
    stored = StoredState(folder)
    of_parameter: dict[str, list[tuple[Fragment, dict[str, Tensor]]]] = defaultdict(list)
    for fragment, state in optimizer_states(engine, held):
        of_parameter[fragment.entry.name].append((fragment, state))
    weights = StoredWeights(folder.parents[1] / WEIGHTS)
    for entry in stages.canonical_parameters():
        if entry.name in stored.layouts and stored.layouts[entry.name].shape != entry.full_shape:
            raise ValueError(
                f"{folder}: {entry.name} has the shape {stored.layouts[entry.name].shape} there and {entry.full_shape} in this "
                "run: it is another model's checkpoint; give another --output"
            )
        report(f"loading {entry.name}")
        with torch.no_grad():
            # the weights as they were rounded after the last step: half the bytes of the fp32 ones in bf16
            entry.parameter.copy_(weights.shard(entry, mesh))
        for fragment, state in of_parameter[entry.name]:
            for kind in KINDS:
                report(f"loading {kind} of {entry.name}")
                part = stored.part(entry.name, kind, mesh.tensor_rank, mesh.tensor_parallel, fragment.start, fragment.numel)
                (fragment.master if kind == "master" else state[kind]).copy_(part)
    for state in inner_optimizer(engine).state.values():
        state["step"].fill_(float(stored.step))


class StoredState:
    """Index of the files of a folder. Reads single parameters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.layouts: dict[str, Layout] = {}
        self.step = self.tensor_parallel = 0
        self._files = _OpenFiles()
        self._segments: dict[tuple[str, int, str], list[_Segment]] = defaultdict(list)
        files = _files_of(folder)
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
                    self._segments[name, int(rank), kind].append(
                        _Segment(start=int(start), numel=file.get_slice(key).get_shape()[0], key=key, file=path)
                    )

    def shard(self, name: str, kind: str, tensor_rank: int, tensor_parallel: int) -> Tensor:
        """One kind of a parameter's state for one of `tensor_parallel` ranks: fp32, on the CPU, in the shape of the shard."""
        layout = self._layout(name)
        if layout.shard_dim is None:
            return self._stored_shard(name, kind, 0, layout.shape)
        stored_shape = list(layout.shape)
        stored_shape[layout.shard_dim] //= self.tensor_parallel
        if tensor_parallel == self.tensor_parallel:
            return self._stored_shard(name, kind, tensor_rank, tuple(stored_shape))
        shards = [self._stored_shard(name, kind, rank, tuple(stored_shape)) for rank in range(self.tensor_parallel)]
        return torch.cat(shards, layout.shard_dim).chunk(tensor_parallel, layout.shard_dim)[tensor_rank].contiguous()

    def part(self, name: str, kind: str, tensor_rank: int, tensor_parallel: int, start: int, numel: int) -> Tensor:
        """Elements `start` to `start + numel` of the flattened shard: fp32, on the CPU. Reads no others where it can."""
        layout = self._layout(name)
        if layout.shard_dim is not None and tensor_parallel != self.tensor_parallel:
            return self.shard(name, kind, tensor_rank, tensor_parallel).reshape(-1)[start : start + numel]
        return self._read(name, kind, 0 if layout.shard_dim is None else tensor_rank, start, numel)

    def _layout(self, name: str) -> Layout:
        if name not in self.layouts:
            raise ValueError(f"{self.folder} holds no {name}: it is another model's checkpoint, or incomplete")
        return self.layouts[name]

    def _stored_shard(self, name: str, kind: str, rank: int, shape: tuple[int, ...]) -> Tensor:
        return self._read(name, kind, rank, 0, torch.Size(shape).numel()).view(shape)

    def _read(self, name: str, kind: str, rank: int, start: int, numel: int) -> Tensor:
        flat = torch.empty(numel)
        filled, end = start, start + numel
        for segment in sorted(self._segments[name, rank, kind], key=lambda segment: segment.start):
            stop = min(end, segment.start + segment.numel)
            if segment.start <= filled < stop:
                values = self._files.open(segment.file).get_slice(segment.key)
                flat[filled - start : stop - start] = values[filled - segment.start : stop - segment.start]
                filled = stop
        if filled != end:
            raise ValueError(
                f"{self.folder}: {name} ({kind}, tensor rank {rank}) has elements {start} to {filled} in sequence, not {end}: "
                "files are missing; resume from an earlier checkpoint by editing `latest`"
            )
        return flat


def _files_of(folder: Path) -> list[Path]:
    """The files that the manifest of the checkpoint lists: a listing of the folder may lack new ones, or have others.

    All that are there, if there is no manifest.
    """
    listed = [Path(name).name for name in checksums(folder.parents[1]) if Path(name).parts[1:2] == (folder.name,)]
    return [folder / name for name in sorted(listed)] or sorted(folder.glob("rank_*.safetensors"))


class StoredWeights:
    """The weights folder of a checkpoint. Reads single shards."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file_of: dict[str, str] = json.loads((folder / INDEX).read_bytes())["weight_map"]
        self._files = _OpenFiles()

    def shard(self, entry: CanonicalParameter, mesh: Mesh) -> Tensor:
        """The part of a parameter that this rank holds. Reads no other."""
        if entry.name not in self._file_of:
            raise ValueError(f"{self._folder} holds no {entry.name}: it is another model's checkpoint; give another --output")
        values = self._files.open(self._folder / self._file_of[entry.name]).get_slice(entry.name)
        if entry.shard_dim is None:
            return values[:]
        size = entry.full_shape[entry.shard_dim] // mesh.tensor_parallel
        own = slice(mesh.tensor_rank * size, (mesh.tensor_rank + 1) * size)
        return values[tuple([slice(None)] * entry.shard_dim + [own])]


class _OpenFiles:
    """The files read last, open: their headers are long, and one parameter follows another in the same file."""

    def __init__(self) -> None:
        self._open: dict[Path, Any] = {}

    def open(self, path: Path) -> Any:
        if path not in self._open:
            if len(self._open) >= _MAX_OPEN:
                del self._open[next(iter(self._open))]
            self._open[path] = safe_open(path, framework="pt")
        return self._open[path]


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
