"""Speed of an FNet encoder and an attention encoder of the same dimensions, by length; the same for `transformers`' models.

    python benchmarks/encoder_by_length.py [--threads 2] [--repeats 20] [--compiled] [--plot docs/encoder_by_length.png]

Both encoders have the same blocks except the mixing sublayer; attention uses SDPA. The number of tokens per pass is constant,
so longer rows mean a smaller batch. A training step is forward and backward with a linear loss, without an optimizer.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from timing import interleaved, machine, paired_ratio, write_record
from torch import nn

from models.architectures.build import build_model
from models.architectures.encoder_only import encoder_inputs
from models.config import ModelConfig, expand_size
from models.huggingface import their_config
from models.layers.initialization import initialize


def encoder(architecture: str, options: argparse.Namespace, length: int, backend: str) -> nn.Module:
    section = {"size": "fnet-small", "architecture": architecture, "num_encoder_layers": options.layers, "heads": ()}
    section |= {"vocab_size": 1000, "max_length": length, "fourier_backend": backend, "dropout": 0.0}
    model = build_model(ModelConfig(**expand_size(section)))
    initialize(model, seed=0)
    return model


def their_encoder(model: nn.Module) -> nn.Module:
    values = their_config(model.config)  # type: ignore[arg-type]
    values.pop("architectures")
    kind = transformers.FNetModel if values["model_type"] == "fnet" else transformers.BertModel
    options = {} if values["model_type"] == "fnet" else {"attn_implementation": "sdpa"}
    return kind(kind.config_class(**values, **options))


def contestants(options: argparse.Namespace, length: int, training: bool) -> dict[str, Callable[[], object]]:
    batch = max(1, options.tokens // length)
    ids = torch.randint(3, 1000, (batch, length))
    inputs = encoder_inputs(ids)
    models = {"fnet": encoder("fnet", options, length, options.backend), "attention": encoder("bert", options, length, "fft")}
    theirs = {f"transformers {name}": their_encoder(model) for name, model in models.items()}

    def run(model: nn.Module, is_ours: bool) -> Callable[[], object]:
        model.train(training)
        if options.compiled:
            model.compile()

        def call() -> object:
            with torch.set_grad_enabled(training):
                hidden = model(inputs).hidden if is_ours else model(input_ids=ids).last_hidden_state
                if training:
                    model.zero_grad(set_to_none=True)
                    hidden.sum().backward()
            return hidden

        return call

    return {name: run(model, True) for name, model in models.items()} | {
        name: run(model, False) for name, model in theirs.items()
    }


def plot(ratios: dict[tuple[str, str], list[float]], lengths: list[int], path: Path) -> None:
    """`ratios`: for each pass and library, the time of attention divided by FNet's, at each length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, what in zip(axes, ("forward", "training step"), strict=True):
        for whose, marker in (("ours", "o"), ("transformers", "s")):
            axis.plot(lengths, ratios[what, whose], marker=marker, label=whose)
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [str(n) for n in lengths])
        axis.set_title(what)
        axis.set_xlabel("tokens")
    axes[0].set_ylabel("attention time / FNet time")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--backend", default="auto", choices=["fft", "matmul", "folded", "auto"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    mode = "compiled" if options.compiled else "eager"
    shape = f"d 512, {options.layers} layers, {options.tokens} tokens a pass, backend {options.backend}"
    print(f"{machine()}, {mode}; {shape}; median of {options.repeats}, ms\n")
    print("| tokens | pass | FNet | attention | ratio | transformers' FNet | its BERT | ratio |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
    for length in options.lengths:
        for what in ("forward", "training step"):
            timed = interleaved(contestants(options, length, what != "forward"), options.repeats)
            ms = {name: value.median for name, value in timed.items()}
            ours, theirs = (paired_ratio(timed[f"{p}attention"], timed[f"{p}fnet"]) for p in ("", "transformers "))
            print(
                f"| {length} | {what} | {ms['fnet']:.1f} | {ms['attention']:.1f} | {ours:.2f} "
                f"| {ms['transformers fnet']:.1f} | {ms['transformers attention']:.1f} | {theirs:.2f} |",
                flush=True,
            )
            ratios[what, "ours"].append(ours)
            ratios[what, "transformers"].append(theirs)
            record = {"benchmark": "encoder_by_length", "tokens": length, "mode": mode, "pass": what, "shape": shape}
            write_record(options.json, {**record, "ms": ms, "ratios": [ours, theirs], "machine": machine()})
    if options.plot is not None:
        plot(ratios, options.lengths, options.plot)


if __name__ == "__main__":
    main()
