"""The loss from a model's outputs, for the engine of a mesh and for evaluation in one process.

The layer factory computes the cross-entropy: `TorchLayers.cross_entropy` (models/layers/factory.py) in one process,
`MegatronLayers.cross_entropy` (pipeline/distributed/tensor_parallel.py) over sharded logits. The mean over the targets of the
global batch is in the weights of the labels (`make_micro_batches` in pipeline/data/batches.py).

Shapes: B rows, M target positions, V vocabulary, t tensor-parallel degree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from models.layers.factory import LayerFactory
from models.layers.heads import EncoderOutputs

Outputs = Tensor | EncoderOutputs


def token_logits(outputs: Outputs) -> Tensor:
    """The logits (B, M, V / t) over the vocabulary. Raises ValueError for an encoder-only model without that head."""
    logits = outputs.mlm if isinstance(outputs, EncoderOutputs) else outputs
    if logits is None:
        raise ValueError("the model has no masked-token head: give model.heads mlm")
    return logits


def losses_of(outputs: Outputs, labels: tuple[Tensor, ...], factory: LayerFactory) -> Iterator[tuple[Tensor, Tensor]]:
    """For each loss the negative log-likelihood (nats, fp32) and the weight of every position: of tokens (B, M), of order (B,).

    `labels` are those of `batches.as_tensors`. Only an encoder-only model that predicts the order of its segments has a second
    loss; its two logits are replicated on every tensor rank.
    """
    yield factory.cross_entropy(token_logits(outputs), labels[0]), labels[1]
    if isinstance(outputs, EncoderOutputs) and outputs.order is not None:
        yield F.cross_entropy(outputs.order, labels[2], reduction="none"), labels[3]


def weighted_loss(factory: LayerFactory) -> Callable[[Outputs, tuple[Tensor, ...]], Tensor]:
    """The scalar that training minimises: the weighted sum of all losses."""

    def loss(outputs: Outputs, labels: tuple[Tensor, ...]) -> Tensor:
        parts = [(nll * weights).sum() for nll, weights in losses_of(outputs, labels, factory)]
        return torch.stack(parts).sum()

    return loss
