"""Randomness inside a training step (dropout), as a function of where and when, so that nothing of it has to be saved.

Every step seeds PyTorch's generators from (seed, step, stage, replica): the same on the ranks of a tensor group, whose
replicated activations need equal masks. Where activations are sharded, ranks draw masks of their own.
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
    """Draw other numbers on each tensor rank within the block, and go on afterwards as the whole group does.

    The numbers follow from the state that the block begins with, so a recomputed forward pass draws the same.
    """
    if not wanted:
        yield
        return
    seed = int(torch.randint(2**62, ())) + tensor_rank
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
