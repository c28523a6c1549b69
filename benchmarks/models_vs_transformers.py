"""Our t5 and bert arms compared with `transformers`' T5 and BERT: same shapes and weights, attention with SDPA in both.

    python benchmarks/models_vs_transformers.py [--threads 2] [--repeats 20] [--compiled] [--json results.jsonl]

Forward without gradients, and a training step (forward, loss, backward; no optimizer, because both use torch's). Full rows
without padding, with the masks that both get in training. The ratio is theirs divided by ours, the median over rounds: above 1,
ours is faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from timing import interleaved, machine, paired_ratio, write_record
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures.build import build_model
from models.architectures.encoder_only import encoder_inputs
from models.architectures.pieces import Inputs
from models.config import ModelConfig, expand_size
from models.huggingface import entries, their_config
from models.huggingface.mapping import to_theirs
from models.layers.initialization import initialize

Run = Callable[[], Tensor]

SHAPES: dict[str, dict[str, Any]] = {
    # the width of t5-v1.1-small with half its depth, so that a round takes seconds on two cores
    "t5 v1.1": {"architecture": "t5", "size": "t5-v1.1-small", "num_encoder_layers": 4, "num_decoder_layers": 4},
    "t5 v1.0": {"architecture": "t5", "size": "t5-small", "num_encoder_layers": 4, "num_decoder_layers": 4},
    "bert": {"architecture": "bert", "size": "fnet-small", "num_encoder_layers": 4},
}


def pair(name: str, vocab_size: int, batch: int, length: int, target: int) -> tuple[nn.Module, nn.Module, Run, Run, Tensor]:
    """Both models with the same weights, a function that runs each, and the targets."""
    config = ModelConfig(**expand_size({**SHAPES[name], "vocab_size": vocab_size}))
    ours = build_model(config)
    initialize(ours, seed=0)
    values = their_config(config)
    kind = getattr(transformers, values.pop("architectures")[0])
    theirs = kind(kind.config_class(**values, attn_implementation="sdpa"))
    if not config.tie_embeddings:
        theirs.lm_head = nn.Linear(config.d_model, vocab_size, bias=False)
    theirs.load_state_dict(to_theirs(entries(config), ours.state_dict(), config), strict=False)
    ids = torch.randint(3, vocab_size, (batch, length))
    mask = torch.ones_like(ids)
    if config.architecture == "t5":
        decoder_ids = torch.randint(3, vocab_size, (batch, target))
        inputs = Inputs(ids, mask, decoder_ids)
        return (
            ours,
            theirs,
            lambda: ours(inputs),
            lambda: theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids, use_cache=False).logits,
            torch.randint(3, vocab_size, (batch, target)),
        )
    encoder = encoder_inputs(ids, mask)
    return (
        ours,
        theirs,
        lambda: ours(encoder).mlm,
        lambda: theirs(input_ids=ids, attention_mask=mask).prediction_logits,
        torch.randint(3, vocab_size, (batch, length)),
    )


def contests(name: str, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    ours, theirs, run_ours, run_theirs, targets = pair(name, 32128, options.batch, options.length, options.target)
    with torch.no_grad():
        difference = (run_ours()[..., :32128] - run_theirs()).norm() / run_theirs().norm()
    assert difference < 1e-5, f"{name}: the two models differ by {difference}"
    if options.compiled:
        ours.compile()
        theirs.compile()

    def forward(run: Run) -> Callable[[], object]:
        def call() -> object:
            with torch.no_grad():
                return run()

        return call

    def step(model: nn.Module, run: Run) -> Callable[[], object]:
        def call() -> object:
            model.zero_grad(set_to_none=True)
            loss = F.cross_entropy(run().flatten(0, 1), targets.flatten())
            loss.backward()
            return loss

        return call

    for model in (ours, theirs):
        model.eval()
    yield "forward", {"ours": forward(run_ours), "theirs": forward(run_theirs)}
    for model in (ours, theirs):
        model.train()
        for module in model.modules():  # dropout 0 in both models
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    yield "training step", {"ours": step(ours, run_ours), "theirs": step(theirs, run_theirs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--target", type=int, default=64)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    mode = "compiled" if options.compiled else "eager"
    print(
        f"{machine()}, {mode}; {options.batch} x {options.length} tokens; median of {options.repeats}, ms [deciles 1 and 9]\n"
    )
    print("| model | pass | ours | transformers | theirs / ours |\n| --- | --- | ---: | ---: | ---: |")
    for name in options.models:
        for what, contestants in contests(name, options):
            timed = interleaved(contestants, options.repeats)
            a, b = timed["ours"], timed["theirs"]
            cells = [f"{t.median:.1f} [{t.low:.1f}, {t.high:.1f}]" for t in (a, b)]
            print(f"| {name}, {mode} | {what} | {' | '.join(cells)} | {paired_ratio(b, a):.3f} |", flush=True)
            record = {"benchmark": "models_vs_transformers", "model": name, "mode": mode, "pass": what}
            write_record(options.json, {**record, "ours_ms": a.median, "theirs_ms": b.median, "machine": machine()})


if __name__ == "__main__":
    main()
