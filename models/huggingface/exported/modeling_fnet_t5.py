"""The FNet-T5 hybrid for `transformers`: a Fourier encoder and an attention decoder. Imports torch and transformers only.

This file is stored with exported weights and loaded with `trust_remote_code=True`. The Fourier basis depends on the length,
so the transform always has `config.encoder_length` tokens; inputs may be padded on either side, by any amount.
An argument that a `forward` does not name is an error: there is no catch-all.
FNet: arXiv:2105.03824. T5: arXiv:1910.10683.

Shapes: B batch, N encoder tokens, M decoder tokens, K keys, D width, H heads, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.utils import logging

from .configuration_fnet_t5 import FNetT5Config
from .layers_fnet_t5 import (
    INIT_STD,
    DecoderLayer,
    Embedding,
    EncoderLayer,
    FNetInput,
    FNetLayer,
    LearnedPositions,
    RelativeBias,
    RMSNorm,
    linear,
)

logger = logging.get_logger(__name__)


class Wanted(NamedTuple):
    """What a call returns, from its arguments or else from the configuration."""

    attentions: bool
    hidden_states: bool
    as_dict: bool

    @classmethod
    def of(cls, config: FNetT5Config, attentions: bool | None, hidden_states: bool | None, return_dict: bool | None) -> Wanted:
        if not isinstance(hidden_states, bool | None):
            raise ValueError(f"output_hidden_states is {hidden_states!r}: give True or False; all of them are returned")
        return cls(
            config.output_attentions if attentions is None else attentions,
            config.output_hidden_states if hidden_states is None else hidden_states,
            config.return_dict if return_dict is None else return_dict,
        )


def seq2seq_loss(logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross-entropy in nats: the mean over the labels that are not -100, or their sum over `num_items_in_batch`, which
    Trainer counts over all micro-batches of a step. `model.loss_function` can be set to another function of these names."""
    labels = labels.to(logits.device).flatten()
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = F.cross_entropy(logits.view(-1, vocab_size), labels, ignore_index=-100, reduction=reduction)
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(loss.device)
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def key_mask(mask: Tensor | None, batch_and_keys: tuple[int, int], name: str) -> Tensor | None:
    """A mask (B, K) as bool, True at tokens. Raises ValueError for another shape."""
    if mask is not None and tuple(mask.shape) != batch_and_keys:
        raise ValueError(f"{name} has shape {tuple(mask.shape)}: (batch, tokens) is {batch_and_keys} here")
    return None if mask is None else mask != 0


def score_bias(bias: Tensor, readable: Tensor) -> Tensor:
    """The bias where keys are readable, else the lowest finite number, so that a row without tokens gives no NaN."""
    return torch.where(readable, bias, torch.finfo(bias.dtype).min)


class Encoder(nn.Module):
    """`shared` has the embedding and the relative bias of the whole model, for calls of the encoder by itself."""

    main_input_name = "input_ids"

    def __init__(self, config: FNetT5Config, shared: tuple[Embedding, RelativeBias]) -> None:
        super().__init__()
        self.config, self.dropout = config, config.dropout
        self.shared = shared  # in a tuple, so that only the whole model registers these modules
        self.gradient_checkpointing = False
        is_fnet = config.encoder_block == "fnet"
        kind = FNetLayer if is_fnet else EncoderLayer
        self.input = FNetInput(config) if is_fnet else None
        self.layers = nn.ModuleList(kind(config, layer) for layer in range(config.num_encoder_layers))
        self.final_norm = None if is_fnet else RMSNorm(config)  # FNet's layers end with a norm

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        position_bias: Tensor | None = None,
    ) -> Any:
        """`attentions` has the weights of the layers that have attention, in order: FNet's layers have none. The model gives
        inputs_embeds and position_bias, because in a replica of DataParallel `shared` is on another device."""
        wanted = Wanted.of(self.config, output_attentions, output_hidden_states, return_dict)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        embedding, relative_bias = self.shared
        x = embedding.tokens(input_ids) if inputs_embeds is None else inputs_embeds
        num_tokens = x.shape[1]
        if num_tokens > self.config.encoder_length:
            raise ValueError(
                f"the input has {num_tokens} tokens, the model was trained on {self.config.encoder_length}: shorten it"
            )
        mask = key_mask(attention_mask, (x.shape[0], num_tokens), "attention_mask")
        start = self._start(mask)
        bias = relative_bias.of_encoder(num_tokens, x.device) if position_bias is None else position_bias
        if bias is not None and mask is not None:
            bias = score_bias(bias, mask[:, None, None, :])
        x = F.dropout(x if self.input is None else self.input(x, start), self.dropout, self.training)
        states, attentions = [x], []
        for layer in self.layers:
            x, weights = layer(x, mask, start, bias, wanted.attentions)
            states.append(x)
            if weights is not None:
                attentions.append(weights)
        if self.final_norm is not None:
            x = F.dropout(self.final_norm(x), self.dropout, self.training)
        output = BaseModelOutput(
            last_hidden_state=x,
            hidden_states=(*states[:-1], x) if wanted.hidden_states else None,
            attentions=tuple(attentions) if wanted.attentions else None,
        )
        return output if wanted.as_dict else output.to_tuple()

    def _start(self, mask: Tensor | None) -> Tensor | None:
        """(B, 1): the place of each row's first token; None if that is 0 in all rows."""
        if mask is None or (not torch.compiler.is_compiling() and bool(mask[:, 0].all())):
            return None
        return (mask.cumsum(-1) == 0).sum(-1, keepdim=True)


