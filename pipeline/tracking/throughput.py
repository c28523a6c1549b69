"""Throughput of a training step: the figures next to the losses in metrics.jsonl.

tflops_per_device = model FLOPs of the step (3 x forward, `models/cost/flops.py`) / (seconds * devices) / 1e12
mfu               = the same divided by the dense bf16 peak of the device; absent if that is unknown
bubble            = (P - 1) / (A + P - 1): share of a step in which a stage waits for the pipeline to fill and drain, for P
                    stages of equal cost and A micro-batches a replica
data_wait_seconds = how long the step waited for its batches
memory_gb         = peak so far: memory allocated on the device, or without one resident memory of this process
"""

from __future__ import annotations

import resource

import psutil
import torch

from pipeline.distributed.mesh import Mesh
from pipeline.planner.hardware import peak_flops


class Throughput:
    """Computes the figures of a step from its seconds. `flops`: model FLOPs of one step, over all devices."""

    def __init__(self, mesh: Mesh, flops: float, num_micro_batches: int) -> None:
        self._mesh, self._flops = mesh, flops
        stages = mesh.pipeline_parallel
        self._bubble = (stages - 1) / (num_micro_batches + stages - 1)
        on_gpu = mesh.device.type == "cuda"
        self._peak = peak_flops(torch.cuda.get_device_name(mesh.device)) if on_gpu else None
        psutil.cpu_percent()  # the first call only starts the measurement

    def step(self, seconds: float, waited: float) -> dict[str, float]:
        """The figures of a step that took `seconds`, `waited` of them for its batch."""
        rate = self._flops / seconds / self._mesh.world_size
        result = {"tflops_per_device": rate / 1e12, "bubble": self._bubble, "data_wait_seconds": waited}
        if self._peak is not None:
            result["mfu"] = rate / self._peak
        return {**result, "memory_gb": self._memory() / 1e9, **system()}

    def _memory(self) -> float:
        if self._mesh.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._mesh.device))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def system() -> dict[str, float]:
    """Of this machine: processor use since the last call, and memory in use."""
    memory = psutil.virtual_memory()
    return {"system_cpu_percent": psutil.cpu_percent(), "system_memory_gb": (memory.total - memory.available) / 1e9}
