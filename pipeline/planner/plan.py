"""Planning a run before any GPU is asked for: memory, stages, communication and time of a recipe on a mesh.

Weight, gradient and optimizer bytes are exact. Activations are what autograd saves, from shapes; buffers of kernels come on
top. Times are estimates from published peaks and the assumptions in `hardware.py`:

    step = (A + P - 1) * slowest stage's (forward + backward) + reduction of gradients + gathering of weights
    MFU  = model FLOPs of the step (3 x forward, the transform counted as in models/cost/flops.py) /
           (step * GPUs * dense bf16 peak)

A micro-batches a replica, P stages. No overlap of communication with computation is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from pipeline.config import MeshConfig, RunConfig
from pipeline.planner.communication import _sent_on, _tensor_bytes, _tied_bytes
from pipeline.planner.hardware import GPU, LINK_EFFICIENCY, MATMUL_EFFICIENCY, USABLE_MEMORY
from pipeline.planner.memory import _footprints, _held, _limit, _stage_bytes, num_parameters
from pipeline.planner.partition import partition_stages

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
    bounds = partition_stages(model, pp, _limit(config, model, data_parallel))
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
