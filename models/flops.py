"""Forward FLOPs of each sublayer in closed form, a sequence at a time. A multiply-add counts 2; training is 3 x forward.

Causal self-attention is counted in full. The Fourier transform counts 2.5 N D (log2 N + log2 D), the usual count of a real FFT,
whatever computes it ("model FLOPs"). Norms, biases, activations and look-ups are not counted.

N encoder tokens, M decoder tokens, D model width, A width of all heads together, F feed-forward width, V padded vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.config import ModelConfig


@dataclass(frozen=True)
class Lengths:
    """Tokens of one sample as the two stacks see them, padding included."""

    encoder: int
    decoder: int


def fourier_mixing(num_tokens: int, d_model: int) -> float:
    return 2.5 * num_tokens * d_model * (math.log2(num_tokens) + math.log2(d_model))


def attention(config: ModelConfig, num_queries: int, num_keys: int) -> float:
    """Projections of queries and output, of keys and values, then scores and their product with the values."""
    d, a = config.d_model, config.inner_dim
    return 4 * num_queries * d * a + 4 * num_keys * d * a + 4 * num_queries * num_keys * a


def feed_forward(config: ModelConfig, num_tokens: int) -> float:
    matrices = 3 if config.feed_forward == "gated_gelu" else 2
    return 2 * matrices * num_tokens * config.d_model * config.d_ff


def encoder_layer(config: ModelConfig, layer: int, lengths: Lengths) -> float:
    n = lengths.encoder
    attends = config.encoder_layer_attends(layer)
    mixing = attention(config, n, n) if attends else fourier_mixing(n, config.d_model)
    return mixing + feed_forward(config, n)


def decoder_layer(config: ModelConfig, lengths: Lengths) -> float:
    m, n = lengths.decoder, lengths.encoder
    return attention(config, m, m) + attention(config, m, n) + feed_forward(config, m)


def output_head(config: ModelConfig, lengths: Lengths) -> float:
    return 2 * lengths.decoder * config.d_model * config.padded_vocab_size