class Decoder(nn.Module):
    def __init__(self, config: FNetT5Config) -> None:
        super().__init__()
        self.config, self.dropout = config, config.dropout
        self.gradient_checkpointing = False
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_decoder_layers))
        self.final_norm = RMSNorm(config)

    def forward(
        self,
        inputs_embeds: Tensor,
        encoder_hidden_states: Tensor,
        score_bias: Tensor,
        encoder_bias: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """The biases are added to the scores of self-attention and cross-attention: `decoder_bias`, `hide_padding`."""
        x = F.dropout(inputs_embeds, self.dropout, self.training)
        states, attentions, cross_attentions = [x], [], []
        for layer in self.layers:
            x, weights, cross_weights = layer(
                x, score_bias, encoder_hidden_states, encoder_bias, output_attentions, past_key_values=past_key_values
            )
            states.append(x)
            attentions.append(weights)
            cross_attentions.append(cross_weights)
        x = F.dropout(self.final_norm(x), self.dropout, self.training)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=x,
            past_key_values=past_key_values,
            hidden_states=(*states[:-1], x) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(cross_attentions) if output_attentions else None,
        )

    def cache(self, given: EncoderDecoderCache | None, use_cache: bool) -> EncoderDecoderCache | None:
        """The cache to use: the given one, a new one, or none."""
        if given is not None and not isinstance(given, EncoderDecoderCache):
            raise ValueError(
                f"past_key_values is a {type(given).__name__}: give "
                "transformers.EncoderDecoderCache(self_attention_cache, cross_attention_cache)"
            )
        if self.training and any(layer.gradient_checkpointing for layer in self.layers):
            if given is not None:
                raise ValueError("past_key_values cannot be used with gradient checkpointing: leave it out, or call eval()")
            if use_cache:
                logger.warning_once("use_cache=True has no effect with gradient checkpointing: no cache is returned")
            return None
        if given is None and use_cache:
            return EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        return given


def hide_padding(mask: Tensor | None, encoder: Tensor) -> Tensor | None:
    """What is added to the scores of cross-attention, (B, 1, 1, N), from a mask (B, N)."""
    tokens = key_mask(mask, (encoder.shape[0], encoder.shape[1]), "attention_mask")
    return None if tokens is None else score_bias(encoder.new_zeros(()), tokens[:, None, None, :])


def decoder_bias(relative_bias: RelativeBias, x: Tensor, mask: Tensor | None, cache: EncoderDecoderCache | None) -> Tensor:
    """(1 or B, H, M, K) of self-attention: the relative bias, and the lowest number at the future and at padding. The mask is
    (B, tokens in the cache + M), or of four dimensions as `generate` prepares it."""
    num_new, num_keys = x.shape[1], x.shape[1]
    past: Any = 0
    if cache is not None:
        past = cache.get_seq_length()
        past = past.clone() if isinstance(past, Tensor) else past  # a static cache counts it up in place
        layers = cache.self_attention_cache.layers
        # a static cache returns all its keys, of which the last are not filled yet
        static = getattr(layers[0], "max_cache_len", None) if layers else None
        num_keys = past + num_new if static is None else static
    keys = torch.arange(num_keys, device=x.device)
    queries = torch.arange(num_new, device=x.device) + past
    readable = keys[None, :] <= queries[:, None]  # (M, K)
    bias = relative_bias("decoder", queries, keys)
    if mask is not None and mask.ndim == 4:
        if mask.dtype == torch.bool:
            return score_bias(bias, readable & mask)
        return score_bias(bias + mask, readable)  # additive
    if mask is not None:
        seen = int(past) + num_new
        tokens = key_mask(mask, (x.shape[0], seen), "decoder_attention_mask")
        if tokens is not None:
            readable = readable & F.pad(tokens, (0, num_keys - seen))[:, None, None, :]
    return score_bias(bias, readable)


