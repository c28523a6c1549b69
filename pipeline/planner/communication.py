"""Bytes that a rank sends in a step: within its tensor group, to adjacent stages, and for weights that two stages share."""

from __future__ import annotations

from collections.abc import Sequence

from models.cost.flops import Lengths, decoder_tokens
from pipeline.config import RunConfig
from pipeline.planner.footprint import PieceFootprint


def boundary_bytes(model: Sequence[PieceFootprint], begin: int, end: int) -> int:
    """Bytes that the stage of pieces [begin, end) sends for one micro-batch.

    Its state goes to the next stage, the gradients of the state that it received go back to the previous one.
    """
    forward = model[end - 1].sent_floats + model[end - 1].sent_integers if end < len(model) else 0
    return forward + (model[begin - 1].sent_floats if begin > 0 else 0)


def tied_gradient_bytes(model: Sequence[PieceFootprint], bounds: list[int]) -> int:
    """Bytes sent once a step to sum the fp32 gradients of a weight that two stages share; 0 if one stage holds both."""
    place = {piece.name: index for index, piece in enumerate(model)}
    for index, piece in enumerate(model):
        if piece.tied_to is not None:
            owner = place[piece.tied_to]
            apart = any(owner < bound <= index for bound in bounds[1:-1])
            return 4 * (model[owner].decayed + model[owner].plain) if apart else 0
    return 0


def tensor_parallel_bytes(config: RunConfig, part: Sequence[PieceFootprint], lengths: Lengths) -> float:
    """Bytes that a rank sends within its tensor group for one micro-batch, forward and backward.

    A ring all-reduce of S bytes sends 2 (t - 1) / t * S, all-gather and reduce-scatter half of that.
    """
    tp, train, model = config.mesh.tensor_parallel, config.train, config.model
    if tp == 1:
        return 0.0
    targets = lengths.decoder if model.is_encoder_only else decoder_tokens(model, lengths)
    whole = 0.0  # all-reduces of one token's state, times tokens
    for piece in part:
        forward, backward = _reductions(config, piece, lengths)
        # with recomputation the forward pass runs, and sends, twice
        whole += forward * (2 if train.recompute else 1) + backward
        if piece.name == "head":
            whole += targets
    element = 2 if train.precision == "bf16" else 4
    # the loss adds up a maximum, a logit and a sum over the shards of the vocabulary: fp32, for each target
    loss = 3 * 4 * targets if any(piece.name == "head" for piece in part) else 0
    return 2 * (tp - 1) / tp * train.micro_batch_size * (element * model.d_model * whole + loss)


def _reductions(config: RunConfig, piece: PieceFootprint, lengths: Lengths) -> tuple[float, float]:
    """All-reduces of a token's state, times tokens, in a piece's forward and backward pass; an all-gather counts as a half."""
    model = config.model
    written = decoder_tokens(model, lengths)
    if piece.name.startswith("encoder.layers."):
        attends, gated = not piece.transforms, model.encoder_block_config.gated
        forward, backward = 1.0 + attends, 1.0 + gated + 3 * attends  # backward: one for each product that shares an input
        if config.train.micro_batch_size % config.mesh.tensor_parallel == 0:
            # sharded over the batch: one all-gather serves them all; the region is entered and left once
            backward = 1.0 + attends + 0.5 * (piece.name == "encoder.layers.0")
            forward += 0.5 * (piece.name == f"encoder.layers.{model.num_encoder_layers - 1}")
        elif piece.transforms:  # an all-gather of half of the columns
            forward, backward = forward + 0.25, backward + 0.25
        return lengths.encoder * forward, lengths.encoder * backward
    if piece.name.startswith("decoder.layers."):
        forward, backward = 2.0 * written, (4.0 + model.decoder_block_config.gated) * written
        if not model.is_decoder_only:  # cross-attention: its keys and values come from the encoder's tokens
            forward, backward = forward + written, backward + written + 2 * lengths.encoder
        return forward, backward
    if piece.name == "embedding":
        return (written if model.is_decoder_only else lengths.encoder + (0 if model.is_encoder_only else written)), 0.0
    return 0.0, 0.0
