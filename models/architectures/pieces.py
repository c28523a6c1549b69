"""The model as an ordered list of pieces: the only place that defines their order and names.

The single-process models (`seq2seq.py`, `decoder_only.py`, `encoder_only.py`), the pipeline stages and their partition
(`pipeline/distributed/pipeline_stages.py`), the names of weights on disk and the FLOPs all come from this list.

A piece reads and returns a state. A stage sends a fixed number of tensors of it to the next stage. The score biases in it are
not sent: in each pass the first layer of a stage that needs one makes it from the tables, and the layers after it reuse it.

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
from models.config import BlockConfig, ModelConfig
from models.cost import flops
from models.cost.flops import Lengths
from models.layers.attention_bias import CROSS_ATTENTION, ScoreBias, ScoreBiasRule, decoder_bias_rule, encoder_bias_rule
from models.layers.embedding import OutputHead, StackInput, TokenEmbedding
from models.layers.factory import LayerFactory
from models.layers.feed_forward import dropout
from models.layers.heads import EncoderOutputs, Heads
from models.layers.norm import build_norm
from models.layers.position import RelativeBiasTables


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


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One step of the model.

    `build` makes the module, `run(module, input)` applies it to an input of the type `reads`. `tied_to` names the piece whose
    module this one shares (`build` is then the same function). A pipeline stage may start here only if `starts_stage`.
    """

    name: str
    build: Callable[[LayerFactory], nn.Module]
    run: Callable[[Any, Any], Any]
    flops: float = 0.0
    tied_to: str | None = None
    starts_stage: bool = False
    reads: Callable[..., Any] = Seq2SeqState


def pieces(config: ModelConfig, factory: LayerFactory, lengths: Lengths | None = None) -> list[Piece]:
    """The pieces of `config` in order. FLOPs are per sequence, and 0 without `lengths`."""
    if config.is_decoder_only:
        return _decoder_only(config, factory, lengths)
    if config.is_encoder_only:
        return _encoder_only(config, factory, lengths)
    return _encoder_decoder(config, factory, lengths)


def forward_flops(config: ModelConfig, factory: LayerFactory, lengths: Lengths) -> float:
    """Model FLOPs of one forward pass over one sequence."""
    return sum(piece.flops for piece in pieces(config, factory, lengths))


def executed_flops(config: ModelConfig, factory: LayerFactory, lengths: Lengths) -> float:
    """FLOPs of one forward pass as the configured Fourier backend computes it."""
    layers = range(config.num_encoder_layers)
    extra = sum(flops.executed_mixing(config, n, lengths) - flops.encoder_mixing(config, n, lengths) for n in layers)
    return forward_flops(config, factory, lengths) + extra


def _encoder_decoder(config: ModelConfig, factory: LayerFactory, lengths: Lengths | None) -> list[Piece]:
    count = _counter(config, lengths)
    result = [
        Piece(name="embedding", build=lambda f: TokenEmbedding(config, f), run=_embed_both, reads=Inputs),
        Piece(name="relative_bias", build=lambda f: RelativeBiasTables(config, f), run=_add_bias_tables, reads=Embedded),
        Piece(
            name="encoder.input",
            build=lambda f: StackInput(config, config.encoder_block_config, f),
            run=lambda module, state: state._replace(encoder_hidden=module(state.encoder_hidden)),
            flops=count(flops.encoder_input),
        ),
        Piece(
            name="decoder.input",
            build=lambda f: StackInput(config, config.decoder_block_config, f),
            run=lambda module, state: state._replace(decoder_hidden=module(state.decoder_hidden)),
        ),
        *_encoder_layers(config, count, _run_encoder_layer, Seq2SeqState),
    ]
    # The final norms and the head stay with the layer before them: a stage of the head alone would receive an encoder output
    # that it does not use, and a pipeline cannot send a float tensor that gets no gradient.
    if config.encoder_block_config.pre_norm:
        result.append(
            Piece(
                name="encoder.final_norm",
                build=_final_norm(config.encoder_block_config, config.d_model),
                run=partial(_norm_encoder, _final_dropout(config)),
            )
        )
    result += _decoder_layers(config, count, _run_decoder_layer, Seq2SeqState)
    if config.decoder_block_config.pre_norm:
        result.append(
            Piece(
                name="decoder.final_norm",
                build=_final_norm(config.decoder_block_config, config.d_model),
                run=partial(_norm_decoder, _final_dropout(config)),
            )
        )
    result.append(_language_model_head(config, factory, count, result[0], "decoder_hidden", Seq2SeqState))
    return result


