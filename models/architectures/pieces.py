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
from typing import Any

from torch import Tensor, nn

from models.architectures import piece_functions
from models.architectures.decoder import DecoderLayer
from models.architectures.encoder import EncoderLayer
from models.architectures.state import Embedded, EncoderInputs, Inputs, Seq2SeqState, StackState, TextInputs, sent_tensors
from models.config import BlockConfig, ModelConfig
from models.cost import flops
from models.cost.flops import Lengths
from models.layers.attention_bias import decoder_bias_rule, encoder_bias_rule
from models.layers.embedding import OutputHead, StackInput, TokenEmbedding
from models.layers.factory import LayerFactory
from models.layers.heads import EncoderOutputs, Heads
from models.layers.norm import build_norm
from models.layers.position import RelativeBiasTables

__all__ = [
    "EncoderInputs",
    "Inputs",
    "Piece",
    "Seq2SeqState",
    "StackState",
    "TextInputs",
    "executed_flops",
    "forward_flops",
    "needed_flops",
    "pieces",
    "sent_tensors",
]


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


def needed_flops(config: ModelConfig, factory: LayerFactory, lengths: Lengths, loss_positions: float) -> float:
    """FLOPs of one forward pass that computes only what a loss at `loss_positions` positions of a sequence needs: the head at
    these alone, and attention to the tokens that may be read (about half of them where it is causal)."""
    return forward_flops(config, factory, lengths) - flops.unneeded(config, lengths, loss_positions)


def executed_flops(config: ModelConfig, factory: LayerFactory, lengths: Lengths) -> float:
    """FLOPs of one forward pass as the configured Fourier backend computes it."""
    layers = range(config.num_encoder_layers)
    extra = sum(flops.executed_mixing(config, n, lengths) - flops.encoder_mixing(config, n, lengths) for n in layers)
    return forward_flops(config, factory, lengths) + extra


def _encoder_decoder(config: ModelConfig, factory: LayerFactory, lengths: Lengths | None) -> list[Piece]:
    count = _counter(config, lengths)
    result = [
        Piece(name="embedding", build=lambda f: TokenEmbedding(config, f), run=piece_functions.embed_both, reads=Inputs),
        Piece(
            name="relative_bias",
            build=lambda f: RelativeBiasTables(config, f),
            run=piece_functions.add_bias_tables,
            reads=Embedded,
        ),
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
        *_encoder_layers(config, count, piece_functions.run_encoder_layer, Seq2SeqState),
    ]
    # The final norms and the head stay with the layer before them: a stage of the head alone would receive an encoder output
    # that it does not use, and a pipeline cannot send a float tensor that gets no gradient.
    if config.encoder_block_config.pre_norm:
        result.append(
            Piece(
                name="encoder.final_norm",
                build=_final_norm(config.encoder_block_config, config.d_model),
                run=partial(piece_functions.norm_encoder, _final_dropout(config)),
            )
        )
    result += _decoder_layers(config, count, piece_functions.run_decoder_layer, Seq2SeqState)
    if config.decoder_block_config.pre_norm:
        result.append(
            Piece(
                name="decoder.final_norm",
                build=_final_norm(config.decoder_block_config, config.d_model),
                run=partial(piece_functions.norm_decoder, _final_dropout(config)),
            )
        )
    result.append(_language_model_head(config, factory, count, result[0], "decoder_hidden", Seq2SeqState))
    return result


def _decoder_only(config: ModelConfig, factory: LayerFactory, lengths: Lengths | None) -> list[Piece]:
    count = _counter(config, lengths)
    result = [
        Piece(name="embedding", build=lambda f: TokenEmbedding(config, f), run=piece_functions.embed_text, reads=TextInputs),
        Piece(
            name="relative_bias",
            build=lambda f: RelativeBiasTables(config, f),
            run=piece_functions.add_text_tables,
            reads=StackState,
        ),
        Piece(
            name="decoder.input",
            build=lambda f: StackInput(config, config.decoder_block_config, f),
            run=piece_functions.begin_text,
            reads=StackState,
        ),
        *_decoder_layers(config, count, piece_functions.run_text_layer, StackState),
    ]
    if config.decoder_block_config.pre_norm:
        result.append(
            Piece(
                name="decoder.final_norm",
                build=_final_norm(config.decoder_block_config, config.d_model),
                run=partial(piece_functions.norm_stack, _final_dropout(config)),
                reads=StackState,
            )
        )
    result.append(_language_model_head(config, factory, count, result[0], "hidden", StackState))
    return result


def _encoder_only(config: ModelConfig, factory: LayerFactory, lengths: Lengths | None) -> list[Piece]:
    count = _counter(config, lengths)
    result = [
        Piece(
            name="embedding", build=lambda f: TokenEmbedding(config, f), run=piece_functions.embed_encoder, reads=EncoderInputs
        ),
        Piece(
            name="relative_bias",
            build=lambda f: RelativeBiasTables(config, f),
            run=piece_functions.add_text_tables,
            reads=StackState,
        ),
        Piece(
            name="encoder.input",
            build=lambda f: StackInput(config, config.encoder_block_config, f),
            run=lambda module, state: state._replace(hidden=module(state.hidden, state.type_ids)),
            flops=count(flops.encoder_input),
            reads=StackState,
        ),
        *_encoder_layers(config, count, piece_functions.run_stack_layer, StackState),
    ]
    if config.encoder_block_config.pre_norm:
        result.append(
            Piece(
                name="encoder.final_norm",
                build=_final_norm(config.encoder_block_config, config.d_model),
                run=partial(piece_functions.norm_stack, _final_dropout(config)),
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
        return Piece(name="head", build=build, run=piece_functions.run_mlm, flops=head_flops, reads=EncoderOutputs)
    return Piece(
        name="head",
        build=embedding.build,
        run=partial(piece_functions.run_tied_mlm, factory),
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
    """Dropout probability after a final norm."""
    return config.dropout if config.has_inner_dropout else 0.0
