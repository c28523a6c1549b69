"""The pieces of the model as pipeline stages: the wrapper for DeepSpeed, and the canonical name of every parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from torch import Tensor, nn

from models.architectures.pieces import Piece, Seq2SeqState, StackState, pieces, sent_tensors
from models.config import ModelConfig
from models.cost.flops import Lengths
from models.layers.factory import LayerFactory
from models.layers.initialization import initial_value
from pipeline.distributed.batch_parallel_encoder import has_partial_gradient, shard_encoder
from pipeline.distributed.mesh import Mesh
from pipeline.distributed.tensor_parallel import MegatronLayers, shard_dim
from pipeline.run_folder import Report, no_report

_TIED_WEIGHT = "module.tokens.weight"


class StageLayer(nn.Module):
    """A piece as a pipeline layer: tuples in, tuples out."""

    def __init__(self, piece: Piece, factory: LayerFactory, recompute: bool) -> None:
        super().__init__()
        self.piece, self.recompute = piece, recompute
        self.module = piece.build(factory)

    def forward(self, received: tuple[Any, ...]) -> Any:
        result = run_piece(self.piece, self.module, received)
        # a layer that is run again by itself makes its own score bias: what it hands on is kept in memory until then
        return sent_tensors(result) if self.recompute and isinstance(result, Seq2SeqState | StackState) else result


def run_piece(piece: Piece, module: nn.Module, received: tuple[Any, ...]) -> Any:
    """Restore the names of the fields, then run the piece: DeepSpeed passes state between layers as plain tuples."""
    return piece.run(module, piece.reads(*received))


class _CloneGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clone()


def clone_stage_gradients(sent: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The last layer of a stage: passes on what the stage sends, and copies the gradients that come back.

    DeepSpeed receives the gradients of every micro-batch into the same buffer and passes that buffer to autograd. Where a sent
    output is only a view of a parameter (the bias tables), autograd keeps the buffer as the `.grad` of the parameter, and the
    next micro-batch overwrites what was accumulated.
    """
    return tuple(_CloneGradient.apply(tensor) if tensor.is_floating_point() else tensor for tensor in sent)


@dataclass(frozen=True, kw_only=True)
class CanonicalParameter:
    """A local parameter, its name on disk, and how the mesh shards it."""

    name: str
    parameter: nn.Parameter
    shard_dim: int | None
    """Dimension sharded over the tensor group; None if replicated."""
    full_shape: tuple[int, ...]
    is_copy: bool
    """A tied parameter whose owner is an earlier stage."""

    def local_slice(self, full: Tensor, mesh: Mesh) -> Tensor:
        """The part of the full tensor that this rank holds."""
        if self.shard_dim is None:
            return full
        size = full.shape[self.shard_dim] // mesh.tensor_parallel
        return full.narrow(self.shard_dim, mesh.tensor_rank * size, size)


class Stages(PipelineModule):
    """DeepSpeed's pipeline module over our pieces; this process builds only its own stage."""

    def __init__(
        self,
        config: ModelConfig,
        lengths: Lengths,
        mesh: Mesh,
        loss_fn: Any,
        micro_batch_size: int,
        *,
        recompute: bool,
        bounds: list[int],
    ) -> None:
        """`bounds`: the first piece of each stage, then the number of pieces."""
        factory = MegatronLayers()
        self.pieces = shard_encoder(pieces(config, factory, lengths), micro_batch_size, mesh.tensor_parallel)
        self.bounds = bounds
        super().__init__(
            layers=[_spec(piece, self.pieces, factory, recompute) for piece in self.pieces],
            topology=mesh.topology,
            loss_fn=loss_fn,
            activation_checkpoint_interval=int(recompute),  # one piece at a time
        )

    def _build(self) -> None:
        super()._build()
        if self.stage_id < self.num_stages - 1:
            self.forward_funcs += [sent_tensors, clone_stage_gradients]

    def _partition_layers(self, method: str = "") -> None:
        self.parts = self.bounds
        self._set_bounds(start=self.parts[self.stage_id], stop=self.parts[self.stage_id + 1])

    def canonical_parameters(self) -> Iterator[CanonicalParameter]:
        """Every parameter of this stage, once."""
        for index in range(self._local_start, self._local_stop):
            piece = self.pieces[index]
            if piece.tied_to is None:
                layer = self.tied_modules[piece.name] if piece.name in self.tied_modules else self.get_submodule(str(index))
                is_copy = False
            elif self.stage_owner(self._owner_of(piece)) == self.stage_id:
                continue  # the owner is on this stage and was yielded already
            else:
                layer = self.tied_modules[piece.tied_to]
                is_copy = True
            for name, parameter in layer.module.named_parameters():
                dim = shard_dim(parameter)
                shape = list(parameter.shape)
                if dim is not None:
                    shape[dim] *= self.topology().get_dim("model")
                yield CanonicalParameter(
                    name=f"{piece.tied_to or piece.name}.{name}",
                    parameter=parameter,
                    shard_dim=dim,
                    full_shape=tuple(shape),
                    is_copy=is_copy,
                )

    def partial_gradient_parameters(self) -> list[nn.Parameter]:
        """The replicated parameters whose gradients must be summed over the tensor group."""
        return [parameter for parameter in self.parameters() if has_partial_gradient(parameter)]

    def _owner_of(self, piece: Piece) -> int:
        return next(index for index, other in enumerate(self.pieces) if other.name == piece.tied_to)


@torch.no_grad()
def initialize(
    stages: Stages, mesh: Mesh, seed: int, given: Mapping[str, Tensor] | None = None, report: Report = no_report
) -> None:
    """Fill the parameters of this stage: drawn from `seed`, the same on every mesh, or taken from `given` by name."""
    for entry in stages.canonical_parameters():
        report(f"initializing {entry.name}")
        full = initial_value(entry.parameter, entry.name, entry.full_shape, seed) if given is None else given[entry.name]
        entry.parameter.copy_(entry.local_slice(full, mesh))


def _spec(piece: Piece, model: Sequence[Piece], factory: LayerFactory, recompute: bool) -> LayerSpec:
    is_shared = any(other.tied_to == piece.name for other in model)
    if piece.tied_to is None and not is_shared:
        return LayerSpec(StageLayer, piece, factory, recompute)
    if piece.tied_to is None:
        return TiedLayerSpec(piece.name, StageLayer, piece, factory, recompute, tied_weight_attr=_TIED_WEIGHT)

    def run(layer: StageLayer, received: tuple[Tensor, ...]) -> Any:
        return run_piece(piece, layer.module, received)

    return TiedLayerSpec(piece.tied_to, StageLayer, piece, factory, recompute, forward_fn=run, tied_weight_attr=_TIED_WEIGHT)
