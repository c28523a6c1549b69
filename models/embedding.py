"""Token embedding at the input of both stacks, and the output head, tied to it or of its own."""

from __future__ import annotations

from torch import Tensor, nn

from models.config import ModelConfig
from models.layers import LayerFactory


class TokenEmbedding(nn.Module):
    """One table for encoder and decoder inputs, and for the logits where the head is tied to it."""

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        # T5's N(0, 1); the tied head scales its input by d_model**-0.5 in return
        self.tokens = factory.vocab_embedding(config.padded_vocab_size, config.d_model, 1.0)

    @property
    def weight(self) -> Tensor:
        """(V / t, D)."""
        return self.tokens.get_parameter("weight")

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, N) int64 → (B, N, D)."""
        return self.tokens(ids)


class OutputHead(nn.Module):
    """The untied projection to the vocabulary."""

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        # T5 starts this at N(0, 1) too, which makes the first losses enormous; d_model**-0.5 gives logits of unit variance
        self.projection = factory.column_linear(config.d_model, config.padded_vocab_size, config.d_model**-0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (B, M, D) → fp32 logits (B, M, V / t)."""
        return self.projection(hidden).float()
