"""The size of each piece of a model on one tensor rank, found by running it on PyTorch's meta device, which has shapes only.

Parameters are counted exactly. Activations are what autograd saves for the backward pass of one micro-batch, each storage
once, parameters excluded.

Shapes: B micro-batch, N encoder tokens, M decoder tokens, D model width, t tensor-parallel degree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.architectures.pieces import EncoderInputs, Inputs, Piece, TextInputs, pieces
from models.config import ModelConfig
from models.cost.flops import Lengths
from models.cost.parameters import is_decayed
from models.layers.factory import TorchLayers
from models.mixing.attention import AttentionMixing
from pipeline.objectives.loss import token_logits

_REGION = "encoder.layers."


@dataclass(frozen=True, kw_only=True)
class PieceFootprint:
    """Sizes of one piece of the model."""

    name: str
    flops: float
    """FLOPs of the forward pass of one sequence, all tensor ranks together."""
    decayed: int
    """Elements on one tensor rank that weight decay applies to."""
    plain: int
    """Elements on one tensor rank without weight decay."""
    saved_bytes: int
    """Bytes saved for the backward pass of one micro-batch on one tensor rank."""
    passed_bytes: int
    """Bytes of new tensors in its output: what recomputation keeps, and what a pipeline sends after it."""
    sent_floats: int
    """Bytes of float tensors in the state after it: a stage that ends here sends them and receives their gradients."""
    sent_integers: int
    """Bytes of integer tensors in the state after it, which have no gradients."""
    partial: int
    """Elements whose gradients are summed over the tensor ranks once a step: replicated ones inside a batch-sharded encoder."""
    tied_to: str | None
    starts_stage: bool
    transforms: bool
    """Whether it mixes tokens by a transform instead of attention."""


class ShapeLayers(TorchLayers):
    """The shapes that Megatron's layers have on one of `tensor_parallel` ranks, without their communication."""

    def __init__(self, tensor_parallel: int) -> None:
        self.tensor_parallel = tensor_parallel

    def column_linear(self, in_features: int, out_features: int, std: float, *rest: Any) -> nn.Module:
        return super().column_linear(in_features, out_features // self.tensor_parallel, std, *rest)

    def row_linear(self, in_features: int, out_features: int, std: float, *rest: Any) -> nn.Module:
        return super().row_linear(in_features // self.tensor_parallel, out_features, std, *rest)

    def vocab_embedding(self, num_embeddings: int, dim: int, std: float) -> nn.Module:
        return super().vocab_embedding(num_embeddings // self.tensor_parallel, dim, std)

    def vocab_bias(self, num_embeddings: int) -> nn.Parameter:
        return super().vocab_bias(num_embeddings // self.tensor_parallel)

    def head_table(self, rows: int, num_heads: int, std: float) -> nn.Parameter:
        return super().head_table(rows, num_heads // self.tensor_parallel, std)


def footprints(
    config: ModelConfig, lengths: Lengths, micro_batch_size: int, tensor_parallel: int, dtype: torch.dtype
) -> list[PieceFootprint]:
    """The footprint of every piece of the model on one of `tensor_parallel` ranks; weights and activations in `dtype`."""
    by_batch = tensor_parallel > 1 and micro_batch_size % tensor_parallel == 0
    with torch.device("meta"):
        factory = ShapeLayers(tensor_parallel)
        model = pieces(config, factory, lengths)
        modules: dict[str, nn.Module] = {}
        state: Any = _inputs(config, lengths, micro_batch_size)
        result = []
        region = [piece.name for piece in model if piece.name.startswith(_REGION)]
        for piece in model:
            module = modules[piece.tied_to] if piece.tied_to else piece.build(factory).to(dtype)
            modules[piece.name] = module
            saved, after = _saved_by(module, lambda piece=piece, module=module, state=state: piece.run(module, state))
            if by_batch and piece.name.startswith(_REGION):
                saved = _divided(module, saved, after, tensor_parallel)
            passed = _new_bytes(state, after)
            if piece is model[-1]:
                # the loss saves the softmax, and the engine keeps the logits: both fp32
                saved, passed = saved + 2 * 4 * token_logits(after).numel(), 0
            floats, integers = _bytes_of(after, floating=True), _bytes_of(after, floating=False)
            partial = 0
            if by_batch and piece.name in region:
                partial = _replicated(piece, module)
                if piece.name != region[-1]:  # only this rank's samples are sent
                    hidden = after.encoder_hidden if hasattr(after, "encoder_hidden") else after.hidden
                    floats -= _bytes_of((hidden,), floating=True) * (tensor_parallel - 1) // tensor_parallel
            result.append(_footprint(piece, module, saved, passed, (floats, integers), partial))
            state = after
    return result


def _inputs(config: ModelConfig, lengths: Lengths, rows: int) -> Any:
    def ids(width: int) -> Tensor:
        return torch.zeros(rows, width, dtype=torch.long)

    if config.is_decoder_only:
        width = lengths.encoder + lengths.decoder
        return TextInputs(ids(width), ids(width))
    if config.is_encoder_only:
        return EncoderInputs(ids(lengths.encoder), ids(lengths.encoder), ids(lengths.encoder), ids(lengths.decoder))
    return Inputs(ids(lengths.encoder), ids(lengths.encoder), ids(lengths.decoder))


def _bytes_of(state: Any, floating: bool) -> int:
    tensors = [state] if isinstance(state, Tensor) else state
    chosen = (tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor.is_floating_point() == floating)
    return sum(tensor.numel() * tensor.element_size() for tensor in chosen)


def _replicated(piece: Piece, module: nn.Module) -> int:
    """Elements of the parameters that are replicated on every tensor rank."""
    whole = dict(piece.build(TorchLayers()).named_parameters())
    return sum(part.numel() for name, part in module.named_parameters() if part.shape == whole[name].shape)


def _footprint(piece: Piece, module: nn.Module, saved: int, passed: int, sent: tuple[int, int], partial: int) -> PieceFootprint:
    sizes = {True: 0, False: 0}
    for name, parameter in module.named_parameters():
        sizes[is_decayed(f"{piece.tied_to or piece.name}.{name}", parameter)] += parameter.numel()
    return PieceFootprint(
        name=piece.name,
        flops=piece.flops,
        decayed=sizes[True],
        plain=sizes[False],
        saved_bytes=saved,
        passed_bytes=passed,
        sent_floats=sent[0],
        sent_integers=sent[1],
        partial=partial,
        tied_to=piece.tied_to,
        starts_stage=piece.starts_stage,
        transforms=piece.name.startswith(_REGION) and not isinstance(getattr(module, "mixing", None), AttentionMixing),
    )


def _saved_by(module: nn.Module, run: Any) -> tuple[int, Any]:
    """Bytes of the distinct storages that autograd saves during `run`, and what it returns."""
    own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # kept alive, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        after = run()
    return sum(storage.nbytes() for storage in kept.values()), after


def _divided(layer: nn.Module, saved: int, state: Any, tensor_parallel: int) -> int:
    """An encoder layer sharded over the batch: everything but its sharded products keeps 1/t (`batch_parallel_encoder.py`)."""
    is_pair = hasattr(state, "encoder_hidden")
    hidden = (state.encoder_hidden if is_pair else state.hidden).detach().requires_grad_()
    mask = state.encoder_mask if is_pair else state.mask
    feed_forward = layer.get_submodule("feed_forward")
    whole, _ = _saved_by(feed_forward, lambda: feed_forward(hidden))
    mixing = layer.get_submodule("mixing")
    if any(True for _ in mixing.parameters()):
        bias = state.encoder_bias if is_pair else state.bias
        if bias is not None and bias.added is not None:
            bias = bias._replace(added=bias.added.detach())
        whole += _saved_by(mixing, lambda: mixing(hidden, mask, bias))[0]
    return whole + max(0, saved - whole) // tensor_parallel


def _new_bytes(before: Any, after: Any) -> int:
    known = {id(field) for field in before}
    fields = [after] if isinstance(after, Tensor) else after
    return _bytes_of([field for field in fields if id(field) not in known], floating=True)
