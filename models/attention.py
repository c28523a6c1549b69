"""Multi-head attention as in T5: unscaled scores, additive relative bias, no biases in the projections.

Shapes: B batch, Q queries, K keys, D model width, H heads on this rank, E width of a head (d_kv).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import ModelConfig
from models.layers import LayerFactory


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        d_model, inner = config.d_model, config.inner_dim
        self.d_kv = config.d_kv
        # T5 folds the 1/sqrt(d_kv) of the scores into the initial query projection (Mesh TensorFlow's convention).
        self.query = factory.column_linear(d_model, inner, (d_model * config.d_kv) ** -0.5)
        self.key = factory.column_linear(d_model, inner, d_model**-0.5)
        self.value = factory.column_linear(d_model, inner, d_model**-0.5)
        self.output = factory.row_linear(inner, d_model, inner**-0.5)

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, K, E) of a (B, K, D) source."""
        return self._split_heads(self.key(source)), self._split_heads(self.value(source))

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, score_bias: Tensor | None) -> Tensor:
        """hidden (B, Q, D), keys and values (B, H, K, E), score_bias broadcastable to (B, H, Q, K); returns (B, Q, D)."""
        queries = self._split_heads(self.query(hidden))  # (B, H, Q, E)
        bias = None if score_bias is None else score_bias.to(queries.dtype)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=1.0)  # (B, H, Q, E)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.d_kv)).transpose(1, 2)


def padding_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, N) integer mask → (B, 1, 1, N) additive bias.

    The lowest finite number rather than -inf: a row without any real token then attends evenly instead of giving NaN.
    """
    return (1 - mask)[:, None, None, :].to(dtype) * torch.finfo(dtype).min


def causal_bias(num_queries: int, num_keys: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(Q, K) additive bias that hides later keys from each query; the last query stands at the last key's position."""
    hidden = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).triu(num_keys - num_queries + 1)
    return torch.zeros(num_queries, num_keys, dtype=dtype, device=device).masked_fill(hidden, torch.finfo(dtype).min)
