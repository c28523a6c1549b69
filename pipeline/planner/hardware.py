"""Accelerators of the planner: published dense peaks, and assumed shares of them that runs reach.

Peaks are dense bf16 (the sparse figures of data sheets are twice as high). Sources: NVIDIA's data sheets of A100, H100 SXM and
H200. None was measured by this project.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GPU:
    name: str
    peak_flops: float
    """Dense bf16 FLOPs per second; a multiply-add counts 2."""
    memory_bytes: float
    memory_bandwidth: float
    """Bytes per second."""
    link_bandwidth: float
    """Bytes per second in one direction between GPUs of a node."""
    network_bandwidth: float = 50e9
    """Bytes per second for each GPU between nodes: one 400 Gb/s port a GPU."""
    per_node: int = 8


GPUS = {
    "a100": GPU(
        name="A100 80GB",
        peak_flops=312e12,
        memory_bytes=80e9,
        memory_bandwidth=2.0e12,
        link_bandwidth=300e9,
        network_bandwidth=25e9,
    ),
    "a100-40g": GPU(
        name="A100 40GB",
        peak_flops=312e12,
        memory_bytes=40e9,
        memory_bandwidth=1.55e12,
        link_bandwidth=300e9,
        network_bandwidth=25e9,
    ),
    "h100": GPU(name="H100 SXM", peak_flops=989e12, memory_bytes=80e9, memory_bandwidth=3.35e12, link_bandwidth=450e9),
    "h200": GPU(name="H200", peak_flops=989e12, memory_bytes=141e9, memory_bandwidth=4.8e12, link_bandwidth=450e9),
}

MATMUL_EFFICIENCY = 0.5
"""Share of the peak that matrix products reach, norms and look-ups included (nanoT5's compiled T5-base comes to about that)."""
LINK_EFFICIENCY = 0.7
USABLE_MEMORY = 0.9
"""Share of the memory for the model. The rest is the CUDA context, communication buffers and fragmentation."""


def peak_flops(device_name: str) -> float | None:
    """The dense bf16 peak (FLOPs per second) of a device by its CUDA name; None if it is not in the table."""
    for word, known in (("H200", "h200"), ("H100", "h100"), ("A100", "a100")):
        if word in device_name and "PCIe" not in device_name:
            return GPUS[known].peak_flops
    return None


def gpu(name: str) -> GPU:
    """The GPU of a name. Raises ValueError, with the known names, for an unknown one."""
    if name not in GPUS:
        raise ValueError(f"--gpu {name!r} is unknown: choose one of {', '.join(GPUS)}")
    return GPUS[name]
