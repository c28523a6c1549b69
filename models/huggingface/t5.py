"""T5 v1.0 and v1.1 in the names of `transformers`' T5ForConditionalGeneration.

Trap: transformers 5 ties the head of a T5 that is made from a configuration even if `tie_word_embeddings` is false; that flag
then only switches the scaling of the logits. A checkpoint with its own `lm_head.weight` unties it, and exports have one.
"""

from __future__ import annotations

from typing import Any

from models.config import ModelConfig
from models.huggingface.mapping import Entry, entry, linear, require

_ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "o"}
_ACTIVATIONS = {"relu": "relu", "gated_gelu": "gated-gelu", "gelu": "gelu", "gelu_tanh": "gelu_new", "swiglu": "gated-silu"}


def entries(config: ModelConfig) -> list[Entry]:
    _check(config)
    tied = config.tie_embeddings
    copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", *(["lm_head.weight"] if tied else [])]
    result = [entry("shared.weight", "embedding.tokens.weight", vocabulary=True, copies=copies)]
    if not tied:
        result.append(entry("lm_head.weight", "head.projection.weight", vocabulary=True))
    for stack in ("encoder", "decoder"):
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        result.append(entry(table, f"relative_bias.{stack}"))
        result += linear(f"{stack}.final_layer_norm", f"{stack}.final_norm", bias=False)
    for layer in range(config.num_encoder_layers):
        ours, theirs = f"encoder.layers.{layer}", f"encoder.block.{layer}.layer"
        result += linear(f"{theirs}.0.layer_norm", f"{ours}.mixing_norm", bias=False)
        result += _attention(f"{theirs}.0.SelfAttention", f"{ours}.mixing.attention")
        result += _feed_forward(config, f"{theirs}.1", ours)
    for layer in range(config.num_decoder_layers):
        result += decoder_layer(config, f"decoder.block.{layer}.layer", f"decoder.layers.{layer}")
    return result


def decoder_layer(config: ModelConfig, theirs: str, ours: str) -> list[Entry]:
    result = []
    for number, (kind, their_kind) in enumerate((("self_attention", "SelfAttention"), ("cross_attention", "EncDecAttention"))):
        result += linear(f"{theirs}.{number}.layer_norm", f"{ours}.{kind}_norm", bias=False)
        result += _attention(f"{theirs}.{number}.{their_kind}", f"{ours}.{kind}")
    return result + _feed_forward(config, f"{theirs}.2", ours)


def _attention(theirs: str, ours: str) -> list[Entry]:
    return [entry(f"{theirs}.{name}.weight", f"{ours}.{matrix}.weight") for matrix, name in _ATTENTION.items()]


def _feed_forward(config: ModelConfig, theirs: str, ours: str) -> list[Entry]:
    names = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if config.decoder_block_config.gated else {"up": "wi", "down": "wo"}
    result = linear(f"{theirs}.layer_norm", f"{ours}.feed_forward_norm", bias=False)
    return result + [
        entry(f"{theirs}.DenseReluDense.{name}.weight", f"{ours}.feed_forward.{matrix}.weight")
        for matrix, name in names.items()
    ]


def their_config(config: ModelConfig) -> dict[str, Any]:
    _check(config)
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": config.d_kv,
        "d_ff": config.d_ff,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
        "layer_norm_epsilon": config.norm_eps,
        "dropout_rate": config.dropout,
        "feed_forward_proj": _ACTIVATIONS[config.feed_forward],
        "tie_word_embeddings": config.tie_embeddings,
        "is_encoder_decoder": True,
    }


def our_config(theirs: dict[str, Any]) -> ModelConfig:
    kinds = {name: kind for kind, name in _ACTIVATIONS.items()}
    kind = theirs.get("feed_forward_proj", "relu")
    if kind not in kinds:
        raise ValueError(f"feed_forward_proj is {kind!r}: known are {', '.join(kinds)}")
    return ModelConfig(
        architecture="t5",
        vocab_size=theirs["vocab_size"],
        d_model=theirs["d_model"],
        d_kv=theirs["d_kv"],
        d_ff=theirs["d_ff"],
        num_encoder_layers=theirs["num_layers"],
        num_decoder_layers=theirs.get("num_decoder_layers") or theirs["num_layers"],
        num_heads=theirs["num_heads"],
        num_buckets=theirs.get("relative_attention_num_buckets", 32),
        max_distance=theirs.get("relative_attention_max_distance", 128),
        norm_eps=theirs.get("layer_norm_epsilon", 1e-6),
        dropout=theirs.get("dropout_rate", 0.1),
        feed_forward=kinds[kind],  # type: ignore[arg-type]
        tie_embeddings=theirs.get("tie_word_embeddings", True),
    )


def _check(config: ModelConfig) -> None:
    require(config, norm="rms", norm_position="pre", bias=False, position="relative", scale_scores=False, init_std=0.0)
    require(config, encoder_positions="default")
    require(config, encoder_d_ff=(0, config.d_ff), decoder_mixing="attention", mix_within_documents=False)
