"""What each piece of a model does with the state: it applies its module to some fields and replaces others.

A layer makes the score bias that it needs if the state has none yet, and leaves it in the state for the layers after it.

Shapes: B batch, N encoder tokens, M decoder tokens, D model width.
"""

from __future__ import annotations

from torch import nn

from models.architectures.decoder import DecoderLayer, positions_of
from models.architectures.encoder import EncoderLayer
from models.architectures.state import Embedded, EncoderInputs, Inputs, Seq2SeqState, StackState, TextInputs
from models.layers.attention_bias import CROSS_ATTENTION, ScoreBiasRule
from models.layers.embedding import OutputHead, StackInput, TokenEmbedding
from models.layers.factory import LayerFactory
from models.layers.feed_forward import dropout
from models.layers.heads import EncoderOutputs
from models.layers.position import RelativeBiasTables


def embed_both(embedding: TokenEmbedding, inputs: Inputs) -> Embedded:
    return Embedded(embedding(inputs.encoder_ids), embedding(inputs.decoder_ids), inputs.encoder_mask)


def add_bias_tables(tables: RelativeBiasTables, embedded: Embedded) -> Seq2SeqState:
    bias_tables = tables(embedded.encoder_mask)
    return Seq2SeqState(embedded.encoder_hidden, embedded.decoder_hidden, bias_tables, embedded.encoder_mask)


def run_encoder_layer(rule: ScoreBiasRule | None, layer: EncoderLayer, state: Seq2SeqState) -> Seq2SeqState:
    hidden, mask = state.encoder_hidden, state.encoder_mask
    if rule is not None and state.encoder_bias is None:
        num_tokens = hidden.shape[1]
        state = state._replace(encoder_bias=rule.make(state.bias_tables, mask, num_tokens, num_tokens, hidden.dtype))
    return state._replace(encoder_hidden=layer(hidden, mask, state.encoder_bias))


def norm_encoder(probability: float, norm: nn.Module, state: Seq2SeqState) -> Seq2SeqState:
    return state._replace(encoder_hidden=dropout(norm(state.encoder_hidden), probability, norm.training))


def run_decoder_layer(rule: ScoreBiasRule | None, layer: DecoderLayer, state: Seq2SeqState) -> Seq2SeqState:
    hidden, encoder, tables = state.decoder_hidden, state.encoder_hidden, state.bias_tables
    num_tokens = hidden.shape[1]
    if rule is not None and state.self_bias is None:
        state = state._replace(self_bias=rule.make(tables, None, num_tokens, num_tokens, hidden.dtype))
    if state.cross_bias is None:
        cross_bias = CROSS_ATTENTION.make(tables, state.encoder_mask, num_tokens, encoder.shape[1], hidden.dtype)
        state = state._replace(cross_bias=cross_bias)
    return state._replace(decoder_hidden=layer(hidden, state.self_bias, None, encoder, state.cross_bias))


def norm_decoder(probability: float, norm: nn.Module, state: Seq2SeqState) -> Seq2SeqState:
    return state._replace(decoder_hidden=dropout(norm(state.decoder_hidden), probability, norm.training))


def embed_text(embedding: TokenEmbedding, inputs: TextInputs) -> StackState:
    # a decoder needs three of the five fields; the others repeat the mask: integers, so no gradients are sent for them
    return StackState(embedding(inputs.ids), inputs.mask, inputs.mask, inputs.mask, inputs.mask)


def embed_encoder(embedding: TokenEmbedding, inputs: EncoderInputs) -> StackState:
    return StackState(embedding(inputs.ids), inputs.mask, inputs.mask, inputs.type_ids, inputs.mlm_positions)


def add_text_tables(tables: RelativeBiasTables, state: StackState) -> StackState:
    return state._replace(bias_tables=tables(state.mask))


def begin_text(module: StackInput, state: StackState) -> StackState:
    if module.positions is None:
        return state._replace(hidden=module(state.hidden))
    module.positions.check(state.hidden.shape[1])
    return state._replace(hidden=module(state.hidden, positions=positions_of(state.mask)))


def run_stack_layer(rule: ScoreBiasRule | None, layer: EncoderLayer, state: StackState) -> StackState:
    state = _with_stack_bias(rule, state)
    return state._replace(hidden=layer(state.hidden, state.mask, state.bias))


def run_text_layer(rule: ScoreBiasRule | None, layer: DecoderLayer, state: StackState) -> StackState:
    state = _with_stack_bias(rule, state)
    return state._replace(hidden=layer(state.hidden, state.bias, state.mask))


def _with_stack_bias(rule: ScoreBiasRule | None, state: StackState) -> StackState:
    if rule is None or state.bias is not None:
        return state
    num_tokens = state.hidden.shape[1]
    return state._replace(bias=rule.make(state.bias_tables, state.mask, num_tokens, num_tokens, state.hidden.dtype))


def norm_stack(probability: float, norm: nn.Module, state: StackState) -> StackState:
    return state._replace(hidden=dropout(norm(state.hidden), probability, norm.training))


def run_tied_mlm(factory: LayerFactory, embedding: TokenEmbedding, outputs: EncoderOutputs) -> EncoderOutputs:
    assert outputs.mlm is not None
    return outputs._replace(mlm=factory.tied_logits(outputs.mlm, embedding.weight, outputs.mlm_bias))


def run_mlm(head: OutputHead, outputs: EncoderOutputs) -> EncoderOutputs:
    assert outputs.mlm_bias is not None
    return outputs._replace(mlm=head(outputs.mlm) + outputs.mlm_bias.float())
