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
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from data_prep.files import VISIBLE_SECONDS, atomic_write, await_visible, fsync_folder, write_json_atomically
from pipeline.checkpoint.load_check import check_logits, holds_not_finite, selected_logits, write_logits
from pipeline.checkpoint.optimizer_state import OPTIMIZER_FOLDER, load_optimizer_state, save_optimizer_state
from pipeline.checkpoint.retention import remove_folder
from pipeline.data.batches import PipelineBatch
from pipeline.distributed.mesh import Mesh
from pipeline.distributed.pipeline_stages import CanonicalParameter, Stages
from pipeline.distributed.tensor_parallel import gather_shards
from pipeline.engine.engine import Engine
from pipeline.run_folder import (
    CHECKPOINT_MANIFEST,
    INDEX,
    LATEST,
    POSITION,
    STATE,
    WEIGHTS,
    Report,
    check_file,
    checkpoints_of,
    checksums,
    hash_file,
    no_report,
    problem,
    step_name,
)
from pipeline.tracking.metrics import Counters

_VISIBLE_SECONDS = VISIBLE_SECONDS
_SHARE_BYTES = 512 << 20
"""Weights that one rank gathers in host memory and writes, at least, before another rank shares the work of a stage."""


class NotFiniteError(ValueError):
    """The weights are not finite, or give values that are not: a checkpoint of them would be useless."""


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


@dataclass(kw_only=True)
class _Written:
    """What one rank wrote into a checkpoint."""

    sums: dict[str, str] = field(default_factory=dict)
    """The SHA-256 of each of its files by the path in the checkpoint."""
    weight_map: dict[str, str] = field(default_factory=dict)
    """The file of each parameter."""
    num_bytes: int = 0
    """Of weights."""
    problem: str = ""
    """Why it could not write."""
    host: str = field(default_factory=socket.gethostname)


def save(run: Path, engine: Engine, position: Position, check_batch: PipelineBatch, report: Report = no_report) -> Path:
    """Write a checkpoint and return its folder: a collective, called by every rank at the same step.

    Each rank writes, hashes and syncs its own share. Logits of `check_batch` are stored for the load check. `report` is called
    for every tensor and file. Raises OSError on every rank if one cannot write, and NotFiniteError if weights or logits are not
    finite; nothing is then left of this checkpoint, and earlier ones are unchanged.
    """
    mesh = engine.mesh
    final = checkpoints_of(run) / step_name(position.step)
    partial = final.with_name(f".{final.name}.partial")
    weights, part_name = gather_share(engine.stages, mesh, report)
    logits = selected_logits(engine, check_batch)
    tensors = [*weights.values(), *([] if logits is None else [logits])]
    if any(mesh.any(not all(bool(tensor.isfinite().all()) for tensor in tensors))):
        raise NotFiniteError(f"the model after step {position.step} has weights or outputs that are not finite")
    if mesh.is_main:
        shutil.rmtree(partial, ignore_errors=True)
    torch.distributed.barrier()
    written = _Written()
    try:
        _write_share(partial, engine, weights, part_name, logits, written, report)
    except (OSError, SafetensorError) as error:
        written.problem = f"rank {mesh.rank}: {error}"
    report("waiting for the other ranks to write their shares")
    shares: list[Any] | None = [None] * mesh.world_size if mesh.is_main else None
    torch.distributed.gather_object(written, shares)
    failure = [_complete(partial, final, position, shares)] if shares is not None else [""]
    torch.distributed.broadcast_object_list(failure)
    if failure[0]:
        raise OSError(
            f"checkpoint {final} could not be written ({failure[0]}): earlier ones are kept; free space or fix the disk, then "
            "rerun the same command to resume"
        )
    return final


