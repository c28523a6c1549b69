"""Token embedding, input of a stack (positions, types, norm, projection), and untied output head."""

from __future__ import annotations

from torch import Tensor, nn

from models.config import BlockConfig, ModelConfig
from models.layers.factory import LayerFactory
from models.layers.feed_forward import dropout
from models.layers.initialization import normal_parameter
from models.layers.norm import build_norm
from models.layers.position import LearnedPositions


class TokenEmbedding(nn.Module):
    """One table for the inputs of all stacks, and for the logits if the head is tied to it."""

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        # T5's N(0, 1); the tied head therefore multiplies its input by d_model**-0.5
        self.tokens = factory.vocab_embedding(config.padded_vocab_size, config.d_model, config.std(1.0))

    @property
    def weight(self) -> Tensor:
        """(V / t, D)."""
        return self.tokens.get_parameter("weight")

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, N) int64 → (B, N, D)."""
        return self.tokens(ids)


class StackInput(nn.Module):
    """Between the token vectors and the first layer: positions, segment types, norm, projection, dropout, as `block` says.

    T5 has the dropout only. BERT and FNet normalise here because a post-norm layer expects a normalised input.
    """

    def __init__(self, config: ModelConfig, block: BlockConfig, factory: LayerFactory) -> None:
        super().__init__()
        d_model = config.d_model
        self.dropout = config.dropout
        self.positions = LearnedPositions(config) if block.adds_positions else None
        self.types: nn.Parameter | None = None
        if block.type_vocab_size:
            self.types = normal_parameter((block.type_vocab_size, d_model), config.std(d_model**-0.5))
        self.norm = None if block.pre_norm else build_norm(block.norm, d_model, block.norm_eps)
        self.projection: nn.Module | None = None
        if block.project_input:
            self.projection = factory.linear(d_model, d_model, config.std(d_model**-0.5), block.bias)

    def forward(self, embedded: Tensor, type_ids: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """embedded (B, N, D), type_ids (B, N) int64 or None for type 0, positions (B, N) int64 or None for 0 … N-1.

        Returns (B, N, D). Raises ValueError for more tokens than model.max_length if positions are learnt.
        """
        x = embedded
        if self.positions is not None:
            x = x + (self.positions(x.shape[1]) if positions is None else self.positions.at(positions))
        if self.types is not None:
            x = x + (self.types[0] if type_ids is None else self.types[type_ids])
        if self.norm is not None:
            x = self.norm(x)
        if self.projection is not None:
            x = self.projection(x)
        return dropout(x, self.dropout, self.training)


class OutputHead(nn.Module):
    """The untied projection to the vocabulary."""

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        # T5 uses N(0, 1) here too, which makes the first losses very large; d_model**-0.5 gives logits of unit variance
        std = config.std(config.d_model**-0.5)
        self.projection = factory.column_linear(config.d_model, config.padded_vocab_size, std)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (B, M, D) → fp32 logits (B, M, V / t)."""
        return self.projection(hidden).float()
