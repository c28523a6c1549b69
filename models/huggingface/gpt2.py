"""GPT-2 in the names of `transformers`' GPT2LMHeadModel: query, key and value in one matrix, matrices as (in, out)."""

from __future__ import annotations

from typing import Any

from models.config import ModelConfig
from models.huggingface.mapping import Entry, entry, linear, require
from models.sizes import BLOCKS


def entries(config: ModelConfig) -> list[Entry]:
    _check(config)
    result = [
        entry("transformer.wte.weight", "embedding.tokens.weight", vocabulary=True, copies=["lm_head.weight"]),
        entry("transformer.wpe.weight", "decoder.input.positions.weight"),
        *linear("transformer.ln_f", "decoder.final_norm"),
    ]
    for layer in range(config.num_decoder_layers):
        ours, theirs = f"decoder.layers.{layer}", f"transformer.h.{layer}"
        matrices = [f"{ours}.self_attention.{name}" for name in ("query", "key", "value")]
        result += linear(f"{theirs}.ln_1", f"{ours}.self_attention_norm")
        result += _conv1d(f"{theirs}.attn.c_attn", *matrices)
        result += _conv1d(f"{theirs}.attn.c_proj", f"{ours}.self_attention.output")
        result += linear(f"{theirs}.ln_2", f"{ours}.feed_forward_norm")
        result += _conv1d(f"{theirs}.mlp.c_fc", f"{ours}.feed_forward.up")
        result += _conv1d(f"{theirs}.mlp.c_proj", f"{ours}.feed_forward.down")
    return result


def _conv1d(theirs: str, *ours: str) -> list[Entry]:
    weights, biases = [f"{name}.weight" for name in ours], [f"{name}.bias" for name in ours]
    return [entry(f"{theirs}.weight", *weights, transposed=True), entry(f"{theirs}.bias", *biases)]


def their_config(config: ModelConfig) -> dict[str, Any]:
    _check(config)
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.max_length,
        "n_embd": config.d_model,
        "n_layer": config.num_decoder_layers,
        "n_head": config.num_heads,
        "n_inner": config.d_ff,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.init_std,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "tie_word_embeddings": True,
    }


def our_config(theirs: dict[str, Any]) -> ModelConfig:
    block = dict(BLOCKS["gpt2"])
    activation = theirs.get("activation_function", "gelu_new")
    if activation not in ("gelu_new", "gelu_pytorch_tanh"):
        raise ValueError(f"activation_function is {activation!r}: only GPT-2's gelu_new is supported")
    block.update(
        norm_eps=theirs.get("layer_norm_epsilon", 1e-5),
        max_length=theirs.get("n_positions", 1024),
        init_std=theirs.get("initializer_range", 0.02),
    )
    return ModelConfig(
        architecture="gpt2",
        vocab_size=theirs["vocab_size"],
        d_model=theirs["n_embd"],
        d_kv=theirs["n_embd"] // theirs["n_head"],
        num_heads=theirs["n_head"],
        d_ff=theirs.get("n_inner") or 4 * theirs["n_embd"],
        num_encoder_layers=0,
        num_decoder_layers=theirs["n_layer"],
        dropout=theirs.get("resid_pdrop", 0.1),
        **block,
    )


def _check(config: ModelConfig) -> None:
    block = {name: value for name, value in BLOCKS["gpt2"].items() if name not in ("norm_eps", "max_length", "init_std")}
    require(config, **block, decoder_mixing="attention")