def _write_share(
    partial: Path,
    engine: Engine,
    weights: dict[str, Tensor],
    part_name: str,
    logits: Tensor | None,
    written: _Written,
    report: Report,
) -> None:
    """Write, sync and hash this rank's files. Every rank makes the folders: those of another node may be visible late."""
    mesh, files = engine.mesh, []
    for folder in (partial / WEIGHTS, partial / STATE / OPTIMIZER_FOLDER):
        folder.mkdir(parents=True, exist_ok=True)
    if weights:
        files.append(partial / WEIGHTS / part_name)
        report(f"writing {part_name}")
        save_file(weights, files[-1])
        written.weight_map = dict.fromkeys(weights, part_name)
        written.num_bytes = files[-1].stat().st_size
    weights.clear()
    files.append(save_optimizer_state(partial / STATE / OPTIMIZER_FOLDER, engine.deepspeed, engine.fragments, mesh, report))
    if logits is not None and mesh.tensor_rank == 0:
        files.append(write_logits(partial / STATE, logits))
    for path in files:
        report(f"syncing and hashing {path.name}")
        _fsync(path)  # a power cut must not leave a final name with empty files
        written.sums[str(path.relative_to(partial))] = hash_file(path, report)


def _complete(partial: Path, final: Path, position: Position, shares: list[_Written]) -> str:
    """Complete a checkpoint from what every rank wrote. Returns why it could not be, after removing it, or ""."""
    found = next((share.problem for share in shares if share.problem), "")
    found = found or await_visible(partial, lambda: _not_visible(partial, shares), _VISIBLE_SECONDS) or ""
    if not found:
        sums = {name: value for share in shares for name, value in share.sums.items()}
        weight_map = {name: part for share in shares for name, part in share.weight_map.items()}
        index = {"metadata": {"total_size": sum(share.num_bytes for share in shares)}, "weight_map": weight_map}
        try:
            write_json_atomically(partial / WEIGHTS / INDEX, index)
            sums[f"{WEIGHTS}/{INDEX}"] = hash_file(partial / WEIGHTS / INDEX)
            finish(partial, final, position, sums)
        except OSError as error:
            found = str(error)
    if found:
        shutil.rmtree(partial, ignore_errors=True)
    return found


def _not_visible(partial: Path, shares: list[_Written]) -> str | None:
    """The first file of other ranks that is not here: a checkpoint without it must not get its final name."""
    for rank, share in enumerate(shares):
        for name in share.sums:
            if not (partial / name).is_file():
                return (
                    f"{name}, which rank {rank} has written on {share.host}, cannot be seen on {socket.gethostname()} after "
                    f"{_VISIBLE_SECONDS:.0f} s: the run folder must be on a file system that all nodes share"
                )
    return None


