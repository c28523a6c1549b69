"""What the engine costs at one stage: DeepSpeed's pipeline with our guards beside a plain loop over the same model and batches.

    OMP_NUM_THREADS=1 python benchmarks/engine.py --size t5-v1.1-small --steps 5 --output engine.json

One process, fp32, AdamW, clipping; the two take turns step by step and medians are compared, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from training_batches import VOCABULARY, be_the_only_process, random_batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="nano")
    parser.add_argument("--architecture", default="fnet_t5")
    parser.add_argument("--encoder-length", type=int, default=512)
    parser.add_argument("--decoder-length", type=int, default=128)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    be_the_only_process()
    result = compare(options)
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    from models.architectures.pieces import Inputs
    from models.architectures.seq2seq import Seq2Seq
    from models.config import expand_size
    from models.layers.initialization import initialize
    from pipeline.config import RunConfig
    from pipeline.distributed.mesh import join
    from pipeline.engine.engine import Engine

    rows = options.micro_batch * options.accumulation
    config = RunConfig.model_validate(
        {
            "model": expand_size({"size": options.size, "architecture": options.architecture, "vocab_size": VOCABULARY}),
            "data": {"path": "unused", "encoder_length": options.encoder_length, "decoder_length": options.decoder_length},
            "train": {
                "steps": 1000,
                "global_batch_size": rows,
                "micro_batch_size": options.micro_batch,
                "precision": "fp32",
                "spike_sigma": 0,
            },
        }
    )
    engine = Engine(config, join(config.mesh))
    model = Seq2Seq(config.model)
    initialize(model, 0)
    settings = config.optimizer
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=settings.betas, eps=settings.eps, weight_decay=0.0)
    batches = random_batches(options.encoder_length, options.decoder_length, options.micro_batch, options.accumulation)
    times: dict[str, list[float]] = {"engine": [], "plain": []}
    for step in range(options.steps + 2):
        began = time.perf_counter()
        engine.train_step(batches, 1e-3)
        between = time.perf_counter()
        for inputs, (targets, weights) in batches:
            nll = model.factory.cross_entropy(model(Inputs(*inputs)), targets)
            ((nll * weights).sum() / options.accumulation).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad()
        ended = time.perf_counter()
        if step >= 2:  # the first ones fill caches
            times["engine"].append(between - began)
            times["plain"].append(ended - between)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        **{key: value for key, value in vars(options).items() if key != "output"},
        "seconds": medians,
        # of the two steps that stand side by side: a busy machine slows both
        "overhead": statistics.median(a / b for a, b in zip(times["engine"], times["plain"], strict=True)) - 1,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
