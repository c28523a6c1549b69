"""One encoder layer: a mixing sublayer (Fourier, attention, …) and a feed-forward sublayer, each with a residual.

    pre-norm (T5):          x = x + mix(norm(x));   x = x + feed_forward(norm(x))
    post-norm (BERT, FNet): x = norm(x + mix(x));   x = norm(x + feed_forward(x))

Shapes: B batch, N encoder tokens, D model width.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.config import ModelConfig
from models.layers.attention_bias import ScoreBias
from models.layers.factory import LayerFactory
from models.layers.feed_forward import FeedForward, dropout
from models.layers.norm import build_norm
from models.mixing import build_mixer


class EncoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, factory: LayerFactory, layer: int) -> None:
        super().__init__()
        block = config.encoder_block_config
        self.pre_norm = block.pre_norm
        self.dropout = config.dropout
        # FNet has no dropout after a mixing sublayer that is not attention (f_net/layers.py)
        self.mixing_dropout = config.dropout if config.encoder_layer_attends(layer) else 0.0
        self.mixing_norm = build_norm(block.norm, config.d_model, block.norm_eps)
        self.mixing = build_mixer(config, factory, layer)
        self.feed_forward_norm = build_norm(block.norm, config.d_model, block.norm_eps)
        self.feed_forward = FeedForward(config, block, factory)

    def forward(self, hidden: Tensor, mask: Tensor, score_bias: ScoreBias | None) -> Tensor:
        """hidden (B, N, D), mask (B, N) with 0 at padding, score_bias None if the layer does not attend; returns
        (B, N, D)."""
        x = self.mixing_norm(hidden) if self.pre_norm else hidden
        hidden = hidden + dropout(self.mixing(x, mask, score_bias), self.mixing_dropout, self.training)
        if not self.pre_norm:
            hidden = self.mixing_norm(hidden)
        x = self.feed_forward_norm(hidden) if self.pre_norm else hidden
        hidden = hidden + dropout(self.feed_forward(x), self.dropout, self.training)
        return hidden if self.pre_norm else self.feed_forward_norm(hidden)
