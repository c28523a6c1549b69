"""The hybrid, for which `transformers` has no class, as a folder with its own modelling code.

The tensors keep their canonical names. `modeling_fnet_t5.py` in the same folder (it imports torch and transformers only) has
modules of these names.
"""

from __future__ import annotations

from typing import Any

import torch

from models.architectures.single_process import SingleProcessModel
from models.config import ModelConfig
from models.huggingface.mapping import Entry, entry, require

_AUTO = {
    "AutoConfig": "configuration_fnet_t5.FNetT5Config",
    "AutoModel": "modeling_fnet_t5.FNetT5Model",
    "AutoModelForPreTraining": "modeling_fnet_t5.FNetT5ForConditionalGeneration",
    "AutoModelForSeq2SeqLM": "modeling_fnet_t5.FNetT5ForConditionalGeneration",
    "AutoModelForTextEncoding": "modeling_fnet_t5.FNetT5EncoderModel",
}
_PIPELINES = {
    "text-generation": {
        "impl": "pipeline_fnet_t5.FNetT5TextGenerationPipeline",
        "pt": ["AutoModelForSeq2SeqLM"],
        "type": "text",
    }
}
_SETTINGS = (
    "d_ff",
    "d_kv",
    "num_encoder_layers",
    "num_decoder_layers",
    "mixing",
    "num_attention_layers",
    "attention_layout",
    "feed_forward",
    "num_buckets",
    "max_distance",
    "norm_eps",
    "encoder_d_ff",
    "fourier_norm",
    "dropout",
    "encoder_block",
    "init_std",
)
"""The fields of ModelConfig that the exported code reads, under the same names (`FNetT5Config`)."""


def entries(config: ModelConfig) -> list[Entry]:
    check(config)
    with torch.device("meta"):
        names = SingleProcessModel(config).state_dict()
    return [entry(name, name, vocabulary=name in ("embedding.tokens.weight", "head.projection.weight")) for name in names]


def their_config(config: ModelConfig) -> dict[str, Any]:
    check(config)
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "num_heads": config.num_heads,
        "model_type": "fnet_t5",
        "architectures": ["FNetT5ForConditionalGeneration"],
        "auto_map": _AUTO,
        "custom_pipelines": _PIPELINES,
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.tie_embeddings and not config.init_std,
        "fnet_t5": {**{name: getattr(config, name) for name in _SETTINGS}, "num_positions": config.max_length},
    }


def check(config: ModelConfig) -> None:
    """Raise ValueError, naming the field, for a choice that the exported modelling file does not support."""
    require(config, architecture="fnet_t5", decoder_mixing="attention", mixing=("fourier", "hartley", "identity"))
    require(config, norm="rms", norm_position="pre", position="relative", bias=False)
    require(config, mix_within_documents=False, scale_scores=False, encoder_positions="default")
    if config.encoder_block == "fnet":
        require(config, mixing="fourier", num_attention_layers=0)
