"""Memory of a pipeline stage: weights, gradients and optimizer state to the byte, activations from shapes.

Weights, gradients and optimizer state follow DeepSpeed's ZeRO, padding included. Activations are what autograd saves for the
micro-batches that a stage has in flight (one forward, one backward schedule).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from models.cost.flops import Lengths
from pipeline.config import RunConfig
from pipeline.planner.footprint import PieceFootprint, footprints

_ALIGNMENT = 2  # DeepSpeed pads a group's flat tensor to this times the replicas (nccl_start_alignment_factor)


def num_parameters(config: RunConfig) -> int:
    """Parameters of the whole model, tied weights counted once."""
    whole = footprints(config.model, Lengths(2, 2), 1, 1, torch.float32)
    return sum(piece.decayed + piece.plain for piece in whole if piece.tied_to is None)


def state_bytes(held: list[PieceFootprint], data_parallel: int, precision: str, stage: int = 1) -> tuple[int, int, int]:
    """Bytes of (weights, gradients, optimizer state) of a rank that holds these pieces: exact, padding included.

    `stage` is DeepSpeed's ZeRO stage: 0 is without ZeRO, all others are counted as stage 1.
    """
    multiple = _ALIGNMENT * data_parallel
    groups = [sum(piece.decayed for piece in held), sum(piece.plain for piece in held)]
    if stage == 0:
        return 4 * sum(groups), 4 * sum(groups), 2 * 4 * sum(groups)
    padded = sum(math.ceil(group / multiple) * multiple for group in groups)
    optimizer = 3 * 4 * padded // data_parallel  # fp32 weights and two moments, divided among the replicas
    if precision == "bf16":
        return 2 * padded, 4 * padded, optimizer  # fp32 gradients: BF16_Optimizer accumulates there
    return 4 * padded, 4 * sum(groups), optimizer


def recipe_footprints(config: RunConfig) -> list[PieceFootprint]:
    """The footprint of every piece of a recipe's model, in order, on one of its tensor ranks."""
    train = config.train
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    return footprints(config.model, config.data.lengths, train.micro_batch_size, config.mesh.tensor_parallel, dtype)


def held_pieces(part: Sequence[PieceFootprint]) -> list[PieceFootprint]:
    """The pieces whose weights a stage holds: of pieces that share a weight, one."""
    held = [piece for piece in part if piece.tied_to is None]
    owners = {piece.name for piece in held}
    return held + [piece for piece in part if piece.tied_to is not None and piece.tied_to not in owners]


def stage_bytes(
    config: RunConfig, part: Sequence[PieceFootprint], number: int, data_parallel: int
) -> tuple[int, int, int, int]:
    """Bytes of (weights, gradients, optimizer state, activations) of stage `number`, counted from 0, on one of its ranks."""
    train = config.train
    in_flight = min(config.mesh.pipeline_parallel - number, train.accumulation_steps(data_parallel))
    states = state_bytes(held_pieces(part), data_parallel, train.precision, config.zero_stage(data_parallel))
    return *states, _activation_bytes(part, train.recompute, in_flight)


def memory_check(config: RunConfig, model: list[PieceFootprint], data_parallel: int) -> Callable[[int, int, int], bool]:
    """Whether stage `stage` stays within mesh.stage_memory_gb with the pieces [begin, end): a function (stage, begin, end).

    Always true if the recipe sets no limit.
    """
    gigabytes = config.mesh.stage_memory_gb
    if gigabytes is None:
        return lambda *_: True
    limit = gigabytes * 1e9
    return lambda stage, begin, end: sum(stage_bytes(config, model[begin:end], stage, data_parallel)) <= limit


def _activation_bytes(part: Sequence[PieceFootprint], recompute: bool, in_flight: int) -> int:
    if not recompute:
        return in_flight * sum(piece.saved_bytes for piece in part)
    return in_flight * sum(piece.passed_bytes for piece in part) + max(piece.saved_bytes for piece in part)
