"""One encoder layer: a mixing sublayer (Fourier, or attention) and a feed-forward sublayer, both pre-norm with a residual.

    x = x + mix(norm(x));  x = x + feed_forward(norm(x))

Shapes: B batch, N encoder tokens, D model width, S bias tables, H heads on this rank.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.attention import Attention, padding_bias
from models.config import ModelConfig
from models.feed_forward import FeedForward
from models.layers import LayerFactory
from models.mixing import MIXERS
from models.norm import RMSNorm
from models.position import relative_bias


class SelfAttentionMixing(nn.Module):
    """Bidirectional self-attention with the interface of a mixing sublayer, plus the bias table it shares."""

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        self.max_distance = config.max_distance
        self.attention = Attention(config, factory)

    def forward(self, hidden: Tensor, mask: Tensor, table: Tensor) -> Tensor:
        keys, values = self.attention.keys_values(hidden)
        num_tokens = hidden.shape[1]
        bias = relative_bias(table, num_tokens, num_tokens, bidirectional=True, max_distance=self.max_distance)
        return self.attention(hidden, keys, values, bias.to(hidden.dtype) + padding_bias(mask, hidden.dtype))


class EncoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, factory: LayerFactory, layer: int) -> None:
        super().__init__()
        self.attends = config.encoder_layer_attends(layer)
        self.mixing_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixing = SelfAttentionMixing(config, factory) if self.attends else MIXERS[config.mixing]()
        self.feed_forward_norm = RMSNorm(config.d_model, config.norm_eps)
        self.feed_forward = FeedForward(config, factory)

    def forward(self, hidden: Tensor, mask: Tensor, bias_tables: Tensor) -> Tensor:
        """hidden (B, N, D), mask (B, N) with 1 at real tokens, bias_tables (S, num_buckets, H); returns (B, N, D)."""
        x = self.mixing_norm(hidden)
        hidden = hidden + (self.mixing(x, mask, bias_tables[0]) if self.attends else self.mixing(x, mask))
        return hidden + self.feed_forward(self.feed_forward_norm(hidden))
