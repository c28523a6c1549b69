"""Layers of the FNet-T5 hybrid for `transformers`. Imports torch and transformers only.

Used by `modeling_fnet_t5.py` in the same folder. Shapes: B batch, N encoder tokens, M decoder tokens, Q queries, K keys, D
width, H heads, E width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_fnet_t5 import FNetT5Config

FNET_TYPES, FNET_EPS = 4, 1e-12  # of google/fnet-base
INIT_STD = "init_std"


def linear(config: FNetT5Config, d_in: int, d_out: int, std: float | None = None, bias: bool = False) -> nn.Linear:
    """A linear layer that remembers the standard deviation of its initial weights (default: by fan-in)."""
    layer = nn.Linear(d_in, d_out, bias=bias)
    setattr(layer, INIT_STD, config.std(d_in**-0.5 if std is None else std))
    return layer


class RMSNorm(nn.Module):
    def __init__(self, config: FNetT5Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.d_model))
        self.eps = config.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class FeedForward(nn.Module):
    def __init__(self, config: FNetT5Config, d_ff: int, kind: str = "", bias: bool = False) -> None:
        super().__init__()
        self.kind, self.dropout = kind or config.feed_forward, config.dropout
        if self.kind in ("gated_gelu", "swiglu"):
            self.gate = linear(config, config.d_model, d_ff, bias=bias)
        self.up = linear(config, config.d_model, d_ff, bias=bias)
        self.down = linear(config, d_ff, config.d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        if self.kind == "gated_gelu":
            inner = F.gelu(self.gate(x), approximate="tanh") * up
        elif self.kind == "swiglu":
            inner = F.silu(self.gate(x)) * up
        elif self.kind == "relu":
            inner = F.relu(up)
        else:
            inner = F.gelu(up, approximate="tanh" if self.kind == "gelu_tanh" else "none")
        return self.down(F.dropout(inner, self.dropout, self.training))


class Attention(nn.Module):
    """T5's: scores are not divided by sqrt(E), a bias is added to them."""

    def __init__(self, config: FNetT5Config) -> None:
        super().__init__()
        width, inner = config.d_model, config.num_heads * config.d_kv
        self.config, self.dropout, self.d_kv = config, config.dropout, config.d_kv
        self.query = linear(config, width, inner, (width * config.d_kv) ** -0.5)
        self.key = linear(config, width, inner)
        self.value = linear(config, width, inner)
        self.output = linear(config, inner, width)

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.key(source)), self.split(self.value(source))

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, with_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(B, Q, D), and the weights (B, H, Q, K) if they are asked for; only the eager implementation computes them."""
        queries, dropout = self.split(self.query(x)), self.dropout if self.training else 0.0
        bias = None if bias is None else bias.to(x.dtype)
        weights, kind = None, self.config._attn_implementation
        if kind not in ("eager", "sdpa", None):
            raise ValueError(f"attn_implementation is {kind!r}: T5's bias is supported by 'eager' and 'sdpa' only")
        if with_weights or kind == "eager":
            scores = queries @ keys.transpose(2, 3)
            scores = scores if bias is None else scores + bias
            weights = F.dropout(scores.float().softmax(-1).to(x.dtype), dropout)
            mixed = weights @ values
        else:
            mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, dropout_p=dropout, scale=1.0)
        return self.output(mixed.transpose(1, 2).flatten(2)), weights if with_weights else None

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.d_kv)).transpose(1, 2)  # (B, H, K, E)


class AttentionMixing(nn.Module):
    def __init__(self, config: FNetT5Config) -> None:
        super().__init__()
        self.attention = Attention(config)

    def forward(
        self, x: Tensor, mask: Tensor | None, start: Tensor | None, bias: Tensor | None, with_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        return self.attention(x, *self.attention.keys_values(x), bias, with_weights)


class TransformMixing(nn.Module):
    """Real part of the 2-D DFT (or real minus imaginary part: Hartley) over tokens and features.

    Padding is zeroed before it. The transform has always `encoder_length` tokens, and each row begins at its first token:
    padding, on either side and of any amount, changes nothing.
    """

    def __init__(self, config: FNetT5Config, norm: str = "") -> None:
        super().__init__()
        self.is_hartley = config.mixing == "hartley"
        self.norm, self.length = norm or config.fourier_norm, config.encoder_length

    def forward(
        self, x: Tensor, mask: Tensor | None, start: Tensor | None, bias: Tensor | None, with_weights: bool
    ) -> tuple[Tensor, None]:
        """`mask` (B, N) is True at tokens; `start` (B, 1) is the place of the first token, None if it is 0 in all rows."""
        num_tokens, wide = x.shape[1], x.float()
        if mask is not None:
            wide = wide * mask.unsqueeze(-1)
        if start is not None:
            wide = _rotated(wide, start)
        spectrum = torch.fft.fft2(wide, s=(self.length, x.shape[-1]), norm=self.norm)
        mixed = (spectrum.real - spectrum.imag if self.is_hartley else spectrum.real)[:, :num_tokens]
        if start is not None:
            mixed = _rotated(mixed, -start)
        return mixed.to(x.dtype), None


def _rotated(x: Tensor, start: Tensor) -> Tensor:
    """Each row of x (B, N, D) rotated so that it begins with what is at `start` (B, 1)."""
    places = (torch.arange(x.shape[1], device=x.device) + start) % x.shape[1]  # (B, N)
    return x.gather(1, places.unsqueeze(-1).expand_as(x))


class IdentityMixing(nn.Module):
    def forward(
        self, x: Tensor, mask: Tensor | None, start: Tensor | None, bias: Tensor | None, with_weights: bool
    ) -> tuple[Tensor, None]:
        return x, None


class EncoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: FNetT5Config, layer: int) -> None:
        super().__init__()
        self.dropout, self.attends = config.dropout, config.layer_attends(layer)
        self.mixing_norm = RMSNorm(config)
        self.mixing: nn.Module
        if self.attends:
            self.mixing = AttentionMixing(config)
        else:
            self.mixing = IdentityMixing() if config.mixing == "identity" else TransformMixing(config)
        self.feed_forward_norm = RMSNorm(config)
        self.feed_forward = FeedForward(config, config.encoder_d_ff or config.d_ff)

    def forward(self, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor | None]:
        """`arguments` are those of the mixing."""
        mixed, weights = self.mixing(self.mixing_norm(x), *arguments)
        x = x + F.dropout(mixed, self.dropout if self.attends else 0.0, self.training)
        return x + F.dropout(self.feed_forward(self.feed_forward_norm(x)), self.dropout, self.training), weights


class FNetLayer(GradientCheckpointingLayer):
    """FNet's block: post-norm, biases, GELU, no dropout after the transform."""

    def __init__(self, config: FNetT5Config, layer: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.mixing_norm = nn.LayerNorm(config.d_model, eps=FNET_EPS)
        self.mixing = TransformMixing(config, norm="backward")
        self.feed_forward_norm = nn.LayerNorm(config.d_model, eps=FNET_EPS)
        self.feed_forward = FeedForward(config, config.encoder_d_ff or config.d_ff, "gelu_tanh", bias=True)

    def forward(self, x: Tensor, *arguments: Any) -> tuple[Tensor, None]:
        """`arguments` are those of the mixing."""
        x = self.mixing_norm(x + self.mixing(x, *arguments)[0])
        return self.feed_forward_norm(x + F.dropout(self.feed_forward(x), self.dropout, self.training)), None


class LearnedPositions(nn.Module):
    def __init__(self, config: FNetT5Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.num_positions, config.d_model))

    def forward(self, num_tokens: int, start: Tensor | None) -> Tensor:
        """(N, D), or (B, N, D) if rows begin at different places `start` (B, 1)."""
        if start is None:
            return self.weight[:num_tokens]
        return self.weight[(torch.arange(num_tokens, device=self.weight.device) - start).clamp(min=0)]


