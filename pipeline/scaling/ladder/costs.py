"""The costs of a ladder: exact FLOPs, hours from an assumed speed, disk from the kept checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.scaling.ladder.ladder import Ladder

_KEPT_BYTES = 16
"""Bytes of a parameter in a checkpoint: fp32 weights, the optimizer's copy and two moments."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Estimated costs of all runs of a ladder."""

    flops: float
    sweep_flops: float
    device_hours: float
    wall_hours: float
    basis: str
    """The source of the speed, in words."""
    disk_bytes: float


def costs_of(ladder: Ladder) -> Costs:
    """Hours exclude start-up, validation and checkpoints. Each end keeps two checkpoints: the last and the branch point."""
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
