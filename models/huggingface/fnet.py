"""FNet in the names of `transformers` (the format of google/fnet-base and fnet-large), alone or as the encoder of a hybrid."""

from __future__ import annotations

from typing import Any

from models.config import ModelConfig
from models.huggingface import bert
from models.huggingface.mapping import Entry, linear, require


def entries(config: ModelConfig) -> list[Entry]:
    bert.check(config)
    require(config, mixing="fourier", num_attention_layers=0)
    prefix = "fnet." if config.heads else ""
    return encoder_entries(config, prefix) + bert.head_entries(config, prefix)


def encoder_entries(config: ModelConfig, prefix: str = "fnet.") -> list[Entry]:
    """Everything but the heads: also the encoder of a hybrid with `encoder_block` fnet."""
    result = bert.embedding_entries(config, prefix)
    result += linear(f"{prefix}embeddings.projection", "encoder.input.projection")
    for layer in range(config.num_encoder_layers):
        ours, theirs = f"encoder.layers.{layer}", f"{prefix}encoder.layer.{layer}"
        result += linear(f"{theirs}.fourier.output.LayerNorm", f"{ours}.mixing_norm")
        result += bert.feed_forward_entries(theirs, ours)
    return result


def their_config(config: ModelConfig) -> dict[str, Any]:
    entries(config)
    return {
        **bert.common_config(config),
        "model_type": "fnet",
        "architectures": [bert.class_name(config, "FNet")],
        "hidden_act": "gelu_new",
        "use_tpu_fourier_optimizations": False,
    }


def our_config(theirs: dict[str, Any]) -> ModelConfig:
    if theirs.get("hidden_act", "gelu_new") != "gelu_new":
        raise ValueError(f"hidden_act is {theirs['hidden_act']!r}: only FNet's gelu_new is supported")
    # FNet has no attention; 64 is the width of BERT's heads, for layers that are given attention later
    width = theirs["hidden_size"]
    return bert.from_common(theirs, "fnet", width // 64 if width % 64 == 0 else 1)