class FNetInput(nn.Module):
    """FNet's own beginning: learnt positions, the vector of segment type 0, a norm and a linear layer."""

    def __init__(self, config: FNetT5Config) -> None:
        super().__init__()
        self.positions = LearnedPositions(config)
        self.types = nn.Parameter(torch.zeros(FNET_TYPES, config.d_model))
        self.norm = nn.LayerNorm(config.d_model, eps=FNET_EPS)
        self.projection = linear(config, config.d_model, config.d_model, bias=True)

    def forward(self, x: Tensor, start: Tensor | None) -> Tensor:
        return self.projection(self.norm(x + self.positions(x.shape[1], start) + self.types[0]))


class Embedding(nn.Module):
    """The one table of both stacks, and of the head if it is tied."""

    def __init__(self, config: FNetT5Config) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)


class RelativeBias(nn.Module):
    """T5's tables of one scalar per head and bucket of distance, shared by the layers of a stack."""

    def __init__(self, config: FNetT5Config, has_decoder: bool = True) -> None:
        super().__init__()
        self.num_buckets, self.max_distance = config.num_buckets, config.max_distance
        self.encoder = nn.Parameter(torch.zeros(config.num_buckets, config.num_heads)) if config.encoder_attends else None
        self.decoder = nn.Parameter(torch.zeros(config.num_buckets, config.num_heads)) if has_decoder else None

    def forward(self, stack: str, queries: Tensor, keys: Tensor) -> Tensor | None:
        """(1, H, Q, K) from the positions (Q,) and (K,); None for a stack without a table."""
        table = self.encoder if stack == "encoder" else self.decoder
        if table is None:
            return None
        buckets = self.bucket(keys[None, :] - queries[:, None], stack == "encoder")
        return table[buckets].permute(2, 0, 1).unsqueeze(0)

    def of_encoder(self, num_tokens: int, device: torch.device) -> Tensor | None:
        """(1, H, N, N); None if no layer of the encoder has attention."""
        places = torch.arange(num_tokens, device=device)
        return self("encoder", places, places)

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


class DecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: FNetT5Config, layer: int) -> None:
        super().__init__()
        self.layer, self.dropout = layer, config.dropout
        self.self_attention_norm = RMSNorm(config)
        self.self_attention = Attention(config)
        self.cross_attention_norm = RMSNorm(config)
        self.cross_attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config)
        self.feed_forward = FeedForward(config, config.d_ff)

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        encoder: Tensor,
        encoder_bias: Tensor | None,
        with_weights: bool,
        past_key_values: EncoderDecoderCache | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The new hidden states, and the weights of self-attention and cross-attention."""
        h = self.self_attention_norm(x)
        keys, values = self.self_attention.keys_values(h)
        if past_key_values is not None:
            keys, values = past_key_values.self_attention_cache.update(keys, values, self.layer)
        mixed, weights = self.self_attention(h, keys, values, bias, with_weights)
        x = x + F.dropout(mixed, self.dropout, self.training)
        keys, values = self._encoder_keys_values(encoder, past_key_values)
        h = self.cross_attention_norm(x)
        mixed, cross_weights = self.cross_attention(h, keys, values, encoder_bias, with_weights)
        x = x + F.dropout(mixed, self.dropout, self.training)
        x = x + F.dropout(self.feed_forward(self.feed_forward_norm(x)), self.dropout, self.training)
        return x, weights, cross_weights

    def _encoder_keys_values(self, encoder: Tensor, cache: EncoderDecoderCache | None) -> tuple[Tensor, Tensor]:
        """Of the encoder's output; a cache keeps them after the first call."""
        if cache is not None and cache.is_updated.get(self.layer):
            known = cache.cross_attention_cache.layers[self.layer]
            return known.keys, known.values
        keys, values = self.cross_attention.keys_values(encoder)
        if cache is not None:
            keys, values = cache.cross_attention_cache.update(keys, values, self.layer)
            cache.is_updated[self.layer] = True
        return keys, values
