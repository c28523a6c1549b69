"""The feed-forward sublayer: ReLU (T5 v1.0) or GELU-gated (T5 v1.1; Shazeer 2020, arXiv:2002.05202)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.config import ModelConfig
from models.layers import LayerFactory


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        std = config.d_model**-0.5
        self.gate: nn.Module | None = None
        if config.feed_forward == "gated_gelu":
            self.gate = factory.column_linear(config.d_model, config.d_ff, std)
        self.up = factory.column_linear(config.d_model, config.d_ff, std)
        self.down = factory.row_linear(config.d_ff, config.d_model, config.d_ff**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, D) → (B, N, D)."""
        up = self.up(x)
        # tanh: the approximation that T5 v1.1 was trained with
        inner = F.relu(up) if self.gate is None else F.gelu(self.gate(x), approximate="tanh") * up
        return self.down(inner)
