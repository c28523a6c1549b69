"""The model as an ordered list of pieces: the only owner of order and names.

From this list come the single-process models (`seq2seq.py`, `decoder_only.py`, `encoder_only.py`), the pipeline stages and
their partition (`pipeline/distributed/pipeline_stages.py`), the names of weights on disk, and the FLOPs. A piece reads and
returns a state of constant arity; a pipeline may be partitioned between any two pieces.

Shapes: B batch, N encoder tokens, M decoder tokens, D model width, S bias tables, H heads on this rank, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from models.architectures.decoder import DecoderLayer, positions_of
from models.architectures.encoder import EncoderLayer
from models.config import ModelConfig
from models.cost import flops
from models.cost.flops import Lengths
from models.layers.attention_bias import ScoreBiasOf
from models.layers.embedding import OutputHead, StackInput, TokenEmbedding
from models.layers.factory import LayerFactory
from models.layers.feed_forward import drop
from models.layers.heads import EncoderOutputs, Heads
from models.layers.norm import build_norm
from models.layers.position import RelativeBiasTables


class Inputs(NamedTuple):
    """What an encoder-decoder takes: integers only."""

    encoder_ids: Tensor  # (B, N) int64
    encoder_mask: Tensor  # (B, N) int64, 1 at real tokens (or document numbers), 0 at padding
    decoder_ids: Tensor  # (B, M) int64


class Embedded(NamedTuple):
    encoder_hidden: Tensor  # (B, N, D)
    decoder_hidden: Tensor  # (B, M, D)
    encoder_mask: Tensor  # (B, N) int64


class State(NamedTuple):
    """What flows between an encoder-decoder's pieces; every float tensor in it lies on the way to the loss."""

    encoder_hidden: Tensor  # (B, N, D)
    decoder_hidden: Tensor  # (B, M, D)
    bias_tables: Tensor  # (S, num_buckets, H)
    encoder_mask: Tensor  # (B, N) int64


class TextInputs(NamedTuple):
    """What a decoder-only model takes."""

    ids: Tensor  # (B, M) int64
    mask: Tensor  # (B, M) int64: 0 padding, 1 a token, 2 a token of the prefix that is read in both directions


class EncoderInputs(NamedTuple):
    """What an encoder-only model takes."""

    ids: Tensor  # (B, N) int64
    mask: Tensor  # (B, N) int64, as in `Inputs`
    type_ids: Tensor  # (B, N) int64, segment of each token
    mlm_positions: Tensor  # (B, P) int64, positions to predict; P = 0 for all


class StackState(NamedTuple):
    """What flows between the pieces of a model of one stack. A decoder reads neither type_ids nor mlm_positions."""

    hidden: Tensor  # (B, N, D)
    bias_tables: Tensor  # (S, num_buckets, H)
    mask: Tensor  # (B, N) int64
    type_ids: Tensor  # (B, N) int64
    mlm_positions: Tensor  # (B, P) int64


@dataclass(frozen=True)
class Piece:
    """One step of the model.

    `build` makes the module, `run(module, input)` applies it to an input of the type `reads`. `tied_to` names the piece whose
    module this one shares (its `build` is then the same function). A pipeline stage may start here only if `starts_stage`.
    """

    name: str
    build: Callable[[LayerFactory], nn.Module]
    run: Callable[[Any, Any], Any]
    flops: float = 0.0
    tied_to: str | None = None
    starts_stage: bool = False
    reads: Callable[..., Any] = State


def pieces(config: ModelConfig, factory: LayerFactory, lengths: Lengths | None = None) -> list[Piece]:
    """The pieces of `config` in order. FLOPs are per sequence and are zero where no `lengths` are given."""
    if config.is_decoder_only:
        return _decoder_only(config, factory, lengths)
    if config.is_encoder_only:
        return _encoder_only(config, factory, lengths)
    return _encoder_decoder(config, factory, lengths)


def forward_flops(config: ModelConfig, factory: LayerFactory, lengths: Lengths) -> float:
    """Model FLOPs of one forward pass over one sequence."""
    return sum(piece.flops for piece in pieces(config, factory, lengths))


def executed_flops(config: ModelConfig, factory: LayerFactory, lengths: Lengths) -> float:
    """FLOPs of one forward pass as the chosen Fourier backend really computes it."""
    layers = range(config.num_encoder_layers)
    extra = sum(flops.executed_mixing(config, n, lengths) - flops.encoder_mixing(config, n, lengths) for n in layers)
    return forward_flops(config, factory, lengths) + extra


