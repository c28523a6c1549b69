"""One decoder layer: causal self-attention, cross-attention to the encoder, feed-forward; pre-norm with residuals, as in T5.

Shapes: B batch, M decoder tokens, N encoder tokens, D model width, S bias tables, H heads on this rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.attention import Attention, causal_bias, padding_bias
from models.config import ModelConfig
from models.feed_forward import FeedForward
from models.layers import LayerFactory
from models.norm import RMSNorm
from models.position import relative_bias


@dataclass
class LayerCache:
    """What one decoder layer remembers while generating: its own keys and values so far, and those of the encoder."""

    self_keys_values: tuple[Tensor, Tensor] | None = None
    cross_keys_values: tuple[Tensor, Tensor] | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.self_keys_values is not None:
            keys = torch.cat([self.self_keys_values[0], keys], dim=2)
            values = torch.cat([self.self_keys_values[1], values], dim=2)
        self.self_keys_values = keys, values
        return keys, values


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        self.max_distance = config.max_distance
        self.self_attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.self_attention = Attention(config, factory)
        self.cross_attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.cross_attention = Attention(config, factory)
        self.feed_forward_norm = RMSNorm(config.d_model, config.norm_eps)
        self.feed_forward = FeedForward(config, factory)

    def forward(
        self, hidden: Tensor, encoder: Tensor, encoder_mask: Tensor, bias_tables: Tensor, cache: LayerCache | None = None
    ) -> Tensor:
        """hidden (B, M, D), encoder (B, N, D), encoder_mask (B, N), bias_tables (S, num_buckets, H); returns (B, M, D).

        With a cache, `hidden` holds only the new positions.
        """
        x = self.self_attention_norm(hidden)
        keys, values = self.self_attention.keys_values(x)
        if cache is not None:
            keys, values = cache.extend(keys, values)
        num_queries, num_keys = x.shape[1], keys.shape[2]
        bias = relative_bias(bias_tables[-1], num_queries, num_keys, bidirectional=False, max_distance=self.max_distance).to(
            x.dtype
        )
        bias = bias + causal_bias(num_queries, num_keys, x.dtype, x.device)
        hidden = hidden + self.self_attention(x, keys, values, bias)

        x = self.cross_attention_norm(hidden)
        keys, values = self._encoder_keys_values(encoder, cache)
        # no relative bias between the two stacks, as in T5
        hidden = hidden + self.cross_attention(x, keys, values, padding_bias(encoder_mask, x.dtype))
        return hidden + self.feed_forward(self.feed_forward_norm(hidden))

    def _encoder_keys_values(self, encoder: Tensor, cache: LayerCache | None) -> tuple[Tensor, Tensor]:
        if cache is None:
            return self.cross_attention.keys_values(encoder)
        if cache.cross_keys_values is None:
            cache.cross_keys_values = self.cross_attention.keys_values(encoder)
        return cache.cross_keys_values
