"""Bidirectional self-attention with the interface of a mixing sublayer.

Shapes: B batch, N tokens, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.layers.attention import Attention
from models.layers.attention_bias import ScoreBias
from models.layers.factory import LayerFactory


class AttentionMixing(nn.Module):
    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        self.attention = Attention(config, config.encoder_block_config, factory)
        self.rotary = config.encoder_block_config.position == "rope"

    def forward(self, hidden: Tensor, mask: Tensor, score_bias: ScoreBias) -> Tensor:
        """hidden (B, N, D), mask (B, N), score_bias from that mask; returns (B, N, D)."""
        num_tokens = hidden.shape[1]
        positions = torch.arange(num_tokens, device=hidden.device)[None] if self.rotary else None
        keys, values = self.attention.keys_values(hidden, positions)
        return self.attention(hidden, keys, values, score_bias, positions)