def _encoder_decoder(config: ModelConfig, factory: LayerFactory, lengths: Lengths | None) -> list[Piece]:
    count = _counter(config, lengths)
    result = [
        Piece("embedding", lambda f: TokenEmbedding(config, f), _embed_both, reads=Inputs),
        Piece("relative_bias", lambda f: RelativeBiasTables(config, f), _add_bias_tables, reads=Embedded),
        Piece(
            "encoder.input",
            lambda f: StackInput(config, config.encoder_block_config, f),
            lambda module, state: state._replace(encoder_hidden=module(state.encoder_hidden)),
            flops=count(flops.encoder_input),
        ),
        Piece(
            "decoder.input",
            lambda f: StackInput(config, config.decoder_block_config, f),
            lambda module, state: state._replace(decoder_hidden=module(state.decoder_hidden)),
        ),
        *_encoder_layers(config, count, _run_encoder_layer, State),
    ]
    # The final norms and the head stay with the layer before them: a stage of the head alone would receive an encoder output
    # that it does not use, and a pipeline cannot send a float tensor that gets no gradient.
    if config.encoder_block_config.pre_norm:
        result.append(Piece("encoder.final_norm", _final_norm(config, encoder=True), partial(_norm_encoder, _kept(config))))
    table = -1 if config.decoder_has_bias_table else None
    self_bias = ScoreBiasOf("causal", table, config.max_distance, bidirectional=False)
    cross_bias = ScoreBiasOf("all")
    for layer in range(config.num_decoder_layers):
        result.append(
            Piece(
                f"decoder.layers.{layer}",
                lambda f: DecoderLayer(config, f, self_bias, cross_bias),
                _run_decoder_layer,
                flops=count(flops.decoder_layer),
                starts_stage=True,
            )
        )
    if config.decoder_block_config.pre_norm:
        result.append(Piece("decoder.final_norm", _final_norm(config, encoder=False), partial(_norm_decoder, _kept(config))))
    result.append(_language_model_head(config, factory, count, result[0], "decoder_hidden", State))
    return result


def _decoder_only(config: ModelConfig, factory: LayerFactory, lengths: Lengths | None) -> list[Piece]:
    count = _counter(config, lengths)
    result = [
        Piece("embedding", lambda f: TokenEmbedding(config, f), _embed_text, reads=TextInputs),
        Piece("relative_bias", lambda f: RelativeBiasTables(config, f), _add_text_tables, reads=StackState),
        Piece("decoder.input", lambda f: StackInput(config, config.decoder_block_config, f), _begin_text, reads=StackState),
    ]
    is_prefix = config.architecture == "prefix_decoder"
    table = 0 if config.decoder_has_bias_table else None
    # a prefix is read in both directions, so its distances have both signs
    score_bias = ScoreBiasOf("prefix" if is_prefix else "causal", table, config.max_distance, bidirectional=is_prefix)
    for layer in range(config.num_decoder_layers):
        result.append(
            Piece(
                f"decoder.layers.{layer}",
                lambda f: DecoderLayer(config, f, score_bias, None),
                lambda module, state: state._replace(hidden=module(state.hidden, state.bias_tables, state.mask)),
                flops=count(flops.decoder_layer),
                starts_stage=True,
                reads=StackState,
            )
        )
    if config.decoder_block_config.pre_norm:
        build = _final_norm(config, encoder=False)
        result.append(Piece("decoder.final_norm", build, partial(_norm_stack, _kept(config)), reads=StackState))
    result.append(_language_model_head(config, factory, count, result[0], "hidden", StackState))
    return result


def _encoder_only(config: ModelConfig, factory: LayerFactory, lengths: Lengths | None) -> list[Piece]:
    count = _counter(config, lengths)
    result = [
        Piece("embedding", lambda f: TokenEmbedding(config, f), _embed_encoder, reads=EncoderInputs),
        Piece("relative_bias", lambda f: RelativeBiasTables(config, f), _add_text_tables, reads=StackState),
        Piece(
            "encoder.input",
            lambda f: StackInput(config, config.encoder_block_config, f),
            lambda module, state: state._replace(hidden=module(state.hidden, state.type_ids)),
            flops=count(flops.encoder_input),
            reads=StackState,
        ),
        *_encoder_layers(config, count, _run_stack_layer, StackState),
    ]
    if config.encoder_block_config.pre_norm:
        build = _final_norm(config, encoder=True)
        result.append(Piece("encoder.final_norm", build, partial(_norm_stack, _kept(config)), reads=StackState))
    result.append(
        Piece(
            "heads",
            lambda f: Heads(config, f),
            lambda module, state: module(state.hidden, state.mlm_positions),
            flops=count(flops.heads),
            reads=StackState,
        )
    )
    if "mlm" in config.heads:
        head_flops = count(flops.output_head)
        if config.tie_embeddings:
            run = partial(_run_tied_mlm, factory)
            result.append(Piece("head", result[0].build, run, head_flops, tied_to="embedding", reads=EncoderOutputs))
        else:
            result.append(Piece("head", lambda f: OutputHead(config, f), _run_mlm, head_flops, reads=EncoderOutputs))
    return result


def _encoder_layers(
    config: ModelConfig, count: Callable[..., float], run: Callable[[Any, Any], Any], reads: Callable[..., Any]
) -> list[Piece]:
    reach = ScoreBiasOf(
        "documents" if config.mix_within_documents else "all",
        0 if config.encoder_has_bias_table else None,
        config.max_distance,
        bidirectional=True,
    )
    return [
        Piece(
            f"encoder.layers.{layer}",
            partial(_build_encoder_layer, config, layer, reach),
            run,
            flops=count(flops.encoder_layer, layer),
            starts_stage=True,
            reads=reads,
        )
        for layer in range(config.num_encoder_layers)
    ]