def finish(partial: Path, final: Path, position: Position, sums: dict[str, str] | None = None) -> None:
    """Complete a checkpoint whose files are written: position, checksums, fsync, final name, and the pointer `latest`.

    `sums`: the SHA-256 of the files that are synced to disk already. Default: all files are synced and hashed here.
    """
    if sums is None:
        sums = {}
        for path in [path for path in sorted(partial.rglob("*")) if path.is_file()]:
            _fsync(path)
            sums[str(path.relative_to(partial))] = hash_file(path)
    write_json_atomically(partial / STATE / POSITION, asdict(position))
    sums = {**sums, f"{STATE}/{POSITION}": hash_file(partial / STATE / POSITION)}
    write_json_atomically(partial / STATE / CHECKPOINT_MANIFEST, {"step": position.step, "sha256": sums})
    for folder in [partial, *(path for path in partial.rglob("*") if path.is_dir())]:
        fsync_folder(folder)
    if final.exists():  # the same step was saved before, and the run restarted from an earlier one
        replaced = final.with_name(f".{final.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
        partial.rename(final)
        remove_folder(replaced)
    else:
        partial.rename(final)
    fsync_folder(final.parent)
    with atomic_write(final.parent / LATEST) as file:
        file.write(final.name.encode() + b"\n")


def verify(checkpoint: Path, report: Report = no_report, share: tuple[int, int] = (0, 1)) -> None:
    """Compare every file with the manifest of the checkpoint. Raises ValueError naming the first that differs.

    `share` (number, of): only every `of`-th file, from `number` on, so that the ranks of a run read different ones.
    """
    if (wrong := problem(checkpoint)) is not None:
        raise ValueError(wrong)
    check_share(checkpoint, report, share)


def check_share(checkpoint: Path, report: Report, share: tuple[int, int]) -> None:
    """`verify` for a checkpoint whose files are all there."""
    number, of = share
    for name, expected in list(checksums(checkpoint).items())[number::of]:
        report(f"verifying {checkpoint.name}/{name}")
        check_file(checkpoint / name, expected, report)


def load_state(checkpoint: Path, engine: Engine, check_batch: PipelineBatch, report: Report = no_report) -> None:
    """Load weights and optimizer state written by any mesh, then run the load check on `check_batch`: a collective.

    Raises ValueError if the checkpoint is one of another model, or if the stored logits do not come out again.
    """
    folder = checkpoint / STATE / OPTIMIZER_FOLDER
    load_optimizer_state(folder, engine.deepspeed, engine.stages, engine.fragments, engine.mesh, report)
    report("comparing the logits of the loaded model")
    check_logits(checkpoint / STATE, engine, check_batch)


def load_initial_state(checkpoint: Path, engine: Engine, report: Report = no_report) -> None:
    """Begin a new run with the weights, the moments and the number of updates of a checkpoint of any mesh: a collective.

    Each rank verifies a part of the files. There is no load check: its rows belong to the data of the other run.
    Raises ValueError if the checkpoint is damaged, not finite or another model's.
    """
    mesh = engine.mesh
    verify(checkpoint, report, (mesh.rank, mesh.world_size))
    if holds_not_finite(checkpoint / STATE):
        raise ValueError(f"{checkpoint} holds a model whose outputs are not finite: give an earlier checkpoint")
    folder = checkpoint / STATE / OPTIMIZER_FOLDER
    load_optimizer_state(folder, engine.deepspeed, engine.stages, engine.fragments, mesh, report)


def mesh_shape(mesh: Mesh) -> dict[str, int]:
    """The degrees of parallelism, as position.json keeps them."""
    return {"tensor": mesh.tensor_parallel, "pipeline": mesh.pipeline_parallel, "data": mesh.data_parallel}


def gather_share(stages: Stages, mesh: Mesh, report: Report = no_report) -> tuple[dict[str, Tensor], str]:
    """The full tensors that this rank writes, on the CPU, and the name of their file: a collective.

    The parameters of a stage are divided among its ranks, from 512 MiB on: no rank holds more in host memory than its part.
    """
    entries = [entry for entry in stages.canonical_parameters() if not entry.is_copy]
    sizes = [torch.Size(entry.full_shape).numel() * entry.parameter.element_size() for entry in entries]
    totals = torch.zeros(mesh.pipeline_parallel, dtype=torch.int64, device=mesh.device)
    if mesh.data_rank == mesh.tensor_rank == 0:
        totals[mesh.pipeline_rank] = sum(sizes)
    torch.distributed.all_reduce(totals)
    ranks = mesh.data_parallel * mesh.tensor_parallel
    num_parts = [max(1, min(ranks, total // _SHARE_BYTES)) for total in totals.tolist()]
    mine, total = num_parts[mesh.pipeline_rank], max(1, sum(sizes))
    tensors: dict[str, Tensor] = {}
    part_of_rank = {part * ranks // mine: part for part in range(mine)}  # writers are spread over the nodes
    own_part = part_of_rank.get(mesh.data_rank * mesh.tensor_parallel + mesh.tensor_rank)
    begin = 0
    for entry, size in zip(entries, sizes, strict=True):
        part = begin * mine // total
        begin += size
        if part * ranks // mine // mesh.tensor_parallel == mesh.data_rank:  # the tensor group of the rank that writes it
            report(f"gathering {entry.name}")
            value = _full(entry, mesh)
            if part == own_part:
                tensors[entry.name] = value.cpu().contiguous()
    number = sum(num_parts[: mesh.pipeline_rank]) + (own_part or 0)
    return tensors, f"model-{number + 1:05d}-of-{sum(num_parts):05d}.safetensors"


def _full(entry: CanonicalParameter, mesh: Mesh) -> Tensor:
    value = entry.parameter.detach()
    return gather_shards(value, entry.shard_dim) if entry.shard_dim is not None and mesh.tensor_parallel > 1 else value


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
