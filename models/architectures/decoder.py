"""One decoder layer: causal self-attention (or causal Fourier mixing), cross-attention where there is an encoder, feed-forward.

Pre-norm with residuals as in T5 and GPT-2, or post-norm. Shapes: B batch, M decoder tokens, N encoder tokens, K keys so far,
D model width, H heads on this rank, E width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.layers.attention import Attention
from models.layers.attention_bias import ScoreBias
from models.layers.factory import LayerFactory
from models.layers.feed_forward import FeedForward, dropout
from models.layers.norm import build_norm
from models.mixing.causal_fourier import CausalFourierMixing

KeysValues = tuple[Tensor, Tensor]

MIN_GROWTH = 64
"""Positions that a cache's buffer grows by at least."""


@dataclass(kw_only=True)
class LayerCache:
    """The cache of one decoder layer while it generates: its own keys and values so far, and those of the encoder's output.

    With causal Fourier mixing: the inputs of the mixing so far.
    """

    self_keys_values: KeysValues | None = None
    cross_keys_values: KeysValues | None = None
    mixed: Tensor | None = None
    buffer: KeysValues | None = None
    """Longer tensors, of which `self_keys_values` is a view: a further token is written after it. Concatenation would copy
    the whole cache for each token."""

    def extend(self, keys: Tensor, values: Tensor) -> KeysValues:
        if self.self_keys_values is None:
            self.self_keys_values = keys, values
            return keys, values
        past = self.self_keys_values[0].shape[2]
        length = past + keys.shape[2]
        if self.buffer is None or self.buffer[0].shape[2] < length:
            capacity = length + max(MIN_GROWTH, length // 4)
            self.buffer = _with_capacity(self.self_keys_values[0], capacity), _with_capacity(self.self_keys_values[1], capacity)
        for buffer, new in zip(self.buffer, (keys, values), strict=True):
            buffer[:, :, past:length] = new
        self.self_keys_values = self.buffer[0][:, :, :length], self.buffer[1][:, :, :length]
        return self.self_keys_values

    def extend_mixed(self, x: Tensor) -> Tensor:
        self.mixed = x if self.mixed is None else torch.cat([self.mixed, x], dim=1)
        return self.mixed

    def reorder(self, rows: Tensor, cross: bool) -> None:
        """Keep the given rows (R,) of the batch, in that order. `cross`: also of the encoder's keys and values."""
        if self.self_keys_values is not None:
            past = self.self_keys_values[0].shape[2]
            kept = self.buffer or self.self_keys_values
            kept = kept[0][rows], kept[1][rows]
            self.buffer = kept if self.buffer else None
            self.self_keys_values = kept[0][:, :, :past], kept[1][:, :, :past]
        if cross and self.cross_keys_values is not None:
            self.cross_keys_values = self.cross_keys_values[0][rows], self.cross_keys_values[1][rows]
        if self.mixed is not None:
            self.mixed = self.mixed[rows]


def _with_capacity(tensor: Tensor, capacity: int) -> Tensor:
    """(B, H, K, E) → (B, H, capacity, E) with the same first K positions."""
    result = tensor.new_empty((*tensor.shape[:2], capacity, tensor.shape[3]))
    result[:, :, : tensor.shape[2]] = tensor
    return result


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        block = config.decoder_block_config
        self.reads_encoder = not config.is_decoder_only
        self.pre_norm, self.dropout = block.pre_norm, config.dropout
        self.rotary = block.position == "rope"
        self.self_attention_norm = build_norm(block.norm, config.d_model, block.norm_eps)
        self.self_attention: nn.Module
        if config.decoder_mixing == "causal_fourier":
            self.self_attention = CausalFourierMixing(config.max_length, block.fourier_norm)
        else:
            self.self_attention = Attention(config, block, factory)
        if self.reads_encoder:
            self.cross_attention_norm = build_norm(block.norm, config.d_model, block.norm_eps)
            self.cross_attention = Attention(config, block, factory)
        self.feed_forward_norm = build_norm(block.norm, config.d_model, block.norm_eps)
        self.feed_forward = FeedForward(config, block, factory)

    def forward(
        self,
        hidden: Tensor,
        self_bias: ScoreBias | None,
        mask: Tensor | None = None,
        encoder: Tensor | None = None,
        cross_bias: ScoreBias | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """hidden (B, M, D), mask (B, K) of all keys so far or None if all are tokens, encoder (B, N, D) if there is one;
        returns (B, M, D). `self_bias` is None with causal Fourier mixing, `cross_bias` without an encoder.

        With a cache, `hidden` holds only the new positions.
        """
        x = self.self_attention_norm(hidden) if self.pre_norm else hidden
        hidden = hidden + dropout(self._mix(x, self_bias, mask, cache), self.dropout, self.training)
        if not self.pre_norm:
            hidden = self.self_attention_norm(hidden)
        if self.reads_encoder:
            assert encoder is not None
            assert cross_bias is not None
            x = self.cross_attention_norm(hidden) if self.pre_norm else hidden
            keys, values = self._encoder_keys_values(encoder, cache)
            hidden = hidden + dropout(self.cross_attention(x, keys, values, cross_bias), self.dropout, self.training)
            if not self.pre_norm:
                hidden = self.cross_attention_norm(hidden)
        x = self.feed_forward_norm(hidden) if self.pre_norm else hidden
        hidden = hidden + dropout(self.feed_forward(x), self.dropout, self.training)
        return hidden if self.pre_norm else self.feed_forward_norm(hidden)

    def _mix(self, x: Tensor, self_bias: ScoreBias | None, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        num_new = x.shape[1]
        if isinstance(self.self_attention, CausalFourierMixing):
            so_far = x if cache is None else cache.extend_mixed(x)
            return self.self_attention(so_far, mask, start=so_far.shape[1] - num_new)
        attention = self.self_attention
        assert isinstance(attention, Attention)
        assert self_bias is not None
        positions = None
        if self.rotary:
            past = 0 if cache is None or cache.self_keys_values is None else cache.self_keys_values[0].shape[2]
            positions = torch.arange(past, past + num_new, device=x.device)[None]
            if mask is not None:
                positions = positions_of(mask)[:, -num_new:]
        keys, values = attention.keys_values(x, positions)
        if cache is not None:
            keys, values = cache.extend(keys, values)
        return attention(x, keys, values, self_bias, positions)

    def _encoder_keys_values(self, encoder: Tensor, cache: LayerCache | None) -> KeysValues:
        if cache is None:
            return self.cross_attention.keys_values(encoder)
        if cache.cross_keys_values is None:
            cache.cross_keys_values = self.cross_attention.keys_values(encoder)
        return cache.cross_keys_values


def positions_of(mask: Tensor) -> Tensor:
    """Position (B, N) of every token among its row's tokens; padding may be on either side."""
    return ((mask > 0).cumsum(1) - 1).clamp(min=0)
