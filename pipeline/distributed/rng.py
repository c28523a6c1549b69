"""Random numbers of a training step (dropout), derived from the step and the rank, so that no generator state is saved.

Every step seeds PyTorch's generators from (seed, step, stage, replica). Ranks of a tensor group get the same seed, because
their replicated activations need equal masks. Where activations are sharded, each tensor rank draws its own masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.distributed.mesh import Mesh


def seed_dropout(seed: int, step: int, mesh: Mesh) -> None:
    """Seed the default generators of all devices for one training step."""
    where = f"{seed}/{step}/{mesh.pipeline_rank}/{mesh.data_rank}"
    torch.manual_seed(int.from_bytes(hashlib.blake2b(where.encode(), digest_size=8).digest(), "little") >> 1)


@contextmanager
def tensor_parallel_rng(tensor_rank: int, wanted: bool) -> Iterator[None]:
    """Within the block each tensor rank draws different numbers; after it the group's common sequence continues.

    The numbers depend only on the generator's state at the start of the block, so a recomputed forward pass draws the same.
    """
    if not wanted:
        yield
        return
    seed = int(torch.randint(2**62, ())) + tensor_rank
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
