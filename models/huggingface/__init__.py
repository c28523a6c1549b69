"""Weights and configurations in the names and layout of Hugging Face `transformers`. Dictionaries only: no files, and no import
of transformers."""

from __future__ import annotations

from typing import Any

from models.config import ModelConfig
from models.huggingface import bert, fnet, gpt2, hybrid, t5
from models.huggingface.mapping import Entry


def entries(config: ModelConfig) -> list[Entry]:
    """The map of every tensor of a model. Raises ValueError, naming the field, for a model without a class in transformers."""
    family = {"t5": t5, "gpt2": gpt2, "bert": bert, "fnet": fnet}.get(config.architecture, hybrid)
    return family.entries(config)


def their_config(config: ModelConfig, **tokens: Any) -> dict[str, Any]:
    """The content of `config.json`; `tokens` are ids such as pad_token_id. Raises ValueError as `entries` does."""
    family = {"t5": t5, "gpt2": gpt2, "bert": bert, "fnet": fnet}.get(config.architecture, hybrid)
    return {**family.their_config(config), **tokens}


def our_config(theirs: dict[str, Any]) -> ModelConfig:
    """The configuration of a checkpoint folder by its `config.json`. Raises ValueError for an unknown model type."""
    families = {"t5": t5, "gpt2": gpt2, "bert": bert, "fnet": fnet}
    kind = theirs.get("model_type")
    if kind not in families:
        raise ValueError(f"model_type is {kind!r}: known are {', '.join(families)}")
    return families[kind].our_config(theirs)
