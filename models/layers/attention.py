"""Multi-head attention by `scaled_dot_product_attention`: scores unscaled and with an additive bias (T5), or scaled.

Vaswani et al. 2017 (arXiv:1706.03762); T5: Raffel et al. 2020, section 2.1.
Shapes: B batch, Q queries, K keys, D model width, H heads on this rank, E width of a head (d_kv).
"""

from __future__ import annotations

from contextlib import nullcontext

from torch import Tensor, nn
from torch.nn import functional as F

from models.config import BlockConfig, ModelConfig
from models.layers.attention_bias import ScoreBias
from models.layers.factory import LayerFactory
from models.layers.position import rotate


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, block: BlockConfig, factory: LayerFactory) -> None:
        super().__init__()
        d_model, inner = config.d_model, config.inner_dim
        self.d_kv = config.d_kv
        self.scale = config.d_kv**-0.5 if block.scale_scores else 1.0
        self.rope_base = config.rope_base if block.position == "rope" else None
        self.dropout = config.dropout
        self.tensor_parallel_rng = factory.tensor_parallel_rng
        # T5 puts the 1/sqrt(d_kv) of the scores into the initial query projection (Mesh TensorFlow's convention)
        query_std = d_model**-0.5 if block.scale_scores else (d_model * config.d_kv) ** -0.5
        self.query = factory.column_linear(d_model, inner, config.std(query_std), block.bias)
        self.key = factory.column_linear(d_model, inner, config.std(d_model**-0.5), block.bias)
        self.value = factory.column_linear(d_model, inner, config.std(d_model**-0.5), block.bias)
        self.output = factory.row_linear(inner, d_model, config.std(inner**-0.5, residual=True), block.bias)

    def keys_values(self, source: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, K, E) of a (B, K, D) source; rotary keys are rotated by their positions (B or 1, K)."""
        keys = self._split_heads(self.key(source))
        if self.rope_base is not None and positions is not None:
            keys = rotate(keys, positions, self.rope_base)
        return keys, self._split_heads(self.value(source))

    def forward(
        self, hidden: Tensor, keys: Tensor, values: Tensor, score_bias: ScoreBias, positions: Tensor | None = None
    ) -> Tensor:
        """hidden (B, Q, D), keys and values (B, H, K, E), positions (B or 1, Q) for rotary queries; returns (B, Q, D)."""
        queries = self._split_heads(self.query(hidden))  # (B, H, Q, E)
        if self.rope_base is not None and positions is not None:
            queries = rotate(queries, positions, self.rope_base)
        dropout = self.dropout if self.training else 0.0
        with self.tensor_parallel_rng() if dropout else nullcontext():
            mixed = F.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=score_bias.added,
                is_causal=score_bias.is_causal,
                dropout_p=dropout,
                scale=self.scale,
            )  # (B, H, Q, E)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.d_kv)).transpose(1, 2)
