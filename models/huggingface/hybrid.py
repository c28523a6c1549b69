"""The hybrid, for which `transformers` has no class, as a folder with its own modelling code.

The tensors keep their canonical names. `modeling_fnet_t5.py` in the same folder (it imports torch and transformers only) has
modules of these names.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from models.architectures.single_process import SingleProcessModel
from models.config import ModelConfig
from models.huggingface.mapping import Entry, entry, require

_AUTO = {
    "AutoConfig": "configuration_fnet_t5.FNetT5Config",
    "AutoModelForSeq2SeqLM": "modeling_fnet_t5.FNetT5ForConditionalGeneration",
}


def entries(config: ModelConfig) -> list[Entry]:
    check(config)
    with torch.device("meta"):
        names = SingleProcessModel(config).state_dict()
    return [entry(name, name, vocabulary=name in ("embedding.tokens.weight", "head.projection.weight")) for name in names]


def their_config(config: ModelConfig) -> dict[str, Any]:
    check(config)
    ours = asdict(config)
    del ours["encoder_positions"]  # always the default here, see `check`
    shared = {"vocab_size": ours.pop("vocab_size"), "d_model": ours.pop("d_model"), "num_heads": ours.pop("num_heads")}
    return {
        **shared,
        "model_type": "fnet_t5",
        "architectures": ["FNetT5ForConditionalGeneration"],
        "auto_map": _AUTO,
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.tie_embeddings,
        "fnet_t5": ours,
    }


def check(config: ModelConfig) -> None:
    """Raise ValueError, naming the field, for a choice that the exported modelling file does not support."""
    require(config, architecture="fnet_t5", decoder_mixing="attention", mixing=("fourier", "hartley", "identity"))
    require(config, norm="rms", norm_position="pre", position="relative", bias=False)
    require(config, mix_within_documents=False, scale_scores=False, encoder_positions="default")
    if config.encoder_block == "fnet":
        require(config, mixing="fourier", num_attention_layers=0)
