"""The inputs of the models, and the state between their pieces.

Shapes: B batch, N encoder tokens, M decoder tokens, P predicted positions, D model width, S bias tables, H heads on this rank.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from models.layers.attention_bias import ScoreBias


class Inputs(NamedTuple):
    """The input of an encoder-decoder: integers only."""

    encoder_ids: Tensor  # (B, N) int64
    encoder_mask: Tensor  # (B, N) int64, 1 at real tokens (or document numbers), 0 at padding
    decoder_ids: Tensor  # (B, M) int64


class Embedded(NamedTuple):
    encoder_hidden: Tensor  # (B, N, D)
    decoder_hidden: Tensor  # (B, M, D)
    encoder_mask: Tensor  # (B, N) int64


class Seq2SeqState(NamedTuple):
    """The state between the pieces of an encoder-decoder. Every float tensor in it has a gradient."""

    encoder_hidden: Tensor  # (B, N, D)
    decoder_hidden: Tensor  # (B, M, D)
    bias_tables: Tensor  # (S, num_buckets, H)
    encoder_mask: Tensor  # (B, N) int64
    # not sent to another stage
    encoder_bias: ScoreBias | None = None
    self_bias: ScoreBias | None = None
    cross_bias: ScoreBias | None = None


class TextInputs(NamedTuple):
    """The input of a decoder-only model."""

    ids: Tensor  # (B, M) int64
    mask: Tensor  # (B, M) int64: 0 padding, 1 a token, 2 a token of the prefix that is read in both directions


class EncoderInputs(NamedTuple):
    """The input of an encoder-only model."""

    ids: Tensor  # (B, N) int64
    mask: Tensor  # (B, N) int64, as in `Inputs`
    type_ids: Tensor  # (B, N) int64, segment of each token
    mlm_positions: Tensor  # (B, P) int64, positions to predict; P = 0 for all


class StackState(NamedTuple):
    """The state between the pieces of a model of one stack. A decoder does not read type_ids and mlm_positions."""

    hidden: Tensor  # (B, N, D)
    bias_tables: Tensor  # (S, num_buckets, H)
    mask: Tensor  # (B, N) int64
    type_ids: Tensor  # (B, N) int64
    mlm_positions: Tensor  # (B, P) int64
    bias: ScoreBias | None = None  # not sent to another stage


def sent_tensors(state: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The fields that a stage sends to the next: all but the score biases, which the next stage makes again from the tables.

    A bias is (B or 1, H, N, N) numbers, a table is `num_buckets` x H.
    """
    return tuple(field for field in state if isinstance(field, Tensor))
