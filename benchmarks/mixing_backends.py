"""The mixing backends and `torch.fft.fftn(x, dim=(1, 2)).real` over a grid of (B, N, D), and the choice of `auto`.

    python benchmarks/mixing_backends.py [--threads 2] [--repeats 20] [--device cuda] [--dtype bf16] [--compiled]

Forward only, because backward is the same operator. In bf16 the reference casts to fp32 and back, as users of fftn must.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import torch
from timing import interleaved, machine, write_record
from torch import Tensor

from models.mixing.backend_choice import choose_backend
from models.mixing.transforms import BACKENDS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def reference(x: Tensor) -> Tensor:
    return torch.fft.fftn(x.float(), dim=(1, 2)).real.to(x.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048, 4096])
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 768, 1024])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="fp32", choices=list(DTYPES))
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    mode = f"{options.dtype}, {'compiled' if options.compiled else 'eager'}"
    print(f"{machine(options.device)}, {mode}; median of {options.repeats}, ms\n")
    print("| B | N | D | torch.fft.fftn | fft | folded | matmul | auto picks | fftn / auto |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |")
    for batch, length, width in product(options.batches, options.lengths, options.widths):
        x = torch.randn(batch, length, width, device=options.device).to(DTYPES[options.dtype])
        calls: dict[str, Callable[[], object]] = {"fftn": partial(reference, x)}
        for name, backend in BACKENDS.items():
            run = torch.compile(backend) if options.compiled else backend
            calls[name] = partial(run, x, "dft_real", "backward")
        with torch.no_grad():
            timed = interleaved(calls, options.repeats, device=options.device)
        ms = {name: value.median for name, value in timed.items()}
        chosen = choose_backend(batch, length, width, x.dtype, x.device, "dft_real")
        times = " | ".join(f"{ms[name]:.2f}" for name in ("fftn", "fft", "folded", "matmul"))
        print(f"| {batch} | {length} | {width} | {times} | {chosen} | {ms['fftn'] / ms[chosen]:.2f} |", flush=True)
        record = {"benchmark": "mixing_backends", "shape": [batch, length, width], "mode": mode, "auto": chosen}
        write_record(options.json, {**record, "ms": ms, "machine": machine(options.device)})


if __name__ == "__main__":
    main()
