"""`fourier_backend: auto`: the fastest backend on this machine, measured once per shape and kept in a file.

The file is `$XDG_CACHE_HOME/fnet_t5/mixing_backends.json` (by default under ~/.cache). If it cannot be written, each process
measures again. Training runs do not use this: ranks with different choices would round differently, so a recipe names a
backend.
"""

from __future__ import annotations

import json
import os
import time
from functools import lru_cache
from pathlib import Path

import torch

from models.mixing.transforms import BACKENDS, TransformName

_REPEATS = 15


def cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fnet_t5" / "mixing_backends.json"


@torch.compiler.assume_constant_result
def choose_backend(
    rows: int, num_tokens: int, num_features: int, dtype: torch.dtype, device: torch.device, transform: TransformName
) -> str:
    """The fastest backend for (rows, N, D) inputs. Rows are rounded up to a power of two, because the choice depends
    little on them."""
    return _choose(1 << max(0, rows - 1).bit_length(), num_tokens, num_features, dtype, device.type, transform)


@lru_cache(maxsize=1024)
def _choose(rows: int, num_tokens: int, num_features: int, dtype: torch.dtype, kind: str, transform: TransformName) -> str:
    if kind not in ("cpu", "cuda"):
        return "fft"  # nothing to measure on the meta device
    machine = f"{kind} {torch.cuda.get_device_name() if kind == 'cuda' else _processor()}, {torch.get_num_threads()} threads"
    key = f"torch {torch.__version__}, {machine}: {transform} {rows} x {num_tokens} x {num_features} {dtype}"
    path = cache_file()
    known = _read(path)
    if known.get(key) not in BACKENDS:
        known[key] = measure(rows, num_tokens, num_features, dtype, torch.device(kind), transform)
        _write(path, {**_read(path), key: known[key]})
    return known[key]


def measure(
    rows: int, num_tokens: int, num_features: int, dtype: torch.dtype, device: torch.device, transform: TransformName
) -> str:
    """Time every backend on the same input, in turns. Returns the one with the smallest minimum, since other load only adds."""
    with torch.inference_mode(False), torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(rows, num_tokens, num_features, generator=generator).to(device, dtype)
        seconds: dict[str, list[float]] = {name: [] for name in BACKENDS}
        for repeat in range(_REPEATS + 1):
            for name, backend in BACKENDS.items():
                start = time.perf_counter()
                backend(x, transform, "ortho")
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if repeat:  # the first repeat makes the tables
                    seconds[name].append(time.perf_counter() - start)
    return min(BACKENDS, key=lambda name: min(seconds[name]))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "processor"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "processor")


def _read(path: Path) -> dict[str, str]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write(path: Path, values: dict[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(values, indent=1, sort_keys=True))
        partial.replace(path)
    except OSError:
        pass  # a read-only home: the next process measures again