class Head(nn.Module):
    def __init__(self, config: FNetT5Config) -> None:
        super().__init__()
        self.projection = linear(config, config.d_model, config.vocab_size)


class FNetT5PreTrainedModel(PreTrainedModel):
    """What the classes of this file share."""

    config_class = FNetT5Config
    base_model_prefix = "model"  # as in T5, no class has a module of this name: all have the same names of weights
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["EncoderLayer", "FNetLayer", "DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    def get_encoder(self, *_: Any, **__: Any) -> nn.Module:
        return self.encoder

    def get_decoder(self) -> nn.Module:
        return self.decoder

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding.tokens

    def set_input_embeddings(self, new: nn.Module) -> None:
        self.embedding.tokens = new  # type: ignore[assignment]

    def _add_stacks(self, config: FNetT5Config, has_decoder: bool = True) -> None:
        self.embedding, self.relative_bias = Embedding(config), RelativeBias(config, has_decoder)
        self.encoder = Encoder(config, (self.embedding, self.relative_bias))
        if has_decoder:
            self.decoder = Decoder(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """T5's initial values, as in the FNet-T5 project."""
        std = self.config.std(self.config.d_model**-0.5)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.std(1.0))
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=getattr(module, INIT_STD, std))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, RMSNorm | nn.LayerNorm):
            nn.init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                nn.init.zeros_(module.bias)
        elif isinstance(module, RelativeBias):
            for table in module.parameters(recurse=False):
                nn.init.normal_(table, std=std)
        elif isinstance(module, LearnedPositions):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, FNetInput):
            nn.init.normal_(module.types, std=std)

    def _run_encoder(
        self,
        wanted: Wanted,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        encoder_outputs: Any,
    ) -> BaseModelOutput:
        if encoder_outputs is None:
            if (input_ids is None) == (inputs_embeds is None):
                raise ValueError("give exactly one of input_ids and inputs_embeds")
            x = self.embedding.tokens(input_ids) if inputs_embeds is None else inputs_embeds
            return self.encoder(
                inputs_embeds=x,
                attention_mask=attention_mask,
                output_attentions=wanted.attentions,
                output_hidden_states=wanted.hidden_states,
                return_dict=True,
                position_bias=self.relative_bias.of_encoder(x.shape[1], x.device),
            )
        if input_ids is not None or inputs_embeds is not None:
            raise ValueError("give encoder_outputs, or input_ids or inputs_embeds, and not both")
        if not isinstance(encoder_outputs, tuple | list):
            return encoder_outputs
        names = ["last_hidden_state"]
        names += ["hidden_states"] * (len(encoder_outputs) > 1) + ["attentions"] * (len(encoder_outputs) > 2)
        return BaseModelOutput(**dict(zip(names, encoder_outputs, strict=True)))

    def _run_decoder(
        self,
        wanted: Wanted,
        encoder: Tensor,
        attention_mask: Tensor | None,
        decoder_input_ids: Tensor | None,
        decoder_inputs_embeds: Tensor | None,
        decoder_attention_mask: Tensor | None,
        past_key_values: EncoderDecoderCache | None,
        use_cache: bool | None,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        if (decoder_input_ids is None) == (decoder_inputs_embeds is None):
            raise ValueError(
                "give exactly one of decoder_input_ids and decoder_inputs_embeds, or with a language model head the labels"
            )
        x = self.embedding.tokens(decoder_input_ids) if decoder_inputs_embeds is None else decoder_inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        cache = self.decoder.cache(past_key_values, use_cache)
        return self.decoder(
            x,
            encoder,
            decoder_bias(self.relative_bias, x, decoder_attention_mask, cache),
            hide_padding(attention_mask, encoder),
            past_key_values=cache,
            output_attentions=wanted.attentions,
            output_hidden_states=wanted.hidden_states,
        )


def seq2seq_fields(encoder: BaseModelOutput, decoder: BaseModelOutputWithPastAndCrossAttentions) -> dict[str, Any]:
    """The fields that the outputs of the two encoder-decoder classes share."""
    return {
        "past_key_values": decoder.past_key_values,
        "decoder_hidden_states": decoder.hidden_states,
        "decoder_attentions": decoder.attentions,
        "cross_attentions": decoder.cross_attentions,
        "encoder_last_hidden_state": encoder.last_hidden_state,
        "encoder_hidden_states": encoder.hidden_states,
        "encoder_attentions": encoder.attentions,
    }


class FNetT5EncoderModel(FNetT5PreTrainedModel):
    """The encoder alone, for `AutoModelForTextEncoding`."""

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^head\.", r"^relative_bias\.decoder"]  # noqa: RUF012

    def __init__(self, config: FNetT5Config) -> None:
        super().__init__(config)
        self._add_stacks(config, has_decoder=False)
        self.post_init()

    def get_decoder(self) -> nn.Module:
        raise AttributeError("FNetT5EncoderModel has no decoder: load the folder with AutoModel")

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        wanted = Wanted.of(self.config, output_attentions, output_hidden_states, return_dict)
        output = self._run_encoder(wanted, input_ids, attention_mask, inputs_embeds, None)
        return output if wanted.as_dict else output.to_tuple()


class FNetT5Model(FNetT5PreTrainedModel):
    """Encoder and decoder without the head, for `AutoModel`."""

    _keys_to_ignore_on_load_unexpected = [r"^head\."]  # noqa: RUF012

    def __init__(self, config: FNetT5Config) -> None:
        super().__init__(config)
        self._add_stacks(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        wanted = Wanted.of(self.config, output_attentions, output_hidden_states, return_dict)
        encoder = self._run_encoder(wanted, input_ids, attention_mask, inputs_embeds, encoder_outputs)
        decoder = self._run_decoder(
            wanted,
            encoder[0],
            attention_mask,
            decoder_input_ids,
            decoder_inputs_embeds,
            decoder_attention_mask,
            past_key_values,
            use_cache,
        )
        output = Seq2SeqModelOutput(last_hidden_state=decoder.last_hidden_state, **seq2seq_fields(encoder, decoder))
        return output if wanted.as_dict else output.to_tuple()


class FNetT5ForConditionalGeneration(FNetT5PreTrainedModel, GenerationMixin):
    """Encoder, decoder and language model head."""

    # Trainer divides the loss by the number of micro-batches unless the model does it by num_items_in_batch
    accepts_loss_kwargs = True
    _tied_weights_keys = {"head.projection.weight": "embedding.tokens.weight"}  # noqa: RUF012

    def __init__(self, config: FNetT5Config) -> None:
        super().__init__(config)
        self._add_stacks(config)
        self.head = Head(config)
        self.loss_function = seq2seq_loss
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.head.projection

    def set_output_embeddings(self, new: nn.Module) -> None:
        self.head.projection = new  # type: ignore[assignment]

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """The labels shifted right by one, after the start token; padding where the loss is not taken (-100)."""
        for name in ("decoder_start_token_id", "pad_token_id"):
            if getattr(self.config, name, None) is None:
                raise ValueError(f"config.{name} is None: set it, or give decoder_input_ids beside labels")
        shifted = F.pad(labels, (1, -1), value=self.config.decoder_start_token_id)
        return shifted.masked_fill(shifted == -100, self.config.pad_token_id)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """fp32 logits (B, M, V); with `labels` (B, M), -100 at positions without loss, also the loss in nats."""
        wanted = Wanted.of(self.config, output_attentions, output_hidden_states, return_dict)
        encoder = self._run_encoder(wanted, input_ids, attention_mask, inputs_embeds, encoder_outputs)
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        decoder = self._run_decoder(
            wanted,
            encoder[0],
            attention_mask,
            decoder_input_ids,
            decoder_inputs_embeds,
            decoder_attention_mask,
            past_key_values,
            use_cache,
        )
        x = decoder.last_hidden_state
        if self.config.scale_decoder_outputs:
            x = x * self.config.d_model**-0.5
        logits = self.head.projection(x).float()
        loss = None
        if labels is not None:  # Trainer gives num_items_in_batch without labels when it smooths labels itself
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=logits.shape[-1], num_items_in_batch=num_items_in_batch
            )
        output = Seq2SeqLMOutput(loss=loss, logits=logits, **seq2seq_fields(encoder, decoder))
        return output if wanted.as_dict else output.to_tuple()
