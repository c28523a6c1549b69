"""Writes docs/models.md: parameters and FLOPs of every architecture and size, the compute-matched hybrids, the GPT-2s.

    python benchmarks/model_tables.py [--output docs/models.md]

All numbers are computed, not measured. Parameters are counted from the modules, on the meta device.
"""

# ruff: noqa: E501 (rows of tables)
from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from models.architectures.build import build_model
from models.architectures.pieces import executed_flops, forward_flops
from models.config import SIZES, ModelConfig, expand_size
from models.cost.flops import Lengths
from models.cost.parameters import num_parameters
from models.layers.factory import TorchLayers
from models.matching.compute_matched import compute_matched
from models.matching.matched_decoder import gpt2_of_equal_flops, gpt2_of_equal_parameters

# Input tokens, and the target tokens that T5's span corruption makes of them (0.15 noise, mean span 3).
LENGTHS = (Lengths(512, 114), Lengths(2048, 456))
VOCABULARY = {"t5": 32128, "fnet": 32000, "bert": 30522, "gpt2": 50257}

HEAD = """# Models

All architectures are built from the same pieces (`models/architectures/pieces.py`). `python benchmarks/model_tables.py` computes
every number on this page. For speed see [benchmarks_models.md](benchmarks_models.md).

| `model.architecture` | description | checked against |
| --- | --- | --- |
| `fnet_t5` | the hybrid: an encoder that mixes tokens by `model.mixing` (default: Fourier), and a T5 decoder | its own definition |
| `t5` | T5 v1.0 and v1.1, tied or not | `transformers`' T5, logits and gradients |
| `gpt2` | causal decoder with learnt positions | `transformers`' GPT-2, logits and gradients |
| `prefix_decoder` | a decoder of T5's blocks that reads its prefix in both directions | its own definition |
| `fnet`, `bert` | encoder only: masked tokens, order, sequence and token classification, answers, features | `transformers`' FNet and BERT, every head |

| key | values |
| --- | --- |
| `mixing` | `fourier`, `hartley`, `linear`, `random`, `identity`, `attention`, `causal_fourier` |
| `num_attention_layers`, `attention_layout` | number of encoder layers that keep attention, and which ones: `bottom`, `middle`, `mixed`, `top` |
| `fourier_norm`, `fourier_backend` | `ortho`, `backward` · `fft`, `matmul`, `folded`, `auto` (the fastest, measured once on the machine) |
| `norm`, `norm_position` | `rms`, `layer` · `pre`, `post` |
| `feed_forward` | `relu`, `gelu`, `gelu_tanh`, `gated_gelu`, `swiglu` |
| `position` | `relative` (T5's bias), `learned`, `rope`, `none` |
| `encoder_positions` | `default` (as `position` says), `learned`, `none`: the encoder of `fnet_t5` and `t5` alone |
| `decoder_mixing` | `attention`, `causal_fourier` |

```
echo 'The Fourier transform' | fnet-t5 generate runs/mine --temperature 0.8 --top-k 40      # streamed
fnet-t5 generate runs/mine --file prompts.txt --lines --beams 4 --length-penalty 0.8 > written.jsonl
fnet-t5 export runs/mine --output exported/mine         # transformers loads it without this package
fnet-t5 import downloads/fnet-base --output imported    # an FNet checkpoint as the encoder of a hybrid
```

All of them train on every mesh that divides them ([train.md](train.md)): `bert` and `fnet` on `masked_lm`, the others on the
objectives in [objectives.md](objectives.md). A run can start from an imported model: set `train.initial_weights=imported` and use
`imported/model.json` as its `model` section.

The relative bias of T5 is computed from its tables once a pass and pipeline stage, by the first layer that needs it, and passed
to the later layers in the state. Stages send the tables (`num_buckets` x heads) and not the bias (heads x N x N). With
`train.recompute` every layer computes its own, so that none is kept in memory.

The encoder of `fnet_t5` adds no positions to its input; FNet's adds learnt ones. `model.encoder_positions: learned` adds them to the
encoder of `fnet_t5` or `t5`: `max_length` x D parameters (`encoder.input.positions.weight`), no FLOPs. They come beside a relative
bias and do not replace it, so a `t5` then has both. `none` takes the relative bias away from the encoder. The decoder is as
`model.position` says either way. `model.max_length` must cover `data.encoder_length`; positions count from the start of a row, also with
`mix_within_documents`. `fnet-t5 export` refuses both values: the classes of `transformers` have no such parameter.

## Parameters and FLOPs

FLOPs are of the forward pass, in GFLOP a sequence. A multiply-add counts 2, causal attention counts in full, the Fourier
transform counts 2.5 N D (log2 N + log2 D) with every backend; training is three times the forward pass. Encoder-decoders read N
tokens and decode the targets of span corruption (512 → 114, 2048 → 456); decoder-only models read 512 or 2048 tokens;
encoder-only models predict 15 % of their tokens. `nano` and `demo` have T5's vocabulary here. GPT-2's and BERT's vocabularies are
as published; a run pads them to a multiple of 128 (`model.vocab_multiple`), which adds a few rows.
"""

