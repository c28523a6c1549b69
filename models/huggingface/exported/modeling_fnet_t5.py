"""The FNet-T5 hybrid for `transformers`: a Fourier encoder and an attention decoder. Imports torch and transformers only.

This file is stored with exported weights and loaded with `trust_remote_code=True`. Modules have the names of the weights. The
model pads its inputs to `config.encoder_length`, because the Fourier basis depends on the length; pad batches on the right.
FNet: arXiv:2105.03824. T5: arXiv:1910.10683.

Shapes: B batch, N encoder tokens, M decoder tokens, K keys, D width, H heads, E width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from .configuration_fnet_t5 import FNetT5Config
from .layers_fnet_t5 import Attention, EncoderLayer, FeedForward, FNetInput, FNetLayer, RMSNorm, Settings


class DecoderLayer(nn.Module):
    def __init__(self, s: Settings, layer: int) -> None:
        super().__init__()
        self.layer, self.dropout = layer, s.dropout
        self.self_attention_norm = RMSNorm(s)
        self.self_attention = Attention(s)
        self.cross_attention_norm = RMSNorm(s)
        self.cross_attention = Attention(s)
        self.feed_forward_norm = RMSNorm(s)
        self.feed_forward = FeedForward(s, s.d_ff)

    def forward(
        self, x: Tensor, bias: Tensor, encoder: Tensor, encoder_bias: Tensor, cache: EncoderDecoderCache | None
    ) -> Tensor:
        h = self.self_attention_norm(x)
        keys, values = self.self_attention.keys_values(h)
        if cache is not None:
            keys, values = cache.self_attention_cache.update(keys, values, self.layer)
        x = x + F.dropout(self.self_attention(h, keys, values, bias), self.dropout, self.training)
        if cache is not None and cache.is_updated.get(self.layer):
            known = cache.cross_attention_cache.layers[self.layer]
            keys, values = known.keys, known.values
        else:
            keys, values = self.cross_attention.keys_values(encoder)
            if cache is not None:
                cache.cross_attention_cache.update(keys, values, self.layer)
                cache.is_updated[self.layer] = True
        h = self.cross_attention_norm(x)
        x = x + F.dropout(self.cross_attention(h, keys, values, encoder_bias), self.dropout, self.training)
        return x + F.dropout(self.feed_forward(self.feed_forward_norm(x)), self.dropout, self.training)


class Embedding(nn.Module):
    def __init__(self, s: Settings) -> None:
        super().__init__()
        self.tokens = nn.Embedding(s.vocab_size, s.d_model)


class RelativeBias(nn.Module):
    """T5's tables of one scalar per head and bucket of distance, shared by the layers of a stack."""

    def __init__(self, s: Settings) -> None:
        super().__init__()
        self.num_buckets, self.max_distance = s.num_buckets, s.max_distance
        if any(s.layer_attends(layer) for layer in range(s.num_encoder_layers)):
            self.encoder = nn.Parameter(torch.zeros(s.num_buckets, s.num_heads))
        self.decoder = nn.Parameter(torch.zeros(s.num_buckets, s.num_heads))

    def bias(self, table: Tensor, num_queries: int, num_keys: int, bidirectional: bool) -> Tensor:
        """(1, H, Q, K); the last query has the position of the last key."""
        queries = torch.arange(num_keys - num_queries, num_keys, device=table.device)
        distance = torch.arange(num_keys, device=table.device)[None, :] - queries[:, None]
        return table[self.bucket(distance, bidirectional)].permute(2, 0, 1).unsqueeze(0)

    def bucket(self, distance: Tensor, bidirectional: bool) -> Tensor:
        num_buckets, bucket = self.num_buckets, torch.zeros_like(distance)
        if bidirectional:
            num_buckets //= 2
            bucket = (distance > 0).long() * num_buckets
            distance = distance.abs()
        else:
            distance = (-distance).clamp(min=0)
        exact = num_buckets // 2
        growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (growth * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
        return bucket + torch.where(distance < exact, distance, far)


def hide(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(…, K) with 0 at keys that must not be read → an additive bias; finite, so that a row without tokens gives no NaN."""
    return (mask == 0).to(dtype) * torch.finfo(dtype).min


class Encoder(nn.Module):
    main_input_name = "input_ids"

    def __init__(self, s: Settings, encoder_length: int, shared: tuple[Embedding, RelativeBias]) -> None:
        super().__init__()
        self.encoder_length, self.dropout = encoder_length, s.dropout
        self.shared = shared  # in a tuple, so that only the whole model registers these modules
        is_fnet = s.encoder_block == "fnet"
        kind = FNetLayer if is_fnet else EncoderLayer
        if is_fnet:
            self.input = FNetInput(s)
        self.layers = nn.ModuleList(kind(s, layer) for layer in range(s.num_encoder_layers))
        if not is_fnet:  # FNet's layers end with a norm
            self.final_norm = RMSNorm(s)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        return_dict: bool | None = None,
        **options: Any,
    ) -> BaseModelOutput:
        embedding, relative_bias = self.shared
        if inputs_embeds is None:
            inputs_embeds = embedding.tokens(input_ids)
        num_tokens = inputs_embeds.shape[1]
        if num_tokens > self.encoder_length:
            raise ValueError(f"the input has {num_tokens} tokens, the model was trained on {self.encoder_length}: shorten it")
        if attention_mask is None:
            attention_mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        padding = self.encoder_length - num_tokens
        x = F.pad(inputs_embeds, (0, 0, 0, padding))
        x = F.dropout(self.input(x) if hasattr(self, "input") else x, self.dropout, self.training)
        mask = F.pad(attention_mask, (0, padding))
        bias = None
        if hasattr(relative_bias, "encoder"):
            bias = relative_bias.bias(relative_bias.encoder, self.encoder_length, self.encoder_length, True)
            bias = bias + hide(mask[:, None, None, :], bias.dtype)
        for layer in self.layers:
            x = layer(x, mask, bias)
        if hasattr(self, "final_norm"):
            x = F.dropout(self.final_norm(x), self.dropout, self.training)
        return BaseModelOutput(last_hidden_state=x[:, :num_tokens])


class Decoder(nn.Module):
    def __init__(self, s: Settings) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(s, layer) for layer in range(s.num_decoder_layers))
        self.final_norm = RMSNorm(s)


class Head(nn.Module):
    def __init__(self, s: Settings) -> None:
        super().__init__()
        self.projection = nn.Linear(s.d_model, s.vocab_size, bias=False)


class FNetT5ForConditionalGeneration(PreTrainedModel, GenerationMixin):
    config_class = FNetT5Config
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]  # noqa: RUF012

    def __init__(self, config: FNetT5Config) -> None:
        super().__init__(config)
        s = Settings(config)
        self.dropout, self.head_scale = s.dropout, s.head_scale
        self.embedding = Embedding(s)
        self.relative_bias = RelativeBias(s)
        self.encoder = Encoder(s, config.encoder_length, (self.embedding, self.relative_bias))
        self.decoder = Decoder(s)
        if not s.tie_embeddings:
            self.head = Head(s)
        self.post_init()

    def get_encoder(self, *_: Any, **__: Any) -> nn.Module:
        return self.encoder

    def get_decoder(self) -> nn.Module:
        return self.decoder

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding.tokens

    def set_input_embeddings(self, new: nn.Module) -> None:
        self.embedding.tokens = new  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module | None:
        return self.head.projection if hasattr(self, "head") else None

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """The labels shifted right by one, after the start token."""
        shifted = F.pad(labels, (1, -1), value=self.config.decoder_start_token_id)
        return shifted.masked_fill(shifted == -100, self.config.pad_token_id)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **options: Any,
    ) -> Any:
        """fp32 logits (B, M, V); with `labels` (B, M), -100 at positions without loss, also the mean loss in nats."""
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, inputs_embeds)
        encoder = encoder_outputs[0]  # (B, N, D)
        if attention_mask is None:
            attention_mask = torch.ones(encoder.shape[:2], dtype=torch.long, device=encoder.device)
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if decoder_input_ids is None:
            raise ValueError("give decoder_input_ids, or labels to train on")
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())

        num_new = decoder_input_ids.shape[1]
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        x = F.dropout(self.embedding.tokens(decoder_input_ids), self.dropout, self.training)  # (B, M, D)
        bias = self.relative_bias.bias(self.relative_bias.decoder, num_new, past + num_new, False)
        seen = torch.ones(num_new, past + num_new, device=x.device).tril(past)
        bias = bias + hide(seen, bias.dtype)
        encoder_bias = hide(attention_mask[:, None, None, :], x.dtype)
        for layer in self.decoder.layers:
            x = layer(x, bias, encoder, encoder_bias, past_key_values)
        x = F.dropout(self.decoder.final_norm(x), self.dropout, self.training)
        if hasattr(self, "head"):
            logits = self.head.projection(x).float()
        else:
            logits = F.linear(x * self.head_scale, self.embedding.tokens.weight).float()

        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        output = Seq2SeqLMOutput(loss=loss, logits=logits, past_key_values=past_key_values, encoder_last_hidden_state=encoder)
        return output.to_tuple() if return_dict is False else output
