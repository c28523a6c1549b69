"""What a ladder will take: FLOPs are exact, hours follow from an assumed speed, disk from what is kept."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.scaling.ladder.ladder import Ladder

_KEPT_BYTES = 16
"""A parameter in a checkpoint: fp32 weights, and the optimizer's copy and two moments."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    flops: float
    sweep_flops: float
    device_hours: float
    wall_hours: float
    basis: str
    """Where the speed comes from."""
    disk_bytes: float


def costs_of(ladder: Ladder) -> Costs:
    """Start-up, validation and checkpoints are not in the hours. Each end keeps its last checkpoint, and where it branched."""
    device = ladder.recipe.device
    flops = sum(run.flops for run in ladder.runs)
    hours = flops / device.speed / 3600
    if device.gpu is not None:
        basis = f"{device.gpu} at {device.mfu:.0%} of its dense bf16 peak, assumed"
    else:
        basis = f"{device.speed:.3g} FLOP/s a process, from the recipe"
    disk = 0
    for run in ladder.runs:
        checkpoints = len(run.rates) if run.phase == "sweep" else 2 * len(run.ends)
        disk += _KEPT_BYTES * run.num_parameters * checkpoints
    return Costs(
        flops=flops,
        sweep_flops=sum(run.flops for run in ladder.runs if run.phase == "sweep"),
        device_hours=hours,
        wall_hours=hours / device.count,
        basis=basis,
        disk_bytes=disk,
    )
