"""The heads of an encoder-only model: any number of them, computed from its last layer.

mlm and order are the pretraining heads of BERT and FNet (order: whether the two segments are in their original order;
arXiv:2105.03824, section 4.1). sequence, token and answer are for classification, tagging and extractive question answering
(arXiv:1810.04805, figure 4).

Shapes: B batch, N tokens, P predicted positions, D model width, V padded vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.layers.factory import LayerFactory
from models.layers.feed_forward import ACTIVATIONS, dropout
from models.layers.norm import build_norm


class EncoderOutputs(NamedTuple):
    """One field per head, None for the heads that the model does not have. Logits are fp32."""

    hidden: Tensor  # (B, N, D)
    pooled: Tensor | None = None  # (B, D)
    mlm: Tensor | None = None  # (B, P or N, V); before the projection to the vocabulary: (B, P or N, D)
    order: Tensor | None = None  # (B, 2)
    sequence: Tensor | None = None  # (B, num_labels)
    token: Tensor | None = None  # (B, N, num_token_labels)
    answer: Tensor | None = None  # (B, N, 2): start and end
    mlm_bias: Tensor | None = None  # (V / t,)


class MaskedTokenHead(nn.Module):
    """Linear, activation, norm. The projection to the vocabulary is another piece, because it may be tied."""

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        block = config.encoder_block_config
        self.transform = factory.linear(config.d_model, config.d_model, config.std(config.d_model**-0.5), bias=True)
        self.activation = ACTIVATIONS[block.feed_forward]
        self.norm = build_norm(block.norm, config.d_model, block.norm_eps)
        self.bias = factory.vocab_bias(config.padded_vocab_size)

    def forward(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """hidden (B, N, D), positions (B, P) int64 to predict, P = 0 for all; returns (B, P or N, D)."""
        if positions.shape[1]:
            hidden = torch.take_along_dim(hidden, positions.unsqueeze(-1), dim=1)
        return self.norm(self.activation(self.transform(hidden)))


class Heads(nn.Module):
    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        heads, d_model = config.heads, config.d_model
        std = config.std(d_model**-0.5)
        self.dropout = config.dropout

        def linear(name: str, out_features: int) -> nn.Module | None:
            return factory.linear(d_model, out_features, std, bias=True) if name in heads else None

        pools = not heads or "order" in heads or "sequence" in heads
        self.pooler = factory.linear(d_model, d_model, std, bias=True) if pools else None
        self.mlm = MaskedTokenHead(config, factory) if "mlm" in heads else None
        self.order = linear("order", 2)
        self.sequence = linear("sequence", config.num_labels)
        self.token = linear("token", config.num_token_labels)
        self.answer = linear("answer", 2)

    def forward(self, hidden: Tensor, mlm_positions: Tensor) -> EncoderOutputs:
        """hidden (B, N, D), mlm_positions (B, P) int64; dropout only before the two classifiers, as in BERT."""
        pooled = None if self.pooler is None else torch.tanh(self.pooler(hidden[:, 0]))
        dropped = hidden if self.token is None else dropout(hidden, self.dropout, self.training)

        def run(head: nn.Module | None, x: Tensor | None) -> Tensor | None:
            return None if head is None or x is None else head(x).float()

        return EncoderOutputs(
            hidden=hidden,
            pooled=pooled,
            mlm=None if self.mlm is None else self.mlm(hidden, mlm_positions),
            order=run(self.order, pooled),
            sequence=None if pooled is None else run(self.sequence, dropout(pooled, self.dropout, self.training)),
            token=run(self.token, dropped),
            answer=run(self.answer, hidden),
            mlm_bias=None if self.mlm is None else self.mlm.bias,
        )
