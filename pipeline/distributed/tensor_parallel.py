"""The tensor-parallel layer factory: Megatron-core's layers, adapted to return one tensor.

Shapes: B batch, M decoder tokens, D model width, V padded vocabulary, t tensor-parallel degree.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
    vocab_parallel_cross_entropy,
)
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers.factory import plain_linear
from models.layers.initialization import constant_parameter, mark_constant, mark_normal, normal_parameter
from pipeline.distributed.rng import tensor_parallel_rng


class _Column(ColumnParallelLinear):
    def forward(self, input_: Tensor, *arguments: Any, **options: Any) -> Tensor:
        return super().forward(input_, *arguments, **options)[0]


class RowParallel(RowParallelLinear):
    """(…, in / t) sharded → (…, out). `reduce` sums the partial products; it is replaced where its result is sharded."""

    reduce: Callable[[Tensor], Tensor] = staticmethod(reduce_from_tensor_model_parallel_region)

    def forward(self, input_: Tensor) -> Tensor:
        output = self.reduce(F.linear(input_, self.weight))
        return output if self.bias is None else output + self.bias


class MegatronLayers:
    """A `models.layers.factory.LayerFactory` over the current Megatron tensor-parallel group."""

    sums_input_gradients = True
    """Whether a column-parallel layer sums the gradients of its input over the group, or the operation before it does."""

    def reduce_rows(self, layer: RowParallel) -> RowParallel:
        """Choose how a row-parallel layer sums its partial products: here by an all-reduce."""
        return layer

    def __init__(self) -> None:
        self.tensor_parallel: int = parallel_state.get_tensor_model_parallel_world_size()
        # perform_initialization off: values come from models/layers/initialization.py, by canonical name
        self._config = ModelParallelConfig(
            tensor_model_parallel_size=self.tensor_parallel,
            use_cpu_initialization=True,
            perform_initialization=False,
            gradient_accumulation_fusion=False,
            params_dtype=torch.float32,
        )

    def column_linear(self, in_features: int, out_features: int, std: float, bias: bool = False) -> nn.Module:
        layer = _Column(
            in_features,
            out_features,
            config=self._config,
            init_method=_untouched,
            bias=bias,
            gather_output=False,
            disable_grad_reduce=not self.sums_input_gradients,
        )
        return _prepared(layer, std, dim=0)

    def row_linear(self, in_features: int, out_features: int, std: float, bias: bool = False) -> nn.Module:
        layer = RowParallel(
            in_features,
            out_features,
            config=self._config,
            init_method=_untouched,
            bias=bias,
            input_is_parallel=True,
            skip_bias_add=False,
        )
        return _prepared(self.reduce_rows(layer), std, dim=1)

    def linear(self, in_features: int, out_features: int, std: float, bias: bool = False) -> nn.Module:
        return plain_linear(in_features, out_features, std, bias)

    def tensor_parallel_rng(self) -> AbstractContextManager[None]:
        return tensor_parallel_rng(parallel_state.get_tensor_model_parallel_rank(), wanted=self.tensor_parallel > 1)

    def vocab_embedding(self, num_embeddings: int, dim: int, std: float) -> nn.Module:
        layer = VocabParallelEmbedding(num_embeddings, dim, init_method=_untouched, config=self._config)
        return _prepared(layer, std, dim=0)

    def head_table(self, rows: int, num_heads: int, std: float) -> nn.Parameter:
        table = normal_parameter((rows, num_heads // self.tensor_parallel), std)
        set_tensor_model_parallel_attributes(tensor=table, is_parallel=True, dim=1, stride=1)
        return table

    def vocab_bias(self, num_embeddings: int) -> nn.Parameter:
        bias = constant_parameter((num_embeddings // self.tensor_parallel,), 0.0)
        set_tensor_model_parallel_attributes(tensor=bias, is_parallel=True, dim=0, stride=1)
        return bias

    def tied_logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        # backward sums the partial gradients of `hidden` over the tensor group
        return F.linear(copy_to_tensor_model_parallel_region(hidden), weight, bias).float()

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        # Megatron's kernel subtracts the maximum in place; the clone keeps the caller's logits
        return vocab_parallel_cross_entropy(logits.clone(), targets)


def shard_dim(parameter: nn.Parameter) -> int | None:
    """The dimension on which a parameter is sharded over the tensor group, or None if it is replicated."""
    return getattr(parameter, "partition_dim") if getattr(parameter, "tensor_model_parallel", False) else None  # noqa: B009


def gather_shards(shard: Tensor, dim: int) -> Tensor:
    """The full tensor of a shard on dimension `dim`, on every rank of the tensor group: a collective, without gradients."""
    group = parallel_state.get_tensor_model_parallel_group()
    parts = [torch.empty_like(shard) for _ in range(group.size())]
    torch.distributed.all_gather(parts, shard.contiguous(), group=group)
    return torch.cat(parts, dim=dim)


def _untouched(tensor: Tensor) -> Tensor:
    return tensor


def _prepared(layer: nn.Module, std: float, dim: int) -> nn.Module:
    weight = layer.get_parameter("weight")
    assert isinstance(weight, nn.Parameter)
    if not hasattr(weight, "tensor_model_parallel"):  # Megatron marks a weight only if it also initialises it
        set_tensor_model_parallel_attributes(tensor=weight, is_parallel=True, dim=dim, stride=1)
    assert shard_dim(weight) in (dim, None)
    mark_normal(weight, std)
    bias = getattr(layer, "bias", None)
    if bias is not None:
        mark_constant(bias, 0.0)
        if dim == 0 and not hasattr(bias, "tensor_model_parallel"):  # the bias of a row-parallel layer is replicated
            set_tensor_model_parallel_attributes(tensor=bias, is_parallel=True, dim=0, stride=1)
    return layer
