"""The tables that recipes name: published sizes, and the blocks of the architectures that do not have T5's.

T5 v1.0: Raffel et al. 2020 (arXiv:1910.10683); v1.1: google-research/text-to-text-transfer-transformer,
`released_checkpoints.md`. FNet: arXiv:2105.03824 and `f_net/configs` of google-research. BERT: arXiv:1810.04805. GPT-2: Radford
et al. 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DECODER_ONLY = ("gpt2", "prefix_decoder")
ENCODER_ONLY = ("fnet", "bert")


def _stacks(d_model: int, d_ff: int, d_kv: int, num_heads: int, layers: int) -> dict[str, Any]:
    return {
        "d_model": d_model,
        "d_ff": d_ff,
        "d_kv": d_kv,
        "num_heads": num_heads,
        "num_encoder_layers": layers,
        "num_decoder_layers": layers,
    }


def _encoder(d_model: int, layers: int) -> dict[str, Any]:
    """BERT's proportions: heads of 64, feed-forward of 4 widths."""
    return {**_stacks(d_model, 4 * d_model, 64, d_model // 64, layers), "num_decoder_layers": 0}


def _decoder(d_model: int, layers: int) -> dict[str, Any]:
    return {**_stacks(d_model, 4 * d_model, 64, d_model // 64, layers), "num_encoder_layers": 0}


_V10 = {"feed_forward": "relu", "tie_embeddings": True}
_V11 = {"feed_forward": "gated_gelu", "tie_embeddings": False}

SIZES: dict[str, dict[str, Any]] = {
    "nano": _stacks(64, 128, 16, 4, 2),
    "demo": {**_stacks(128, 384, 32, 4, 2), **_V11},
    "t5-small": {**_stacks(512, 2048, 64, 8, 6), **_V10},
    "t5-base": {**_stacks(768, 3072, 64, 12, 12), **_V10},
    "t5-large": {**_stacks(1024, 4096, 64, 16, 24), **_V10},
    "t5-3b": {**_stacks(1024, 16384, 128, 32, 24), **_V10},
    "t5-11b": {**_stacks(1024, 65536, 128, 128, 24), **_V10},
    "t5-v1.1-small": {**_stacks(512, 1024, 64, 6, 8), **_V11},
    "t5-v1.1-base": {**_stacks(768, 2048, 64, 12, 12), **_V11},
    "t5-v1.1-large": {**_stacks(1024, 2816, 64, 16, 24), **_V11},
    "t5-v1.1-xl": {**_stacks(2048, 5120, 64, 32, 24), **_V11},
    "t5-v1.1-xxl": {**_stacks(4096, 10240, 64, 64, 24), **_V11},
    "fnet-tiny": _encoder(128, 2),
    "fnet-small": _encoder(512, 8),
    "fnet-base": _encoder(768, 12),
    "fnet-large": _encoder(1024, 24),
    "bert-base": _encoder(768, 12),
    "bert-large": _encoder(1024, 24),
    "gpt2": _decoder(768, 12),
    "gpt2-medium": _decoder(1024, 24),
    "gpt2-large": _decoder(1280, 36),
    "gpt2-xl": _decoder(1600, 48),
}

_BERT_LIKE = {
    "norm": "layer",
    "norm_position": "post",
    "norm_eps": 1e-12,
    "bias": True,
    "position": "learned",
    "scale_scores": True,
    "init_std": 0.02,
    "tie_embeddings": True,
}

# The choices of an architecture's block, if it is not T5's. Keys of the recipe override them.
BLOCKS: dict[str, dict[str, Any]] = {
    "bert": {**_BERT_LIKE, "feed_forward": "gelu", "type_vocab_size": 2, "mixing": "attention"},
    "fnet": {
        **_BERT_LIKE,
        "feed_forward": "gelu_tanh",
        "type_vocab_size": 4,
        "fourier_norm": "backward",
        "project_input": True,
    },
    "gpt2": {
        **_BERT_LIKE,
        "norm_position": "pre",
        "norm_eps": 1e-5,
        "feed_forward": "gelu_tanh",
        "max_length": 1024,
    },
}


def shape_of(section: Mapping[str, Any]) -> str:
    """Layers x width and heads of a full `model` section, for tables: "12 + 12 x 768, 12 heads", "16 x 1024, 16 heads".

    A `num_heads` of None leaves the heads out.
    """
    layers = [section[f"num_{stack}_layers"] for stack in ("encoder", "decoder") if section[f"num_{stack}_layers"]]
    heads = "" if section["num_heads"] is None else f", {section['num_heads']} heads"
    return f"{' + '.join(map(str, layers))} x {section['d_model']}{heads}"


def expand_size(section: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's `model` section with the dimensions of its `size` and the block of its `architecture`. Keys of the recipe
    override both.

    Raises ValueError for an unknown size.
    """
    size = section.get("size", "custom")
    if size != "custom" and size not in SIZES:
        raise ValueError(f"model.size is {size!r}: choose one of {', '.join(SIZES)}, or give every dimension")
    architecture = section.get("architecture", "fnet_t5")
    values = {**SIZES.get(size, {}), **BLOCKS.get(architecture, {})}
    if architecture in DECODER_ONLY:
        values["num_encoder_layers"] = 0
    if architecture in ENCODER_ONLY:
        values["num_decoder_layers"] = 0
    return {**values, **section}
