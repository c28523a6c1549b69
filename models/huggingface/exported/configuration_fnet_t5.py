"""Configuration of an exported FNet-T5 hybrid. This file is stored with the weights and imports transformers only."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class FNetT5Config(PretrainedConfig):
    """`fnet_t5` holds the model's own settings under the names of the FNet-T5 project (its `models/config.py`)."""

    model_type = "fnet_t5"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012
    attribute_map = {"hidden_size": "d_model", "num_attention_heads": "num_heads"}  # noqa: RUF012

    def __init__(
        self,
        vocab_size: int = 0,
        d_model: int = 64,
        num_heads: int = 4,
        encoder_length: int = 512,
        fnet_t5: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.vocab_size, self.d_model, self.num_heads = vocab_size, d_model, num_heads
        self.encoder_length = encoder_length
        self.fnet_t5 = fnet_t5 or {}
        self.num_hidden_layers = self.fnet_t5.get("num_decoder_layers", 0)  # read by transformers to make caches
        options.setdefault("is_encoder_decoder", True)
        super().__init__(**options)
