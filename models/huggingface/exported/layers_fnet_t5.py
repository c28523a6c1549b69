"""Encoder and decoder layers of the FNet-T5 hybrid for `transformers`. Imports torch and transformers only.

Used by `modeling_fnet_t5.py` in the same folder. Shapes: B batch, N tokens, K keys, D width, H heads, E width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_fnet_t5 import FNetT5Config

FNET_TYPES, FNET_EPS = 4, 1e-12  # of google/fnet-base


class Settings:
    """The settings of `config.fnet_t5` as attributes."""

    def __init__(self, config: FNetT5Config) -> None:
        self.__dict__.update(config.fnet_t5)
        self.d_model, self.num_heads, self.vocab_size = config.d_model, config.num_heads, config.vocab_size

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"config.json holds no fnet_t5.{name}: the folder was exported by another version")

    def layer_attends(self, layer: int) -> bool:
        total, attending = self.num_encoder_layers, self.num_attention_layers
        if self.mixing == "attention":
            return True
        if attending == 0:
            return False
        if self.attention_layout == "bottom":
            return layer < attending
        if self.attention_layout == "middle":
            return total - attending <= 2 * layer < total + attending
        if self.attention_layout == "mixed":
            return layer % (total // attending) == 0
        return layer >= total - attending

    @property
    def head_scale(self) -> float:
        """Scale before a tied head: it compensates T5's N(0, 1) embedding. An embedding that starts small needs none."""
        return 1.0 if self.init_std else self.d_model**-0.5


class RMSNorm(nn.Module):
    def __init__(self, s: Settings) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(s.d_model))
        self.eps = s.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class FeedForward(nn.Module):
    def __init__(self, s: Settings, d_ff: int, kind: str = "", bias: bool = False) -> None:
        super().__init__()
        self.kind, self.dropout = kind or s.feed_forward, s.dropout
        if self.kind in ("gated_gelu", "swiglu"):
            self.gate = nn.Linear(s.d_model, d_ff, bias=bias)
        self.up = nn.Linear(s.d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, s.d_model, bias=bias)

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

    def __init__(self, s: Settings) -> None:
        super().__init__()
        inner = s.num_heads * s.d_kv
        self.d_kv, self.dropout = s.d_kv, s.dropout
        self.query = nn.Linear(s.d_model, inner, bias=False)
        self.key = nn.Linear(s.d_model, inner, bias=False)
        self.value = nn.Linear(s.d_model, inner, bias=False)
        self.output = nn.Linear(inner, s.d_model, bias=False)

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.key(source)), self.split(self.value(source))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            self.split(self.query(x)), keys, values, attn_mask=bias.to(x.dtype), dropout_p=dropout, scale=1.0
        )
        return self.output(mixed.transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.d_kv)).transpose(1, 2)  # (B, H, K, E)


class AttentionMixing(nn.Module):
    def __init__(self, s: Settings) -> None:
        super().__init__()
        self.attention = Attention(s)

    def forward(self, x: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
        return self.attention(x, *self.attention.keys_values(x), bias)


class TransformMixing(nn.Module):
    """Real part of the 2-D DFT (or real minus imaginary part: Hartley) over tokens and features; padding is zeroed first."""

    def __init__(self, s: Settings, norm: str = "") -> None:
        super().__init__()
        self.hartley = s.mixing == "hartley"
        self.norm = norm or s.fourier_norm

    def forward(self, x: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
        spectrum = torch.fft.fft2((x * mask.unsqueeze(-1).to(x.dtype)).float(), norm=self.norm)
        return (spectrum.real - spectrum.imag if self.hartley else spectrum.real).to(x.dtype)


class IdentityMixing(nn.Module):
    def forward(self, x: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
        return x


class EncoderLayer(nn.Module):
    def __init__(self, s: Settings, layer: int) -> None:
        super().__init__()
        self.dropout, self.attends = s.dropout, s.layer_attends(layer)
        self.mixing_norm = RMSNorm(s)
        self.mixing: nn.Module
        if self.attends:
            self.mixing = AttentionMixing(s)
        else:
            self.mixing = IdentityMixing() if s.mixing == "identity" else TransformMixing(s)
        self.feed_forward_norm = RMSNorm(s)
        self.feed_forward = FeedForward(s, s.encoder_d_ff or s.d_ff)

    def forward(self, x: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
        mixed = self.mixing(self.mixing_norm(x), mask, bias)
        x = x + F.dropout(mixed, self.dropout if self.attends else 0.0, self.training)
        return x + F.dropout(self.feed_forward(self.feed_forward_norm(x)), self.dropout, self.training)


class FNetInput(nn.Module):
    """FNet's own beginning: learnt positions, the vector of segment type 0, a norm and a linear layer."""

    def __init__(self, s: Settings) -> None:
        super().__init__()
        self.positions = LearnedPositions(s)
        self.types = nn.Parameter(torch.zeros(FNET_TYPES, s.d_model))
        self.norm = nn.LayerNorm(s.d_model, eps=FNET_EPS)
        self.projection = nn.Linear(s.d_model, s.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.norm(x + self.positions.weight[: x.shape[1]] + self.types[0]))


class LearnedPositions(nn.Module):
    def __init__(self, s: Settings) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(s.max_length, s.d_model))


class FNetLayer(nn.Module):
    """FNet's block: post-norm, biases, GELU, no dropout after the transform."""

    def __init__(self, s: Settings, layer: int) -> None:
        super().__init__()
        self.dropout = s.dropout
        self.mixing_norm = nn.LayerNorm(s.d_model, eps=FNET_EPS)
        self.mixing = TransformMixing(s, norm="backward")
        self.feed_forward_norm = nn.LayerNorm(s.d_model, eps=FNET_EPS)
        self.feed_forward = FeedForward(s, s.encoder_d_ff or s.d_ff, "gelu_tanh", bias=True)

    def forward(self, x: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
        x = self.mixing_norm(x + self.mixing(x, mask, bias))
        return self.feed_forward_norm(x + F.dropout(self.feed_forward(x), self.dropout, self.training))
