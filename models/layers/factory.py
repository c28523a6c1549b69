"""The layer factory: the layers that a tensor-parallel library may replace, and their `torch.nn` versions.

Every piece of the model takes its linear layers and its embedding from a factory. The pipeline passes a factory whose layers
are sharded (`pipeline/distributed/tensor_parallel.py`), so the model is written once.

Shapes: B batch, M decoder tokens, D model width, V padded vocabulary, t tensor-parallel degree (1 here).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers.initialization import constant_parameter, mark_constant, mark_normal, normal_parameter


class LayerFactory(Protocol):
    """Makes layers. `std` is the standard deviation of the normal distribution of the initial weights."""

    tensor_parallel: int

    def column_linear(self, in_features: int, out_features: int, std: float, bias: bool = False) -> nn.Module:
        """(…, in) replicated → (…, out / t) sharded."""
        ...

    def row_linear(self, in_features: int, out_features: int, std: float, bias: bool = False) -> nn.Module:
        """(…, in / t) sharded → (…, out) replicated; the bias is added once, after the sum over shards."""
        ...

    def linear(self, in_features: int, out_features: int, std: float, bias: bool = False) -> nn.Module:
        """(…, in) → (…, out), replicated on every rank: for small layers between sharded ones."""
        ...

    def tensor_parallel_rng(self) -> AbstractContextManager[None]:
        """A context for dropout of a sharded tensor, in which each rank draws its own mask."""
        ...

    def vocab_embedding(self, num_embeddings: int, dim: int, std: float) -> nn.Module:
        """ids (B, N) → (B, N, D) replicated; the table `weight` is sharded over the vocabulary."""
        ...

    def head_table(self, rows: int, num_heads: int, std: float) -> nn.Parameter:
        """A (rows, heads / t) table, sharded over heads."""
        ...

    def vocab_bias(self, num_embeddings: int) -> nn.Parameter:
        """A bias (V / t,) that starts at 0, sharded over the vocabulary."""
        ...

    def tied_logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """hidden (B, M, D), the embedding's table (V / t, D) and a bias (V / t,) → fp32 logits (B, M, V / t)."""
        ...

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits (B, M, V / t), targets (B, M) → negative log-likelihood in nats (B, M), fp32."""
        ...


class TorchLayers:
    """Unsharded layers from `torch.nn`."""

    tensor_parallel = 1

    def column_linear(self, in_features: int, out_features: int, std: float, bias: bool = False) -> nn.Module:
        return plain_linear(in_features, out_features, std, bias)

    def row_linear(self, in_features: int, out_features: int, std: float, bias: bool = False) -> nn.Module:
        return plain_linear(in_features, out_features, std, bias)

    def linear(self, in_features: int, out_features: int, std: float, bias: bool = False) -> nn.Module:
        return plain_linear(in_features, out_features, std, bias)

    def tensor_parallel_rng(self) -> AbstractContextManager[None]:
        return nullcontext()

    def vocab_embedding(self, num_embeddings: int, dim: int, std: float) -> nn.Module:
        # made on meta, because initialization.py overwrites the values that torch would draw
        embedding = nn.Embedding(num_embeddings, dim, device="meta").to_empty(device=torch.get_default_device())
        mark_normal(embedding.weight, std)
        return embedding

    def head_table(self, rows: int, num_heads: int, std: float) -> nn.Parameter:
        return normal_parameter((rows, num_heads), std)

    def vocab_bias(self, num_embeddings: int) -> nn.Parameter:
        return constant_parameter((num_embeddings,), 0.0)

    def tied_logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(hidden, weight, bias).float()

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
        return losses.view_as(targets)


def plain_linear(in_features: int, out_features: int, std: float, bias: bool) -> nn.Linear:
    """`nn.Linear` whose parameters are marked with their initial distribution."""
    linear = nn.Linear(in_features, out_features, bias=bias, device="meta").to_empty(device=torch.get_default_device())
    mark_normal(linear.weight, std)
    if bias:
        mark_constant(linear.bias, 0.0)
    return linear
