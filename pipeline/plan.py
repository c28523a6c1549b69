"""Planning a run before any GPU is asked for: memory, stages, communication and time of a recipe on a mesh.

Weight, gradient and optimizer bytes are exact. Activations are what autograd saves, from shapes; buffers of kernels come on
top. Times are estimates from published peaks and the assumptions in `hardware.py`:

    step = (A + P - 1) * slowest stage's (forward + backward) + reduction of gradients + gathering of weights
    MFU  = model FLOPs of the step (3 x forward, the transform counted as in models/flops.py) / (step * GPUs * dense bf16 peak)

A micro-batches a replica, P stages. No overlap of communication with computation is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from models.flops import Lengths, decoder_tokens
from models.layers import TorchLayers
from models.pieces import pieces
from pipeline.config import MeshConfig, RunConfig
from pipeline.cut import cut_stages
from pipeline.deepspeed_config import zero_stage
from pipeline.footprint import PieceFootprint, footprints
from pipeline.hardware import GPU, LINK_EFFICIENCY, MATMUL_EFFICIENCY, USABLE_MEMORY

_ALIGNMENT = 2  # DeepSpeed pads a group's flat tensor to this times the replicas (nccl_start_alignment_factor)
_TRANSFORM_BYTES = 32  # an FFT in fp32 reads and writes a real and two complex numbers for each point


@dataclass(frozen=True)
class StagePlan:
    """One pipeline stage on one of its ranks."""

    first_piece: str
    last_piece: str
    num_parameters: int
    flops_share: float
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    seconds: float
    """Forward and backward of one micro-batch, with the tensor group's communication."""

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes


@dataclass(frozen=True)
class Plan:
    """A recipe on a mesh."""

    mesh: MeshConfig
    data_parallel: int
    num_parameters: int
    flops_per_step: float
    stages: tuple[StagePlan, ...]
    num_micro_batches: int
    tensor_bytes: float
    """Sent by a rank of the busiest stage in a step, within its tensor group (ring algorithms)."""
    pipeline_bytes: float
    data_bytes: float
    bubble: float
    """Share of a step in which a stage waits: for the pipeline to fill and drain, and for slower stages."""
    step_seconds: float
    mfu: float
    tokens_per_step: int

    @property
    def num_gpus(self) -> int:
        return self.mesh.tensor_parallel * self.mesh.pipeline_parallel * self.data_parallel

    @property
    def peak_bytes(self) -> int:
        return max(stage.total_bytes for stage in self.stages)


def make_plan(config: RunConfig, data_parallel: int, device: GPU) -> Plan:
    """Plan a recipe on its own mesh with so many replicas. Raises ValueError where it cannot stand on it."""
    mesh, train = config.mesh, config.train
    tp, pp = mesh.tensor_parallel, mesh.pipeline_parallel
    num_micro_batches = train.accumulation_steps(data_parallel)
    lengths = config.data.lengths
    model = _footprints(config)
    bounds = cut_stages(model, pp, _limit(config, model, data_parallel))
    crosses_nodes = tp * pp * data_parallel > device.per_node
    between_nodes = device.network_bandwidth if crosses_nodes else device.link_bandwidth
    stages = []
    tensor_bytes = []
    total_flops = sum(piece.flops for piece in model)
    for number, (begin, end) in enumerate(pairwise(bounds)):
        part = model[begin:end]
        held = _held(part)
        flops = sum(piece.flops for piece in part)
        sent = _tensor_bytes(config, part, lengths)
        ring = 2 * (tp - 1) / tp
        tensor_bytes.append(num_micro_batches * sent + ring * 4 * sum(piece.partial for piece in part))
        transform_bytes = sum(
            3 * _TRANSFORM_BYTES * train.micro_batch_size * lengths.encoder * config.model.d_model for p in part if p.transforms
        )
        passes = 4 if train.recompute else 3
        seconds = passes * flops * train.micro_batch_size / tp / (device.peak_flops * MATMUL_EFFICIENCY)
        seconds += transform_bytes / tp / device.memory_bandwidth + sent / (device.link_bandwidth * LINK_EFFICIENCY)
        seconds += _sent_on(model, begin, end) / (between_nodes * LINK_EFFICIENCY)
        weights, gradients, optimizer, activations = _stage_bytes(config, part, number, data_parallel)
        stages.append(
            StagePlan(
                first_piece=part[0].name,
                last_piece=part[-1].name,
                num_parameters=sum(piece.decayed + piece.plain for piece in held),
                flops_share=flops / total_flops,
                weight_bytes=weights,
                gradient_bytes=gradients,
                optimizer_bytes=optimizer,
                activation_bytes=activations,
                seconds=seconds,
            )
        )
    slowest = max(stage.seconds for stage in stages)
    working = (num_micro_batches + pp - 1) * slowest
    ideal = num_micro_batches * sum(stage.seconds for stage in stages) / pp
    widest = max(stage.num_parameters for stage in stages)
    element = 2 if train.precision == "bf16" else 4
    share = (data_parallel - 1) / data_parallel
    data_bytes = share * widest * (2 * 4 + element)  # all-reduce of fp32 gradients, all-gather of weights
    pipeline_bytes = num_micro_batches * max(_sent_on(model, begin, end) for begin, end in pairwise(bounds))
    tied_bytes = _tied_bytes(model, bounds)
    step_seconds = working + (data_bytes + tied_bytes) / (between_nodes * LINK_EFFICIENCY)
    flops_per_step = 3 * total_flops * train.global_batch_size
    return Plan(
        mesh=mesh,
        data_parallel=data_parallel,
        num_parameters=num_parameters(config),
        flops_per_step=flops_per_step,
        stages=tuple(stages),
        num_micro_batches=num_micro_batches,
        tensor_bytes=max(tensor_bytes),
        pipeline_bytes=pipeline_bytes + tied_bytes,
        data_bytes=data_bytes,
        bubble=1 - ideal / working,
        step_seconds=step_seconds,
        mfu=flops_per_step / (step_seconds * tp * pp * data_parallel * device.peak_flops),
        tokens_per_step=train.global_batch_size * config.data.row_length,
    )