def _decoder_only(config: ModelConfig, factory: LayerFactory, lengths: Lengths | None) -> list[Piece]:
    count = _counter(config, lengths)
    result = [
        Piece(name="embedding", build=lambda f: TokenEmbedding(config, f), run=_embed_text, reads=TextInputs),
        Piece(name="relative_bias", build=lambda f: RelativeBiasTables(config, f), run=_add_text_tables, reads=StackState),
        Piece(
            name="decoder.input",
            build=lambda f: StackInput(config, config.decoder_block_config, f),
            run=_begin_text,
            reads=StackState,
        ),
        *_decoder_layers(config, count, _run_text_layer, StackState),
    ]
    if config.decoder_block_config.pre_norm:
        result.append(
            Piece(
                name="decoder.final_norm",
                build=_final_norm(config.decoder_block_config, config.d_model),
                run=partial(_norm_stack, _final_dropout(config)),
                reads=StackState,
            )
        )
    result.append(_language_model_head(config, factory, count, result[0], "hidden", StackState))
    return result


def _encoder_only(config: ModelConfig, factory: LayerFactory, lengths: Lengths | None) -> list[Piece]:
    count = _counter(config, lengths)
    result = [
        Piece(name="embedding", build=lambda f: TokenEmbedding(config, f), run=_embed_encoder, reads=EncoderInputs),
        Piece(name="relative_bias", build=lambda f: RelativeBiasTables(config, f), run=_add_text_tables, reads=StackState),
        Piece(
            name="encoder.input",
            build=lambda f: StackInput(config, config.encoder_block_config, f),
            run=lambda module, state: state._replace(hidden=module(state.hidden, state.type_ids)),
            flops=count(flops.encoder_input),
            reads=StackState,
        ),
        *_encoder_layers(config, count, _run_stack_layer, StackState),
    ]
    if config.encoder_block_config.pre_norm:
        result.append(
            Piece(
                name="encoder.final_norm",
                build=_final_norm(config.encoder_block_config, config.d_model),
                run=partial(_norm_stack, _final_dropout(config)),
                reads=StackState,
            )
        )
    result.append(
        Piece(
            name="heads",
            build=lambda f: Heads(config, f),
            run=lambda module, state: module(state.hidden, state.mlm_positions),
            flops=count(flops.heads),
            reads=StackState,
        )
    )
    if "mlm" in config.heads:
        result.append(_masked_lm_head(config, factory, count, result[0]))
    return result


def _encoder_layers(
    config: ModelConfig, count: Callable[..., float], run: Callable[..., Any], reads: Callable[..., Any]
) -> list[Piece]:
    """`run(rule, layer, state)`, where the bias rule is None for a layer that does not attend."""
    rule = encoder_bias_rule(config)
    return [
        Piece(
            name=f"encoder.layers.{layer}",
            build=partial(_build_encoder_layer, config, layer),
            run=partial(run, rule if config.encoder_layer_attends(layer) else None),
            flops=count(flops.encoder_layer, layer),
            starts_stage=True,
            reads=reads,
        )
        for layer in range(config.num_encoder_layers)
    ]


def _decoder_layers(
    config: ModelConfig, count: Callable[..., float], run: Callable[..., Any], reads: Callable[..., Any]
) -> list[Piece]:
    """`run(rule, layer, state)`, where the bias rule is None with causal Fourier mixing."""
    return [
        Piece(
            name=f"decoder.layers.{layer}",
            build=lambda f: DecoderLayer(config, f),
            run=partial(run, decoder_bias_rule(config)),
            flops=count(flops.decoder_layer),
            starts_stage=True,
            reads=reads,
        )
        for layer in range(config.num_decoder_layers)
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
            name="head",
            build=lambda f: OutputHead(config, f),
            run=lambda module, state: module(getattr(state, field)),
            flops=head_flops,
            reads=reads,
        )
    # compensates T5's N(0, 1) embedding; an embedding that starts at init_std needs no scale
    scale = 1.0 if config.init_std else config.d_model**-0.5

    def run(module: TokenEmbedding, state: Any) -> Tensor:
        return factory.tied_logits(getattr(state, field) * scale, module.weight)

    return Piece(name="head", build=embedding.build, run=run, flops=head_flops, tied_to=embedding.name, reads=reads)


def _masked_lm_head(config: ModelConfig, factory: LayerFactory, count: Callable[..., float], embedding: Piece) -> Piece:
    head_flops = count(flops.output_head)
    if not config.tie_embeddings:
        build: Callable[[LayerFactory], nn.Module] = lambda f: OutputHead(config, f)  # noqa: E731
        return Piece(name="head", build=build, run=_run_mlm, flops=head_flops, reads=EncoderOutputs)
    return Piece(
        name="head",
        build=embedding.build,
        run=partial(_run_tied_mlm, factory),
        flops=head_flops,
        tied_to=embedding.name,
        reads=EncoderOutputs,
    )


