"""The model as an ordered list of pieces: the only owner of order and names.

From this list come the single-process model (`seq2seq.py`), the pipeline stages and their cut (`pipeline/stages.py`), the names
of weights on disk, and the FLOPs. A piece reads and returns a `State`; between two pieces a pipeline may cut.

Shapes: B batch, N encoder tokens, M decoder tokens, D model width, S bias tables, H heads on this rank, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from models import flops
from models.config import ModelConfig
from models.decoder import DecoderLayer
from models.embedding import OutputHead, TokenEmbedding
from models.encoder import EncoderLayer
from models.flops import Lengths
from models.layers import LayerFactory
from models.norm import RMSNorm
from models.position import RelativeBiasTables


class Inputs(NamedTuple):
    """What the first piece takes: integers only."""

    encoder_ids: Tensor  # (B, N) int64
    encoder_mask: Tensor  # (B, N) int64, 1 at real tokens
    decoder_ids: Tensor  # (B, M) int64


class State(NamedTuple):
    """What flows between pieces, of constant arity; every float tensor in it lies on the way to the loss."""

    encoder_hidden: Tensor  # (B, N, D)
    decoder_hidden: Tensor  # (B, M, D)
    bias_tables: Tensor  # (S, num_buckets, H)
    encoder_mask: Tensor  # (B, N) int64


@dataclass(frozen=True)
class Piece:
    """One step of the model.

    `build` makes the module, `run(module, input)` applies it. `tied_to` names the piece whose module this one shares (its
    `build` is then the same function). A pipeline stage may start here only if `starts_stage`.
    """

    name: str
    build: Callable[[LayerFactory], nn.Module]
    run: Callable[[Any, Any], Any]
    flops: float = 0.0
    tied_to: str | None = None
    starts_stage: bool = False


def pieces(config: ModelConfig, factory: LayerFactory, lengths: Lengths | None = None) -> list[Piece]:
    """The pieces of `config` in order. FLOPs are per sequence and are zero where no `lengths` are given."""

    def count(formula: Callable[..., float], *arguments: Any) -> float:
        return 0.0 if lengths is None else formula(config, *arguments, lengths)

    result = [
        Piece("embedding", lambda f: TokenEmbedding(config, f), _embed),
        Piece("relative_bias", lambda f: RelativeBiasTables(config, f), _add_bias_tables),
    ]
    for layer in range(config.num_encoder_layers):
        result.append(
            Piece(
                f"encoder.layers.{layer}",
                partial(_build_encoder_layer, config, layer),
                _run_encoder_layer,
                flops=count(flops.encoder_layer, layer),
                starts_stage=True,
            )
        )
    # The final norms and the head stay with the layer before them: a stage of the head alone would receive an encoder output
    # that it does not use, and a pipeline cannot send a float tensor that gets no gradient.
    result.append(Piece("encoder.final_norm", lambda f: RMSNorm(config.d_model, config.norm_eps), _norm_encoder))
    for layer in range(config.num_decoder_layers):
        result.append(
            Piece(
                f"decoder.layers.{layer}",
                lambda f: DecoderLayer(config, f),
                _run_decoder_layer,
                flops=count(flops.decoder_layer),
                starts_stage=True,
            )
        )
    result.append(Piece("decoder.final_norm", lambda f: RMSNorm(config.d_model, config.norm_eps), _norm_decoder))
    head_flops = count(flops.output_head)
    if config.tie_embeddings:
        run_tied_head = _tied_head(config.d_model**-0.5, factory)
        result.append(Piece("head", result[0].build, run_tied_head, flops=head_flops, tied_to="embedding"))
    else:
        result.append(Piece("head", lambda f: OutputHead(config, f), _run_head, flops=head_flops))
    return result


def forward_flops(config: ModelConfig, factory: LayerFactory, lengths: Lengths) -> float:
    """Model FLOPs of one forward pass over one sequence."""
    return sum(piece.flops for piece in pieces(config, factory, lengths))


def _build_encoder_layer(config: ModelConfig, layer: int, factory: LayerFactory) -> EncoderLayer:
    return EncoderLayer(config, factory, layer)


def _embed(embedding: TokenEmbedding, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    return embedding(inputs.encoder_ids), embedding(inputs.decoder_ids), inputs.encoder_mask


def _add_bias_tables(tables: RelativeBiasTables, embedded: tuple[Tensor, Tensor, Tensor]) -> State:
    encoder_hidden, decoder_hidden, encoder_mask = embedded
    return State(encoder_hidden, decoder_hidden, tables(), encoder_mask)


def _run_encoder_layer(layer: EncoderLayer, state: State) -> State:
    return state._replace(encoder_hidden=layer(state.encoder_hidden, state.encoder_mask, state.bias_tables))


def _norm_encoder(norm: RMSNorm, state: State) -> State:
    return state._replace(encoder_hidden=norm(state.encoder_hidden))


def _run_decoder_layer(layer: DecoderLayer, state: State) -> State:
    hidden = layer(state.decoder_hidden, state.encoder_hidden, state.encoder_mask, state.bias_tables)
    return state._replace(decoder_hidden=hidden)


def _norm_decoder(norm: RMSNorm, state: State) -> State:
    return state._replace(decoder_hidden=norm(state.decoder_hidden))


def _tied_head(scale: float, factory: LayerFactory) -> Callable[[TokenEmbedding, State], Tensor]:
    def run(embedding: TokenEmbedding, state: State) -> Tensor:
        return factory.tied_logits(state.decoder_hidden * scale, embedding.weight)

    return run


def _run_head(head: OutputHead, state: State) -> Tensor:
    return head(state.decoder_hidden)
