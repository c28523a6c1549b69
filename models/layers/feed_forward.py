"""The feed-forward sublayer: ReLU (T5 v1.0), GELU (BERT; with the tanh approximation in GPT-2 and FNet), or gated.

Gated: `activation(gate(x)) * up(x)`, with GELU in T5 v1.1 and SiLU in SwiGLU (Shazeer 2020, arXiv:2002.05202).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from models.config import BlockConfig, FeedForwardKind, ModelConfig
from models.layers.factory import LayerFactory

# gated_gelu: tanh is the approximation that T5 v1.1 was trained with
ACTIVATIONS: dict[FeedForwardKind, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gated_gelu": partial(F.gelu, approximate="tanh"),
    "swiglu": F.silu,
}


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig, block: BlockConfig, factory: LayerFactory) -> None:
        super().__init__()
        std = config.std(config.d_model**-0.5)
        self.activation = ACTIVATIONS[block.feed_forward]
        self.dropout = config.dropout if config.has_inner_dropout else 0.0
        self.tensor_parallel_rng = factory.tensor_parallel_rng
        self.gate: nn.Module | None = None
        if block.gated:
            self.gate = factory.column_linear(config.d_model, block.d_ff, std, block.bias)
        self.up = factory.column_linear(config.d_model, block.d_ff, std, block.bias)
        self.down = factory.row_linear(block.d_ff, config.d_model, config.std(block.d_ff**-0.5, residual=True), block.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, D) → (B, N, D)."""
        inner = self.activation(self.up(x)) if self.gate is None else self.activation(self.gate(x)) * self.up(x)
        if self.training and self.dropout:
            with self.tensor_parallel_rng():
                inner = dropout(inner, self.dropout, self.training)
        return self.down(inner)


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """`F.dropout`, skipped if it is off: pretraining has none, and the call would cost time."""
    return F.dropout(x, probability, training) if training and probability else x
