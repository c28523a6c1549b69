"""Writes docs/models.md: every architecture and size with its parameters and FLOPs, and the compute-matched hybrids.

    python benchmarks/model_tables.py [--output docs/models.md]

Everything here is computed, nothing measured. Parameters are counted on the meta device, from the modules themselves.
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
from models.layers.factory import TorchLayers
from models.matching.compute_matched import compute_matched

# Target tokens that T5's span corruption makes of so many input tokens (0.15 noise, mean span 3).
LENGTHS = (Lengths(512, 114), Lengths(2048, 456))
VOCABULARY = {"t5": 32128, "fnet": 32000, "bert": 30522, "gpt2": 50257}

HEAD = """# Models

Every architecture is built from the same pieces (`models/architectures/pieces.py`) and every number on this page comes from
`python benchmarks/model_tables.py`. How fast they are is in [benchmarks_models.md](benchmarks_models.md).

| `model.architecture` | what it is | checked against |
| --- | --- | --- |
| `fnet_t5` | the hybrid: an encoder that mixes tokens by `model.mixing` (Fourier by default), a T5 decoder | its own definition |
| `t5` | T5 v1.0 and v1.1, tied or not | `transformers`' T5, logits and gradients |
| `gpt2` | causal decoder with learnt positions | `transformers`' GPT-2, logits and gradients |
| `prefix_decoder` | T5's blocks as a decoder only, whose prefix is read in both directions | its own definition |
| `fnet`, `bert` | encoder only: masked tokens, order, sequence and token classification, answers, features | `transformers`' FNet and BERT, every head |

| key | values |
| --- | --- |
| `mixing` | `fourier`, `hartley`, `linear`, `random`, `identity`, `attention`, `causal_fourier` |
| `num_attention_layers`, `attention_layout` | how many encoder layers attend all the same, and where: `bottom`, `middle`, `mixed`, `top` |
| `fourier_norm`, `fourier_backend` | `ortho`, `backward` · `fft`, `matmul`, `folded`, `auto` (measured once on the machine) |
| `norm`, `norm_position` | `rms`, `layer` · `pre`, `post` |
| `feed_forward` | `relu`, `gelu`, `gelu_tanh`, `gated_gelu`, `swiglu` |
| `position` | `relative` (T5's bias), `learned`, `rope`, `none` |
| `decoder_mixing` | `attention`, `causal_fourier` |

```
echo 'The Fourier transform' | fnet-t5 generate runs/mine --temperature 0.8 --top-k 40      # streamed
fnet-t5 generate runs/mine --file prompts.txt --lines --beams 4 --length-penalty 0.8 > written.jsonl
fnet-t5 export runs/mine --output exported/mine         # transformers loads it without this package
fnet-t5 import downloads/fnet-base --output imported    # an FNet checkpoint as the encoder of a hybrid
```

All of them train on every mesh that divides them ([train.md](train.md)): `bert` and `fnet` on `masked_lm`, the others on what
[objectives.md](objectives.md) says. A run can start from what `import` made: `train.initial_weights=imported`, with `imported/model.json`
as its `model` section.

## Parameters and FLOPs

FLOPs are forward, in GFLOP a sequence; a multiply-add counts 2, causal attention in full, the Fourier transform
2.5 N D (log2 N + log2 D) however it is computed; training is three times that. Encoder-decoders read N tokens and write what span
corruption makes of them (512 → 114, 2048 → 456); decoder-only models read 512 or 2048 tokens; encoder-only models predict 15 % of
theirs. `nano` and `demo` have T5's vocabulary here. GPT-2's and BERT's vocabularies are as published; a run pads them to a
multiple of 128 (`model.vocab_multiple`), which adds a few rows.
"""

MATCHED = """
## Compute-matched hybrids

`models/matching/compute_matched.py` makes them from any T5 configuration. Only the encoder changes. FLOPs are matched at 512 → 114 tokens;
widths are multiples of 64, and the last columns are what remains.
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
    parts = [HEAD + "\n", "\n".join(rows()), "\n" + MATCHED + "\n", "\n".join(matched_rows()), "\n" + executed]
    return "".join(parts) + "\n".join(executed_rows()) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/models.md"))
    output = parser.parse_args().output
    output.write_text(page(), encoding="utf-8")
    print(f"{output} written")


if __name__ == "__main__":
    main()
