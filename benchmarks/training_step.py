"""A complete training step: our `t5` and `fnet_t5` arms with the engine, and transformers' T5 with torch's AdamW.

    python benchmarks/training_step.py [--lengths 512 1024 2048 4096] [--repeats 10] [--json results.jsonl]

One process, fp32, the same shapes, and for the two T5s the same weights: forward, loss, backward, clipping, AdamW. Ours runs
the complete training code (DeepSpeed's pipeline engine with ZeRO-1, guards); theirs is a plain loop. The arms alternate in
every round. Ratios are medians over rounds of theirs divided by ours: above 1, ours is faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from timing import interleaved, machine, paired_ratio, write_record
from torch import nn
from torch.nn import functional as F
from training_batches import VOCABULARY, be_the_only_process, random_batches

from models.architectures.build import build_model
from models.config import expand_size
from models.huggingface import entries, their_config
from models.huggingface.mapping import to_theirs
from models.layers.initialization import initialize
from pipeline.config import RunConfig
from pipeline.data.batches import PipelineBatch
from pipeline.distributed.mesh import join
from pipeline.engine.engine import Engine

DECODER_LENGTH = 128


def recipe(architecture: str, size: str, layers: int, length: int, rows: int) -> RunConfig:
    section = {"size": size, "architecture": architecture, "num_encoder_layers": layers, "num_decoder_layers": layers}
    return RunConfig.model_validate(
        {
            "model": expand_size({**section, "vocab_size": VOCABULARY}),
            "data": {"path": "unused", "encoder_length": length, "decoder_length": DECODER_LENGTH},
            "train": {
                "steps": 1000,
                "global_batch_size": rows,
                "micro_batch_size": rows,
                "precision": "fp32",
                "spike_sigma": 0,
            },
        }
    )


def ours(config: RunConfig, batches: list[PipelineBatch]) -> Callable[[], object]:
    engine = Engine(config, join(config.mesh))
    return lambda: engine.train_step(batches, 1e-3)


def theirs(config: RunConfig, batches: list[PipelineBatch]) -> Callable[[], object]:
    """transformers' T5 with the initial weights of our arm."""
    start = build_model(config.model)
    initialize(start, config.train.seed)
    values = their_config(config.model)
    kind = getattr(transformers, values.pop("architectures")[0])
    model = kind(kind.config_class(**values, attn_implementation="sdpa"))
    if not config.model.tie_embeddings:
        model.lm_head = nn.Linear(config.model.d_model, VOCABULARY, bias=False)
    model.load_state_dict(to_theirs(entries(config.model), start.state_dict(), config.model), strict=False)
    settings = config.optimizer
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=settings.betas, eps=settings.eps, weight_decay=0.0)
    ((inputs, (targets, _)),) = batches

    def step() -> float:
        logits = model(input_ids=inputs[0], attention_mask=inputs[1], decoder_input_ids=inputs[2], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--size", default="t5-v1.1-small")
    parser.add_argument("--layers", type=int, default=4, help="layers of each stack")
    parser.add_argument("--tokens", type=int, default=4096, help="encoder tokens per step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    be_the_only_process()
    print(f"{machine()}; {options.size}; {options.layers} layers a stack, {DECODER_LENGTH} decoder tokens a row; medians, s\n")
    print("| encoder tokens | rows | T5, transformers | t5, ours | fnet_t5 | theirs / t5 | theirs / fnet_t5 | t5 / fnet_t5 |")
    print("| ---: " * 8 + "|", flush=True)
    for length in options.lengths:
        rows = max(1, options.tokens // length)
        batches = random_batches(length, DECODER_LENGTH, rows, 1)
        t5, hybrid = (recipe(name, options.size, options.layers, length, rows) for name in ("t5", "fnet_t5"))
        timed = interleaved(
            {"theirs": theirs(t5, batches), "t5": ours(t5, batches), "fnet_t5": ours(hybrid, batches)}, options.repeats, 2
        )
        ratios = {
            f"{a}/{b}": paired_ratio(timed[a], timed[b])
            for a, b in (("theirs", "t5"), ("theirs", "fnet_t5"), ("t5", "fnet_t5"))
        }
        seconds: dict[str, Any] = {name: time.median / 1000 for name, time in timed.items()}
        cells = [f"{value:.2f}" for value in (*seconds.values(), *ratios.values())]
        print(f"| {length} | {rows} | {' | '.join(cells)} |", flush=True)
        write_record(
            options.json,
            {"benchmark": "training_step", "length": length, "rows": rows, **seconds, **ratios, "machine": machine()},
        )


if __name__ == "__main__":
    main()
