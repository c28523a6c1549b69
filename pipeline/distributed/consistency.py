"""The replica consistency check: replicas, replicated and tied weights, and the data order must be equal across ranks.

Nothing in a mesh corrects a copy that has drifted (a missing collective, a bit flipped in the memory of one device): the loss
just degrades slowly. Every copy is therefore compared at regular steps, by a checksum over its bits. The idea is nanotron's
(`sanity_checks.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from megatron.core import parallel_state
from numpy.typing import NDArray
from torch import Tensor

from pipeline.distributed.mesh import Mesh
from pipeline.distributed.pipeline_stages import Stages

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_replica_consistency(stages: Stages, mesh: Mesh, samples: NDArray[np.int64]) -> None:
    """Compare weights, and `samples`, the rows of the current step: a collective.

    Raises ValueError on every rank if copies differ; the message names them and the ranks that found it.
    """
    found = [f"{name} differs between {where}" for where, name in _differing(stages, mesh, samples)]
    if any(mesh.any(bool(found))):
        everywhere: list[list[str]] = [[]] * mesh.world_size
        torch.distributed.all_gather_object(everywhere, found[:4])
        seen = [f"rank {rank}: {', '.join(problems)}" for rank, problems in enumerate(everywhere) if problems]
        raise ValueError(
            f"copies on different ranks have drifted apart. Found by {'; '.join(seen[:4])}. A device may be faulty, or a "
            "reduction is missing: resume from an earlier checkpoint on other machines"
        )


def _differing(stages: Stages, mesh: Mesh, samples: NDArray[np.int64]) -> Iterable[tuple[str, str]]:
    digest = hashlib.blake2b(samples.tobytes(), digest_size=7).digest()
    rows = torch.tensor([int.from_bytes(digest, "little")], device=mesh.device)
    if not _same(rows, torch.distributed.group.WORLD)[0]:
        yield "ranks", "the order of the data"
    entries = list(stages.canonical_parameters())
    sums = torch.stack([_checksum(entry.parameter) for entry in entries])
    equal = _same(sums, parallel_state.get_data_parallel_group())
    yield from (("replicas", entry.name) for entry, same in zip(entries, equal, strict=True) if not same)
    replicated = [index for index, entry in enumerate(entries) if entry.shard_dim is None]
    if replicated:
        equal = _same(sums[replicated], parallel_state.get_tensor_model_parallel_group())
        yield from (("tensor ranks", entries[index].name) for index, same in zip(replicated, equal, strict=True) if not same)
    for weight, group in stages.get_tied_weights_and_groups():
        if not _same(_checksum(weight).reshape(1), group)[0]:
            yield "stages", "the tied embedding"


def _checksum(tensor: Tensor) -> Tensor:
    """The sum of a tensor's bits read as integers (int64, wraps around): any single flipped bit changes it."""
    return tensor.detach().contiguous().view(_BITS[tensor.element_size()]).sum(dtype=torch.int64)


def _same(values: Tensor, group: torch.distributed.ProcessGroup | None) -> list[bool]:
    """Whether each of `values` (int64) is equal on all ranks of a group."""
    bounds = torch.stack([values, -values])
    torch.distributed.all_reduce(bounds, op=torch.distributed.ReduceOp.MAX, group=group)
    return [bool(same) for same in (bounds[0] == -bounds[1])]