def _counter(config: ModelConfig, lengths: Lengths | None) -> Callable[..., float]:
    def count(formula: Callable[..., float], *arguments: Any) -> float:
        return 0.0 if lengths is None else formula(config, *arguments, lengths)

    return count


def _build_encoder_layer(config: ModelConfig, layer: int, factory: LayerFactory) -> EncoderLayer:
    return EncoderLayer(config, factory, layer)


def _final_norm(block: BlockConfig, d_model: int) -> Callable[[LayerFactory], nn.Module]:
    return lambda _: build_norm(block.norm, d_model, block.norm_eps)


def _final_dropout(config: ModelConfig) -> float:
    """Dropout probability behind a final norm."""
    return config.dropout if config.drops_inside else 0.0


def _embed_both(embedding: TokenEmbedding, inputs: Inputs) -> Embedded:
    return Embedded(embedding(inputs.encoder_ids), embedding(inputs.decoder_ids), inputs.encoder_mask)


def _add_bias_tables(tables: RelativeBiasTables, embedded: Embedded) -> Seq2SeqState:
    bias_tables = tables(embedded.encoder_mask)
    return Seq2SeqState(embedded.encoder_hidden, embedded.decoder_hidden, bias_tables, embedded.encoder_mask)


def _run_encoder_layer(rule: ScoreBiasRule | None, layer: EncoderLayer, state: Seq2SeqState) -> Seq2SeqState:
    hidden, mask = state.encoder_hidden, state.encoder_mask
    if rule is not None and state.encoder_bias is None:
        num_tokens = hidden.shape[1]
        state = state._replace(encoder_bias=rule.make(state.bias_tables, mask, num_tokens, num_tokens, hidden.dtype))
    return state._replace(encoder_hidden=layer(hidden, mask, state.encoder_bias))


def _norm_encoder(probability: float, norm: nn.Module, state: Seq2SeqState) -> Seq2SeqState:
    return state._replace(encoder_hidden=dropout(norm(state.encoder_hidden), probability, norm.training))


def _run_decoder_layer(rule: ScoreBiasRule | None, layer: DecoderLayer, state: Seq2SeqState) -> Seq2SeqState:
    hidden, encoder, tables = state.decoder_hidden, state.encoder_hidden, state.bias_tables
    num_tokens = hidden.shape[1]
    if rule is not None and state.self_bias is None:
        state = state._replace(self_bias=rule.make(tables, None, num_tokens, num_tokens, hidden.dtype))
    if state.cross_bias is None:
        cross_bias = CROSS_ATTENTION.make(tables, state.encoder_mask, num_tokens, encoder.shape[1], hidden.dtype)
        state = state._replace(cross_bias=cross_bias)
    return state._replace(decoder_hidden=layer(hidden, state.self_bias, None, encoder, state.cross_bias))


def _norm_decoder(probability: float, norm: nn.Module, state: Seq2SeqState) -> Seq2SeqState:
    return state._replace(decoder_hidden=dropout(norm(state.decoder_hidden), probability, norm.training))


def _embed_text(embedding: TokenEmbedding, inputs: TextInputs) -> StackState:
    # a decoder needs three of the five fields; the others repeat the mask: integers, so no gradients are sent for them
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


def _run_stack_layer(rule: ScoreBiasRule | None, layer: EncoderLayer, state: StackState) -> StackState:
    state = _with_stack_bias(rule, state)
    return state._replace(hidden=layer(state.hidden, state.mask, state.bias))


def _run_text_layer(rule: ScoreBiasRule | None, layer: DecoderLayer, state: StackState) -> StackState:
    state = _with_stack_bias(rule, state)
    return state._replace(hidden=layer(state.hidden, state.bias, state.mask))


def _with_stack_bias(rule: ScoreBiasRule | None, state: StackState) -> StackState:
    if rule is None or state.bias is not None:
        return state
    num_tokens = state.hidden.shape[1]
    return state._replace(bias=rule.make(state.bias_tables, state.mask, num_tokens, num_tokens, state.hidden.dtype))


def _norm_stack(probability: float, norm: nn.Module, state: StackState) -> StackState:
    return state._replace(hidden=dropout(norm(state.hidden), probability, norm.training))


def _run_tied_mlm(factory: LayerFactory, embedding: TokenEmbedding, outputs: EncoderOutputs) -> EncoderOutputs:
    assert outputs.mlm is not None
    return outputs._replace(mlm=factory.tied_logits(outputs.mlm, embedding.weight, outputs.mlm_bias))


def _run_mlm(head: OutputHead, outputs: EncoderOutputs) -> EncoderOutputs:
    assert outputs.mlm_bias is not None
    return outputs._replace(mlm=head(outputs.mlm) + outputs.mlm_bias.float())