MATCHED = """
## Compute-matched hybrids

`models/matching/compute_matched.py` makes them from any T5 configuration. Only the encoder changes. FLOPs are matched at 512 → 114
tokens. Widths are multiples of 64; the last columns show the remaining mismatch.
"""

GPT2 = """
## The GPT-2 baseline

`models/matching/matched_decoder.py` holds the only rule for the GPT-2 that is compared with a T5. Ladders (arm `gpt2`) and
`fnet-t5 bench inference` both use it.

- **Shape**: as many layers as heads, and heads of 64: the proportions of the smallest GPT-2 (12 layers of 768, 12 heads). If the
  T5's heads are narrower than 64, the GPT-2's are as narrow.
- **Size**: as many parameters as the T5 (ladders, and one of the benchmark's pairings), or as many FLOPs of a training row (the
  other pairing). The number of layers is the nearest with a feed-forward of 4 widths. Then the feed-forward is fitted, in
  multiples of 64, between 2 and 8 widths.

Why this rule: a baseline must be a model that someone would train. Scaling the depth alone at the T5's width makes 31 layers of
768 for T5-v1.1-base; GPT-2 medium has 24 layers of 1024 and GPT-2 large 36 of 1280, so such a model is far too narrow for its
depth. Published families scale width and depth together. With this rule the GPT-2 with the compute of T5-v1.1-base has the
shape of the published GPT-2. The larger published GPT-2s are deeper for their width (33 to 43 features of width a layer); the rule
keeps 64 for all sizes, because that needs no table. Learnt positions count as parameters, so a longer `max_length` makes the
feed-forward slightly narrower. The number of heads may be odd; a run whose `mesh.tensor_parallel` does not divide it is refused.

Every table with a row for a `gpt2` of one size shows its layers x width and its heads. Reports take them from the configuration of the run, so
a run from before this rule is shown with the shape that it had. (`prefix_decoder` keeps the T5's width and block on purpose and
changes the depth: it isolates the effect of having no encoder.)

With 640 positions; FLOPs are matched at a row of 512 + 128 tokens.

| T5 | GPT-2 | shape | F | parameters | GFLOP a row | parameters, % off | FLOPs, % off |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |
"""


def family(size: str) -> str:
    return next((name for name in ("t5", "fnet", "bert", "gpt2") if size.startswith(name)), "t5")


def rows() -> Iterator[str]:
    yield "| architecture | size | layers | D | F | parameters | GFLOP at 512 | GFLOP at 2048 |"
    yield "| --- | --- | --- | --- | --- | ---: | ---: | ---: |"
    for size in SIZES:
        kind = family(size)
        architectures = {
            "t5": ("fnet_t5", "t5", "prefix_decoder"),
            "fnet": ("fnet",),
            "bert": ("bert",),
            "gpt2": ("gpt2",),
        }[kind]
        if size in ("nano", "demo"):
            architectures = ("fnet_t5", "t5", "prefix_decoder", "gpt2", "fnet", "bert")
        for architecture in architectures:
            yield row(size, architecture, VOCABULARY[kind])


