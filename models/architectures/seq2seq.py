"""The encoder-decoder on one process: the training pass, and encoding once with decoding step by step.

Shapes: B batch, N encoder tokens, M decoder tokens, D model width, V padded vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.architectures.decoder import LayerCache
from models.architectures.pieces import Inputs, Seq2SeqState
from models.architectures.single_process import SingleProcessModel
from models.config import ModelConfig
from models.layers.attention_bias import CROSS_ATTENTION, decoder_bias_rule
from models.layers.embedding import StackInput


@dataclass
class Encoded:
    """An encoded prefix, and the caches of the decoder so far."""

    state: Seq2SeqState
    caches: list[LayerCache] = field(default_factory=list)
    num_decoded: int = 0

    def reorder(self, rows: Tensor, *, same_sample: bool = False) -> None:
        """Keep the given rows (R,) of the batch, in that order; a row may be repeated.

        `same_sample`: every row is replaced by a row of the same sample (as with beams), so the encoder's side is unchanged.
        """
        if not same_sample:
            self.state = self.state._replace(
                encoder_hidden=self.state.encoder_hidden[rows],
                decoder_hidden=self.state.decoder_hidden[rows],
                encoder_mask=self.state.encoder_mask[rows],
            )
        for cache in self.caches:
            cache.reorder(rows, cross=not same_sample)


class Seq2Seq(SingleProcessModel):
    def __init__(self, config: ModelConfig) -> None:
        if config.is_decoder_only or config.is_encoder_only:
            raise ValueError(f"model.architecture is {config.architecture!r}: this is no encoder-decoder, use build_model")
        super().__init__(config)
        self._after_layers = self.piece_after("decoder.layers.")
        self._self_bias_rule = decoder_bias_rule(config)

    def forward(self, inputs: Inputs) -> Tensor:
        """fp32 logits (B, M, V)."""
        return self.run_pieces(inputs)

    def encode(self, encoder_ids: Tensor, encoder_mask: Tensor) -> Encoded:
        """Run the encoder once on ids (B, N); `decode` may then be called any number of times."""
        state = self.run_pieces(Inputs(encoder_ids, encoder_mask, encoder_ids[:, :0]), stop="decoder.layers.0")
        return Encoded(state, [LayerCache() for _ in range(self.config.num_decoder_layers)])

    def decode(self, decoder_ids: Tensor, encoded: Encoded) -> Tensor:
        """Logits (B, M, V) of M further decoder tokens; `encoded` holds the earlier ones."""
        state, past, num_new = encoded.state, encoded.num_decoded, decoder_ids.shape[1]
        start = self.get_submodule("decoder.input")
        assert isinstance(start, StackInput)
        if start.positions is not None:
            start.positions.check(past + num_new)
        positions = torch.arange(past, past + num_new, device=decoder_ids.device)[None]
        hidden = start(self.get_submodule("embedding")(decoder_ids), positions=positions)  # (B, M, D)
        self_bias = None
        if self._self_bias_rule is not None:
            self_bias = self._self_bias_rule.make(state.bias_tables, None, num_new, past + num_new, hidden.dtype)
        num_keys = state.encoder_mask.shape[1]
        cross_bias = CROSS_ATTENTION.make(state.bias_tables, state.encoder_mask, num_new, num_keys, hidden.dtype)
        for index, cache in enumerate(encoded.caches):
            layer = self.get_submodule(f"decoder.layers.{index}")
            hidden = layer(hidden, self_bias, None, state.encoder_hidden, cross_bias, cache)
        encoded.num_decoded = past + num_new
        output: Any = state._replace(decoder_hidden=hidden)
        return self.run_pieces(output, start=self._after_layers)
