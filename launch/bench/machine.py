"""One line that names the machine of a measurement."""

from __future__ import annotations

from pathlib import Path

import torch

_PROCESSORS = Path("/proc/cpuinfo")


def machine(device: str = "cpu") -> str:
    """The device's name, threads and torch's version. `device` is cpu or cuda."""
    lines = _PROCESSORS.read_text().splitlines() if _PROCESSORS.exists() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor")
    where = torch.cuda.get_device_name() if device == "cuda" else f"{processor}, {torch.get_num_threads()} threads"
    return f"{where}, torch {torch.__version__}"