def row(size: str, architecture: str, vocab_size: int) -> str:
    multiple = 1 if architecture in ("gpt2", "bert", "fnet") else 128
    section = {
        "size": size,
        "architecture": architecture,
        "vocab_size": vocab_size,
        "vocab_multiple": multiple,
        "max_length": 2048,
    }
    if architecture in ("gpt2", "bert", "fnet"):  # as published: 1024 and 512 positions
        section["max_length"] = 1024 if architecture == "gpt2" else 512
    config = ModelConfig(**expand_size(section))
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build_model(config).parameters())
    counts = []
    for lengths in LENGTHS:
        own = lengths
        if config.is_decoder_only:
            own = Lengths(0, lengths.encoder)
        elif config.is_encoder_only:
            own = Lengths(lengths.encoder, round(0.15 * lengths.encoder))
        counts.append(f"{forward_flops(config, TorchLayers(), own) / 1e9:,.1f}")
    layers = " + ".join(str(n) for n in (config.num_encoder_layers, config.num_decoder_layers) if n)
    return f"| {architecture} | {size} | {layers} | {config.d_model} | {config.d_ff} | {parameters:,} | {' | '.join(counts)} |"


def matched_rows() -> Iterator[str]:
    yield "| T5 | hybrid | encoder layers | encoder F | parameters | GFLOP at 512 | parameters, % off | FLOPs, % off |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for size in SIZES:
        if not size.startswith("t5"):
            continue
        t5 = ModelConfig(**expand_size({"size": size, "architecture": "t5", "vocab_size": VOCABULARY["t5"]}))
        for variant in compute_matched(t5, LENGTHS[0]).values():
            config = variant.config
            yield (
                f"| {size} | {variant.matching.replace('_', ' ')} | {config.num_encoder_layers} | {config.encoder_block_config.d_ff} "
                f"| {variant.parameters:,} | {variant.flops / 1e9:,.1f} | {100 * variant.parameter_mismatch:+.2f} "
                f"| {100 * variant.flop_mismatch:+.2f} |"
            )


def gpt2_rows() -> Iterator[str]:
    row = Lengths(512, 128)
    for size in SIZES:
        if not size.startswith("t5"):
            continue
        t5 = ModelConfig(**expand_size({"size": size, "architecture": "t5", "vocab_size": VOCABULARY["t5"]}))
        of_t5 = num_parameters(t5), forward_flops(t5, TorchLayers(), row)
        both = {
            "equal parameters": gpt2_of_equal_parameters(t5, max_length=640),
            "equal flops": gpt2_of_equal_flops(t5, row, max_length=640),
        }
        for matching, config in both.items():
            parameters, flops = num_parameters(config), forward_flops(config, TorchLayers(), row)
            off = [f"{100 * (own / other - 1):+.2f}" for own, other in zip((parameters, flops), of_t5, strict=True)]
            yield (
                f"| {size} | {matching} | {config.shape} | {config.d_ff} | {parameters:,} | {flops / 1e9:,.1f} "
                f"| {off[0]} | {off[1]} |"
            )


def executed_rows() -> Iterator[str]:
    yield "| hybrid | counted | `fft` | `folded` | `matmul` |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for size in ("t5-v1.1-small", "t5-v1.1-base", "t5-v1.1-large"):
        section = {"size": size, "vocab_size": VOCABULARY["t5"]}
        counts = [forward_flops(ModelConfig(**expand_size(section)), TorchLayers(), LENGTHS[0])]
        for backend in ("fft", "folded", "matmul"):
            config = ModelConfig(**expand_size({**section, "fourier_backend": backend}))
            counts.append(executed_flops(config, TorchLayers(), LENGTHS[0]))
        yield f"| {size} | " + " | ".join(f"{count / 1e9:,.1f}" for count in counts) + " |"


def page() -> str:
    executed = "\n## What the backends execute\n\nGFLOP a sequence at 512 → 114 tokens.\n\n"
    parts = [HEAD + "\n", "\n".join(rows()), "\n" + MATCHED + "\n", "\n".join(matched_rows())]
    parts += ["\n" + GPT2, "\n".join(gpt2_rows()), "\n" + executed]
    return "".join(parts) + "\n".join(executed_rows()) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/models.md"))
    output = parser.parse_args().output
    output.write_text(page(), encoding="utf-8")
    print(f"{output} written")


if __name__ == "__main__":
    main()
