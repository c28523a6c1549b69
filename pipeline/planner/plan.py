"""Planning a run before any GPU is asked for: memory, stages, communication and time of a recipe on a mesh.

Weight, gradient and optimizer bytes are exact. Activations are what autograd saves, from shapes; buffers of kernels come on
top. Times are estimates from published peaks and the assumptions in `hardware.py`:

    step = (A + P - 1) * slowest stage's (forward + backward) + reduction of gradients + gathering of weights
    MFU  = model FLOPs of the step (3 x forward, the transform counted as in models/cost/flops.py) /
           (step * GPUs * dense bf16 peak)

A micro-batches a replica, P stages. No overlap of communication with computation is assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.config import MeshConfig, RunConfig
from pipeline.planner.communication import boundary_bytes, tensor_parallel_bytes, tied_gradient_bytes
from pipeline.planner.footprint import PieceFootprint
from pipeline.planner.hardware import GPU, LINK_EFFICIENCY, MATMUL_EFFICIENCY, USABLE_MEMORY
from pipeline.planner.memory import held_pieces, memory_check, num_parameters, recipe_footprints, stage_bytes
from pipeline.planner.partition import partition_stages

_TRANSFORM_BYTES = 32  # an FFT in fp32 reads and writes a real and two complex numbers for each point


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
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
    """Plan a recipe on its own mesh with `data_parallel` replicas.

    Raises ValueError if the batch does not divide, or if the model has no partition into the mesh's stages.
    """
    mesh, train = config.mesh, config.train
    num_micro_batches = train.accumulation_steps(data_parallel)
    model = recipe_footprints(config)
    bounds = partition_stages(model, mesh.pipeline_parallel, memory_check(config, model, data_parallel))
    num_gpus = mesh.tensor_parallel * mesh.pipeline_parallel * data_parallel
    slowest_link = device.network_bandwidth if num_gpus > device.per_node else device.link_bandwidth
    stages = tuple(
        _stage_plan(config, model, number, bound, data_parallel, device, slowest_link)
        for number, bound in enumerate(pairwise(bounds))
    )
    data_bytes = _data_parallel_bytes(stages, data_parallel, train.precision)
    tied_bytes = tied_gradient_bytes(model, bounds)
    working, bubble = _pipeline_seconds(stages, num_micro_batches)
    step_seconds = working + (data_bytes + tied_bytes) / (slowest_link * LINK_EFFICIENCY)
    flops_per_step = 3 * sum(piece.flops for piece in model) * train.global_batch_size
    return Plan(
        mesh=mesh,
        data_parallel=data_parallel,
        num_parameters=num_parameters(config),
        flops_per_step=flops_per_step,
        stages=stages,
        num_micro_batches=num_micro_batches,
        tensor_bytes=max(_tensor_bytes_a_step(config, model[begin:end], num_micro_batches) for begin, end in pairwise(bounds)),
        pipeline_bytes=num_micro_batches * max(boundary_bytes(model, *bound) for bound in pairwise(bounds)) + tied_bytes,
        data_bytes=data_bytes,
        bubble=bubble,
        step_seconds=step_seconds,
        mfu=flops_per_step / (step_seconds * num_gpus * device.peak_flops),
        tokens_per_step=train.global_batch_size * config.data.row_length,
    )


def _stage_plan(
    config: RunConfig,
    model: Sequence[PieceFootprint],
    number: int,
    bound: tuple[int, int],
    data_parallel: int,
    device: GPU,
    slowest_link: float,
) -> StagePlan:
    """Stage `number` with the pieces [begin, end) of `bound`; `slowest_link` (bytes per second) carries its state onwards."""
    part = model[slice(*bound)]
    flops = sum(piece.flops for piece in part)
    weights, gradients, optimizer, activations = stage_bytes(config, part, number, data_parallel)
    return StagePlan(
        first_piece=part[0].name,
        last_piece=part[-1].name,
        num_parameters=sum(piece.decayed + piece.plain for piece in held_pieces(part)),
        flops_share=flops / sum(piece.flops for piece in model),
        weight_bytes=weights,
        gradient_bytes=gradients,
        optimizer_bytes=optimizer,
        activation_bytes=activations,
        seconds=_stage_seconds(config, model, bound, device, slowest_link),
    )


def _stage_seconds(
    config: RunConfig, model: Sequence[PieceFootprint], bound: tuple[int, int], device: GPU, slowest_link: float
) -> float:
    """Forward and backward of one micro-batch: matrix products, transforms and tensor group, then the adjacent stages."""
    train, tp, part = config.train, config.mesh.tensor_parallel, model[slice(*bound)]
    flops = sum(piece.flops for piece in part)
    passes = 4 if train.recompute else 3
    points = train.micro_batch_size * config.data.lengths.encoder * config.model.d_model
    transform_bytes = sum(3 * _TRANSFORM_BYTES * points for piece in part if piece.transforms)
    sent = tensor_parallel_bytes(config, part, config.data.lengths)
    seconds = passes * flops * train.micro_batch_size / tp / (device.peak_flops * MATMUL_EFFICIENCY)
    seconds += transform_bytes / tp / device.memory_bandwidth + sent / (device.link_bandwidth * LINK_EFFICIENCY)
    return seconds + boundary_bytes(model, *bound) / (slowest_link * LINK_EFFICIENCY)


def _tensor_bytes_a_step(config: RunConfig, part: Sequence[PieceFootprint], num_micro_batches: int) -> float:
    """Sent by a rank within its tensor group: activations of each micro-batch, and once the gradients of replicated weights."""
    ring = 2 * (config.mesh.tensor_parallel - 1) / config.mesh.tensor_parallel
    sent = tensor_parallel_bytes(config, part, config.data.lengths)
    return num_micro_batches * sent + ring * 4 * sum(piece.partial for piece in part)


def _data_parallel_bytes(stages: Sequence[StagePlan], data_parallel: int, precision: str) -> float:
    """Sent once a step by a rank of the largest stage: all-reduce of fp32 gradients, all-gather of weights."""
    element = 2 if precision == "bf16" else 4
    share = (data_parallel - 1) / data_parallel
    return share * max(stage.num_parameters for stage in stages) * (2 * 4 + element)


def _pipeline_seconds(stages: Sequence[StagePlan], num_micro_batches: int) -> tuple[float, float]:
    """(seconds until the last micro-batch is through the pipeline, share of them in which a stage waits)."""
    working = (num_micro_batches + len(stages) - 1) * max(stage.seconds for stage in stages)
    ideal = num_micro_batches * sum(stage.seconds for stage in stages) / len(stages)
    return working, 1 - ideal / working


def propose(config: RunConfig, num_gpus: int, device: GPU) -> Plan:
    """The fastest plan on `num_gpus` GPUs that fits in their memory. Raises ValueError if none does."""
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
                except ValueError:  # heads, layers or rows that do not divide, or no partition that fits: try the next mesh
                    break
                if fits(plans[-1], device):  # the partition by FLOPs fits: no need for one by memory
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
            f"{config.model.size} does not fit on {num_gpus} {device.name}: the mesh that needs the least memory (tensor "
            f"{nearest.mesh.tensor_parallel} × pipeline {nearest.mesh.pipeline_parallel} × data {nearest.data_parallel}) needs "
            f"{nearest.peak_bytes / 1e9:.0f} GB; take more GPUs, a smaller train.micro_batch_size, or train.recompute=true"
        )
    return min(fitting, key=lambda plan: plan.step_seconds)


def fits(plan: Plan, device: GPU) -> bool:
    """Whether every stage of a plan stays within the usable memory of the device."""
    return plan.peak_bytes <= USABLE_MEMORY * device.memory_bytes
