"""Measurements on a CUDA machine: parity with the CPU, bf16 tolerance, step time, MFU and memory, as one JSON file.

    python benchmarks/gpu/training.py --output gpu.json                 # parity, then every arm at 512 and 2048 tokens
    python benchmarks/gpu/training.py --arms fnet_t5 --lengths 512 --steps 20 --micro-batch 32

One GPU, one process, DeepSpeed's engine with ZeRO-1 in bf16 as in training. For comparison: nanoT5 takes 0.56 s per step (one
A100, T5-v1.1-base, 128 rows of 512, bf16, compiled). `--device cpu --size nano` runs the same code on a CPU as a trial.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for training_batches
from training_batches import VOCABULARY, be_the_only_process, random_batches

from pipeline.tracking.provenance import revision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=["fnet_t5", "t5"])
    parser.add_argument("--size", default="t5-v1.1-base")
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048])
    parser.add_argument("--decoder-length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=128, help="Rows per step at 512 tokens; fewer at greater lengths.")
    parser.add_argument("--micro-batch", type=int, default=32, help="Its rows at 512 tokens; fewer at greater lengths.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--gpu", default="h100", help="GPU type whose peak FLOP/s is used for MFU.")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: PyTorch sees no CUDA device; --device cpu --size nano tries the script out")
    be_the_only_process()
    report: dict[str, Any] = {
        "command": sys.argv,
        "revision": revision(),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "parity": {arm: parity(arm, options.device) for arm in options.arms},
        "training": [],
    }
    for length in options.lengths:
        for arm in options.arms:
            report["training"].append(measure(arm, length, options))
            print(json.dumps(report["training"][-1]), flush=True)
            options.output.write_text(json.dumps(report, indent=2) + "\n")  # keep finished results after a crash
    print(json.dumps(report["parity"], indent=2))


def parity(arm: str, device: str) -> dict[str, float]:
    """Largest relative differences (2-norm) of logits and gradients from those of the CPU, in fp32 and bf16."""
    from models.architectures.pieces import Inputs
    from models.architectures.seq2seq import Seq2Seq
    from models.config import ModelConfig, expand_size
    from models.layers.initialization import initialize

    torch.backends.cuda.matmul.allow_tf32 = False
    config = ModelConfig(**expand_size({"size": "demo", "architecture": arm, "vocab_size": 1000}))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 1000, (2, 96), generator=generator)
    inputs = Inputs(ids, (torch.arange(96)[None] < torch.tensor([[96], [80]])).long(), ids[:, :32])

    def run(where: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        model = Seq2Seq(config)
        initialize(model, 0)
        model = model.to(where, dtype)
        logits = model(Inputs(*(tensor.to(where) for tensor in inputs)))
        logits.square().mean().backward()
        gradients = torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])
        return logits.detach().float().cpu(), gradients

    reference = run("cpu", torch.float32)
    result = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        found = run(device, dtype)
        for what, ours, theirs in zip(("logits", "gradients"), found, reference, strict=True):
            result[f"{name}_{what}"] = float((ours - theirs).norm() / theirs.norm())
    return result


def measure(arm: str, length: int, options: argparse.Namespace) -> dict[str, Any]:
    """Median step time of one arm, with MFU, tokens per second and peak memory."""
    from models.architectures.pieces import forward_flops
    from models.config import expand_size
    from models.cost.flops import Lengths
    from models.layers.factory import TorchLayers
    from pipeline.config import RunConfig
    from pipeline.distributed.mesh import join
    from pipeline.engine.engine import Engine
    from pipeline.planner.hardware import gpu

    scale = max(1, length // 512)
    micro, rows = max(1, options.micro_batch // scale), max(1, options.rows // scale)
    config = RunConfig.model_validate(
        {
            "model": expand_size({"size": options.size, "architecture": arm, "vocab_size": VOCABULARY}),
            "data": {"path": "unused", "encoder_length": length, "decoder_length": options.decoder_length},
            "train": {"steps": 1000, "global_batch_size": rows, "micro_batch_size": micro, "precision": "bf16"},
        }
    )
    engine = Engine(config, join(config.mesh))
    total = length + options.decoder_length
    batches = random_batches(length, options.decoder_length, micro, rows // micro)
    cuda = options.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for step in range(options.steps + 3):
        began = time.perf_counter()
        engine.train_step(batches, 1e-4)
        if cuda:
            torch.cuda.synchronize()
        if step >= 3:
            times.append(time.perf_counter() - began)
    seconds = statistics.median(times)
    lengths = Lengths(length, options.decoder_length)
    flops = 3 * rows * forward_flops(config.model, TorchLayers(), lengths)
    return {
        "arm": arm,
        "size": options.size,
        "encoder_length": length,
        "rows": rows,
        "micro_batch": micro,
        "step_seconds": seconds,
        "tokens_per_second": rows * total / seconds,
        "model_tflops": flops / seconds / 1e12,
        "mfu": flops / seconds / gpu(options.gpu).peak_flops,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
    }


if __name__ == "__main__":
    main()