def stage_bounds(config: RunConfig, data_parallel: int) -> list[int]:
    """Where the pieces of a recipe's model are cut on its mesh. Raises ValueError where they cannot be."""
    if config.mesh.stage_memory_gb is None:  # FLOPs are known without running the model on shapes
        return cut_stages(pieces(config.model, TorchLayers(), config.data.lengths), config.mesh.pipeline_parallel)
    model = _footprints(config)
    return cut_stages(model, config.mesh.pipeline_parallel, _limit(config, model, data_parallel))


def propose(config: RunConfig, num_gpus: int, device: GPU) -> Plan:
    """The fastest plan on so many GPUs that fits in their memory. Raises ValueError where none does."""
    plans = []
    for tp in (1, 2, 4, 8):
        for pp in (1, 2, 4, 8, 16, 32):
            if num_gpus % (tp * pp) or tp > device.per_node:
                continue
            for limit in (None, USABLE_MEMORY * device.memory_bytes / 1e9)[: 1 + (pp > 1)]:
                mesh = MeshConfig(tensor_parallel=tp, pipeline_parallel=pp, stage_memory_gb=limit)
                try:
                    tried = RunConfig.model_validate({**config.model_dump(), "mesh": mesh.model_dump()})
                    plans.append(make_plan(tried, num_gpus // (tp * pp), device))
                except ValueError:  # heads, layers or rows that do not divide, or no cut that fits: not a mesh of this model
                    break
                if fits(plans[-1], device):  # cut by FLOPs, and no memory in its way
                    break
    if not plans:
        raise ValueError(
            f"no mesh of {num_gpus} GPUs divides train.global_batch_size {config.train.global_batch_size} in micro-batches of "
            f"{config.train.micro_batch_size}: change one of the three"
        )
    fitting = [plan for plan in plans if fits(plan, device)]
    if not fitting:
        nearest = min(plans, key=lambda plan: plan.peak_bytes)
        raise ValueError(
            f"{config.model.size} does not fit on {num_gpus} {device.name}: the leanest mesh (tensor "
            f"{nearest.mesh.tensor_parallel} × pipeline {nearest.mesh.pipeline_parallel} × data {nearest.data_parallel}) needs "
            f"{nearest.peak_bytes / 1e9:.0f} GB; take more GPUs, a smaller train.micro_batch_size, or train.recompute=true"
        )
    return min(fitting, key=lambda plan: plan.step_seconds)


def fits(plan: Plan, device: GPU) -> bool:
    return plan.peak_bytes <= USABLE_MEMORY * device.memory_bytes


def num_parameters(config: RunConfig) -> int:
    """Of the whole model, tied weights once."""
    whole = footprints(config.model, Lengths(2, 2), 1, 1, torch.float32)
    return sum(piece.decayed + piece.plain for piece in whole if piece.tied_to is None)


def state_bytes(held: list[PieceFootprint], data_parallel: int, precision: str, stage: int = 1) -> tuple[int, int, int]:
    """(weights, gradients, optimizer) of a rank that holds these pieces, under ZeRO-1 or without: exact, padding included."""
    multiple = _ALIGNMENT * data_parallel
    groups = [sum(piece.decayed for piece in held), sum(piece.plain for piece in held)]
    if stage == 0:
        return 4 * sum(groups), 4 * sum(groups), 2 * 4 * sum(groups)
    padded = sum(math.ceil(group / multiple) * multiple for group in groups)
    optimizer = 3 * 4 * padded // data_parallel  # fp32 weights and two moments, a share a replica
    if precision == "bf16":
        return 2 * padded, 4 * padded, optimizer  # fp32 gradients: BF16_Optimizer accumulates there
    return 4 * padded, 4 * sum(groups), optimizer


def _footprints(config: RunConfig) -> list[PieceFootprint]:
    train = config.train
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    return footprints(config.model, config.data.lengths, train.micro_batch_size, config.mesh.tensor_parallel, dtype)


def _held(part: Sequence[PieceFootprint]) -> list[PieceFootprint]:
    """The pieces whose weights a stage holds: one of those that share them."""
    held = [piece for piece in part if piece.tied_to is None]
    owners = {piece.name for piece in held}
    return held + [piece for piece in part if piece.tied_to is not None and piece.tied_to not in owners]


def _stage_bytes(
    config: RunConfig, part: Sequence[PieceFootprint], number: int, data_parallel: int
) -> tuple[int, int, int, int]:
    """Weights, gradients, optimizer and activations of stage `number` on one of its ranks."""
    train = config.train
    in_flight = min(config.mesh.pipeline_parallel - number, train.accumulation_steps(data_parallel))
    states = state_bytes(_held(part), data_parallel, train.precision, zero_stage(config, data_parallel))
    return *states, _activation_bytes(part, train.recompute, in_flight)


def _limit(config: RunConfig, model: list[PieceFootprint], data_parallel: int) -> Callable[[int, int, int], bool]:
    gigabytes = config.mesh.stage_memory_gb
    if gigabytes is None:
        return lambda *_: True
    limit = gigabytes * 1e9
    return lambda stage, begin, end: sum(_stage_bytes(config, model[begin:end], stage, data_parallel)) <= limit


def _activation_bytes(part: Sequence[PieceFootprint], recompute: bool, in_flight: int) -> int:
    if not recompute:
        return in_flight * sum(piece.saved_bytes for piece in part)
    return in_flight * sum(piece.passed_bytes for piece in part) + max(piece.saved_bytes for piece in part)


def _sent_on(model: Sequence[PieceFootprint], begin: int, end: int) -> int:
    """Sent by a stage for one micro-batch: its state to the next one, gradients of what it received to the one before."""
    forward = model[end - 1].sent_floats + model[end - 1].sent_integers if end < len(model) else 0
    return forward + (model[begin - 1].sent_floats if begin > 0 else 0)


def _tied_bytes(model: Sequence[PieceFootprint], bounds: list[int]) -> int:
    """Sent once a step to add up the fp32 gradients of a weight that two stages share."""
    place = {piece.name: index for index, piece in enumerate(model)}
    for index, piece in enumerate(model):
        if piece.tied_to is not None:
            owner = place[piece.tied_to]
            apart = any(owner < bound <= index for bound in bounds[1:-1])
            return 4 * (model[owner].decayed + model[owner].plain) if apart else 0
    return 0


def _tensor_bytes(config: RunConfig, part: Sequence[PieceFootprint], lengths: Lengths) -> float:
    """Sent by a rank within its tensor group for one micro-batch, forward and backward.

    A ring all-reduce of S bytes sends 2 (t - 1) / t * S, all-gather and reduce-scatter half of that.
    """
    tp, train, model = config.mesh.tensor_parallel, config.train, config.model
    if tp == 1:
        return 0.0
    targets = lengths.decoder if model.is_encoder_only else decoder_tokens(model, lengths)
    whole = 0.0  # all-reduces of one token's state, times tokens
    for piece in part:
        forward, backward = _reductions(config, piece, lengths)
        # with recomputation the forward pass runs, and sends, twice
        whole += forward * (2 if train.recompute else 1) + backward
        if piece.name == "head":
            whole += targets
    element = 2 if train.precision == "bf16" else 4
    # the loss adds up a maximum, a logit and a sum over the shards of the vocabulary: fp32, for each target
    loss = 3 * 4 * targets if any(piece.name == "head" for piece in part) else 0
    return 2 * (tp - 1) / tp * train.micro_batch_size * (element * model.d_model * whole + loss)


def _reductions(config: RunConfig, piece: PieceFootprint, lengths: Lengths) -> tuple[float, float]:
    """All-reduces of a token's state, times tokens, in a piece's forward and backward pass; a gathering counts a half."""
    model = config.model
    written = decoder_tokens(model, lengths)
    if piece.name.startswith("encoder.layers."):
        attends, gated = not piece.transforms, model.encoder_style.gated
        forward, backward = 1.0 + attends, 1.0 + gated + 3 * attends  # backward: one for each product that shares an input
        if config.train.micro_batch_size % config.mesh.tensor_parallel == 0:
            # sharded over the batch: one gathering serves them all; the region is entered and left once
            backward = 1.0 + attends + 0.5 * (piece.name == "encoder.layers.0")
            forward += 0.5 * (piece.name == f"encoder.layers.{model.num_encoder_layers - 1}")
        elif piece.transforms:  # half of the columns gathered
            forward, backward = forward + 0.25, backward + 0.25
        return lengths.encoder * forward, lengths.encoder * backward
    if piece.name.startswith("decoder.layers."):
        forward, backward = 2.0 * written, (4.0 + model.decoder_style.gated) * written
        if not model.is_decoder_only:  # cross-attention: its keys and values come from the encoder's tokens
            forward, backward = forward + written, backward + written + 2 * lengths.encoder
        return forward, backward
    if piece.name == "embedding":
        return (written if model.is_decoder_only else lengths.encoder + (0 if model.is_encoder_only else written)), 0.0
    return 0.0, 0.0