def _language_model_head(
    config: ModelConfig,
    factory: LayerFactory,
    count: Callable[..., float],
    embedding: Piece,
    field: str,
    reads: Callable[..., Any],
) -> Piece:
    head_flops = count(flops.output_head)
    if not config.tie_embeddings:
        return Piece(
            "head",
            lambda f: OutputHead(config, f),
            lambda module, state: module(getattr(state, field)),
            head_flops,
            reads=reads,
        )
    # T5 takes the N(0, 1) of its embedding back here; an embedding that starts at init_std needs no scale
    scale = 1.0 if config.init_std else config.d_model**-0.5

    def run(module: TokenEmbedding, state: Any) -> Tensor:
        return factory.tied_logits(getattr(state, field) * scale, module.weight)

    return Piece("head", embedding.build, run, head_flops, tied_to=embedding.name, reads=reads)


def _counter(config: ModelConfig, lengths: Lengths | None) -> Callable[..., float]:
    def count(formula: Callable[..., float], *arguments: Any) -> float:
        return 0.0 if lengths is None else formula(config, *arguments, lengths)

    return count


def _build_encoder_layer(config: ModelConfig, layer: int, score_bias: ScoreBiasOf, factory: LayerFactory) -> EncoderLayer:
    return EncoderLayer(config, factory, layer, score_bias)


def _final_norm(config: ModelConfig, *, encoder: bool) -> Callable[[LayerFactory], nn.Module]:
    style = config.encoder_block_config if encoder else config.decoder_block_config
    return lambda _: build_norm(style.norm, config.d_model, style.norm_eps)


def _kept(config: ModelConfig) -> float:
    """Dropout behind a final norm."""
    return config.dropout if config.drops_inside else 0.0


def _embed_both(embedding: TokenEmbedding, inputs: Inputs) -> Embedded:
    return Embedded(embedding(inputs.encoder_ids), embedding(inputs.decoder_ids), inputs.encoder_mask)


def _add_bias_tables(tables: RelativeBiasTables, embedded: Embedded) -> State:
    bias_tables = tables(embedded.encoder_mask)
    return State(embedded.encoder_hidden, embedded.decoder_hidden, bias_tables, embedded.encoder_mask)


def _run_encoder_layer(layer: EncoderLayer, state: State) -> State:
    return state._replace(encoder_hidden=layer(state.encoder_hidden, state.encoder_mask, state.bias_tables))


def _norm_encoder(dropout: float, norm: nn.Module, state: State) -> State:
    return state._replace(encoder_hidden=drop(norm(state.encoder_hidden), dropout, norm.training))


def _run_decoder_layer(layer: DecoderLayer, state: State) -> State:
    hidden = layer(state.decoder_hidden, state.bias_tables, None, state.encoder_hidden, state.encoder_mask)
    return state._replace(decoder_hidden=hidden)


def _norm_decoder(dropout: float, norm: nn.Module, state: State) -> State:
    return state._replace(decoder_hidden=drop(norm(state.decoder_hidden), dropout, norm.training))


def _embed_text(embedding: TokenEmbedding, inputs: TextInputs) -> StackState:
    # of the five fields a decoder needs three; the others repeat the mask, which is an integer and costs nothing
    return StackState(embedding(inputs.ids), inputs.mask, inputs.mask, inputs.mask, inputs.mask)


def _embed_encoder(embedding: TokenEmbedding, inputs: EncoderInputs) -> StackState:
    return StackState(embedding(inputs.ids), inputs.mask, inputs.mask, inputs.type_ids, inputs.mlm_positions)


def _add_text_tables(tables: RelativeBiasTables, state: StackState) -> StackState:
    return state._replace(bias_tables=tables(state.mask))


def _begin_text(module: StackInput, state: StackState) -> StackState:
    if module.positions is None:
        return state._replace(hidden=module(state.hidden))
    module.positions.check(state.hidden.shape[1])
    return state._replace(hidden=module(state.hidden, positions=positions_of(state.mask)))


def _run_stack_layer(layer: EncoderLayer, state: StackState) -> StackState:
    return state._replace(hidden=layer(state.hidden, state.mask, state.bias_tables))


def _norm_stack(dropout: float, norm: nn.Module, state: StackState) -> StackState:
    return state._replace(hidden=drop(norm(state.hidden), dropout, norm.training))


def _run_tied_mlm(factory: LayerFactory, embedding: TokenEmbedding, outputs: EncoderOutputs) -> EncoderOutputs:
    assert outputs.mlm is not None
    return outputs._replace(mlm=factory.tied_logits(outputs.mlm, embedding.weight, outputs.mlm_bias))


def _run_mlm(head: OutputHead, outputs: EncoderOutputs) -> EncoderOutputs:
    assert outputs.mlm_bias is not None
    return outputs._replace(mlm=head(outputs.mlm) + outputs.mlm_bias.float())
