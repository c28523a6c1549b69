"""The encoder of a tensor-parallel hybrid, sharded over the batch wherever no weight is sharded.

Mixing, norms, dropout and residuals act on each sample separately. Between the reduce-scatter after one sharded product and the
all-gather before the next, each of t tensor ranks therefore keeps B/t whole samples. A Fourier transform then needs no
communication, is exactly the single-process operator, and costs 1/t of the work. This is Megatron's sequence parallelism
(Korthikanti et al. 2022, arXiv:2205.05198) on dimension 0 of (B, N, D) instead of the tokens, which a Fourier transform
cannot be sharded along.

An all-reduce is a reduce-scatter and an all-gather, so a layer sends the same bytes as without sharding. Once per encoder, its
entrance adds an all-gather to the backward pass and its exit one to the forward pass. Encoder states that are sent to another
pipeline stage are 1/t as large.

A parameter that is replicated (norms, biases of row-parallel layers, learned mixers) sees only the samples of its rank here, so
its gradient is a partial sum. Such parameters are marked, and `sum_partial_gradients` sums their gradients once a step, which
DeepSpeed does not.

Shapes: B batch, N encoder tokens, D model width, t tensor-parallel degree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor, nn

from models.architectures.pieces import Piece
from pipeline.distributed.column_parallel_fourier import shard_columns
from pipeline.distributed.rng import tensor_parallel_rng
from pipeline.distributed.tensor_parallel import MegatronLayers, RowParallel, shard_dim

_REGION = "encoder.layers."
_PARTIAL = "has_partial_gradient"


def shard_encoder(model: Sequence[Piece], micro_batch_size: int, tensor_parallel: int) -> list[Piece]:
    """The same pieces with the work of the encoder divided among the tensor ranks.

    Over the batch if `tensor_parallel` divides the micro-batch, otherwise over output columns of the transform. A model without
    an encoder, or on a single tensor rank, is returned unchanged.
    """
    region = [index for index, piece in enumerate(model) if piece.name.startswith(_REGION)]
    if tensor_parallel == 1 or not region:
        return list(model)
    result = list(model)
    by_batch = micro_batch_size % tensor_parallel == 0
    for index in region:
        piece = model[index]
        if not by_batch:
            result[index] = replace(piece, build=_column_build(piece.build))
            continue
        first, last = index == region[0], index == region[-1]
        result[index] = replace(piece, build=_batch_build(piece.build), run=_batch_run(piece.run, first, last))
    return result


def has_partial_gradient(parameter: nn.Parameter) -> bool:
    """Whether the gradient of a replicated parameter comes only from the samples of this rank."""
    return getattr(parameter, _PARTIAL, False)


class RegionLayers(MegatronLayers):
    """Layers inside a batch-sharded encoder layer: column-parallel ones take (B, …), row-parallel ones return (B/t, …)."""

    # the backward pass of the all-gather before them does, once for all layers that share an input
    sums_input_gradients = False

    def reduce_rows(self, layer: RowParallel) -> RowParallel:
        layer.reduce = reduce_scatter_batch
        return layer


def _batch_build(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def sharded(factory: Any) -> nn.Module:
        layer = build(RegionLayers())
        mixing = layer.get_submodule("mixing")
        has_shards = any(shard_dim(parameter) is not None for parameter in mixing.parameters())
        mixing.register_forward_pre_hook(_gather_first if has_shards else _own_masks)
        layer.get_submodule("feed_forward").register_forward_pre_hook(_gather_first)
        for parameter in layer.parameters():
            if shard_dim(parameter) is None:
                setattr(parameter, _PARTIAL, True)
        return layer

    return sharded


def _batch_run(run: Callable[[Any, Any], Any], first: bool, last: bool) -> Callable[[Any, Any], Any]:
    def sharded(module: nn.Module, state: Any) -> Any:
        name = "encoder_hidden" if hasattr(state, "encoder_hidden") else "hidden"
        if first:
            state = state._replace(**{name: enter_region(getattr(state, name))})
        with tensor_parallel_rng(_group().rank(), wanted=module.training and getattr(module, "dropout", 0.0) > 0):
            state = run(module, state)
        return state._replace(**{name: leave_region(getattr(state, name))}) if last else state

    return sharded


def _column_build(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    return lambda factory: shard_columns(build(factory))


def _gather_first(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (gather_batch(arguments[0]), *arguments[1:])


def _own_masks(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give a mixer without sharded weights the masks of its own samples; the bias tables after them belong to no sample."""
    hidden, mask, *others = arguments
    return hidden, _own_samples(mask), *others


def _group() -> Any:
    return parallel_state.get_tensor_model_parallel_group()


def _own_samples(x: Tensor) -> Tensor:
    group = _group()
    return x.chunk(group.size())[group.rank()]


def _own_samples_alone(x: Tensor) -> Tensor:
    """As a copy, which does not keep the memory of the other samples."""
    return _own_samples(x).contiguous()


def _all_gather(x: Tensor) -> Tensor:
    group = _group()
    result = x.new_empty((x.shape[0] * group.size(), *x.shape[1:]))
    torch.distributed.all_gather_into_tensor(result, x.contiguous(), group=group)
    return result


def _reduce_scatter(x: Tensor) -> Tensor:
    group = _group()
    result = x.new_empty((x.shape[0] // group.size(), *x.shape[1:]))
    torch.distributed.reduce_scatter_tensor(result, x.contiguous(), group=group)
    return result


class _Exchange(torch.autograd.Function):
    """`there` in the forward pass, `back` on the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(gradients[0]), None, None


def enter_region(x: Tensor) -> Tensor:
    """(B, …) whole on every rank → (B/t, …), this rank's samples. Backward: all-gather."""
    return _Exchange.apply(x, _own_samples_alone, _all_gather)


def leave_region(x: Tensor) -> Tensor:
    """(B/t, …) → (B, …) whole on every rank. Backward: this rank's samples; the gradient must be equal on all ranks."""
    return _Exchange.apply(x, _all_gather, _own_samples_alone)


def gather_batch(x: Tensor) -> Tensor:
    """(B/t, …) → (B, …), the input of column-parallel layers. Backward: sums the ranks' gradients and scatters them."""
    return _Exchange.apply(x, _all_gather, _reduce_scatter)


def reduce_scatter_batch(x: Tensor) -> Tensor:
    """(B, …) partial sums → (B/t, …). Backward: all-gather."""
    return _Exchange.apply(x, _reduce_scatter, _all_gather)


def local_gradient(parameter: nn.Parameter) -> Tensor | None:
    """The accumulated gradient on this rank: BF16_Optimizer's fp32 gradient, or else the parameter's own."""
    high_precision: Tensor | None = getattr(parameter, "_hp_grad", None)
    return parameter.grad if high_precision is None else high_precision


def sum_partial_gradients(parameters: Sequence[nn.Parameter], group: torch.distributed.ProcessGroup) -> None:
    """Sum the partial gradients of replicated parameters over the ranks, in place: one all-reduce for all of them."""
    gradients = [gradient for gradient in map(local_gradient, parameters) if gradient is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat, group=group)
    for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))
