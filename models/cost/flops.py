"""Forward FLOPs of each piece in closed form, for one sequence. A multiply-add counts 2; training is 3 x forward.

Causal self-attention is counted in full, and the head at all positions, as they are computed; `unneeded` counts what of that no
loss needs. The Fourier transform counts 2.5 N D (log2 N + log2 D), the usual count of a real FFT, for every backend ("model
FLOPs"); `executed_mixing` counts what the configured backend computes. Norms, biases, activations and look-ups are not counted.

N encoder tokens, M decoder tokens, D model width, A width of all heads together, F feed-forward width, V padded vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.config import BlockConfig, ModelConfig
from models.mixing.transforms import executed_flops


@dataclass(frozen=True)
class Lengths:
    """Tokens of one sample in the two stacks, padding included.

    A decoder-only model reads encoder + decoder tokens in one row. An encoder-only model predicts `decoder` masked tokens; 0
    means all.
    """

    encoder: int
    decoder: int


def fourier_mixing(num_tokens: int, d_model: int) -> float:
    return 2.5 * num_tokens * d_model * (math.log2(num_tokens) + math.log2(d_model))


def causal_fourier_mixing(num_tokens: int, d_model: int) -> float:
    """A real FFT over features, then two products with masked (N, N) matrices on half of the spectrum."""
    return 2.5 * num_tokens * d_model * math.log2(d_model) + 4 * num_tokens**2 * (d_model // 2 + 1)


def matrix_mixing(num_tokens: int, d_model: int) -> float:
    """Linear and random mixing."""
    return 2 * num_tokens * d_model * (num_tokens + d_model)


def attention(config: ModelConfig, num_queries: int, num_keys: int) -> float:
    """Projections of queries and output, of keys and values, then scores and their product with the values."""
    d, a = config.d_model, config.inner_dim
    return 4 * num_queries * d * a + 4 * num_keys * d * a + 4 * num_queries * num_keys * a


def feed_forward(config: ModelConfig, block: BlockConfig, num_tokens: int) -> float:
    return 2 * (3 if block.gated else 2) * num_tokens * config.d_model * block.d_ff


def encoder_mixing(config: ModelConfig, layer: int, lengths: Lengths) -> float:
    """Of one encoder layer's mixing sublayer. Raises ValueError for a mixing whose FLOPs nobody has written down."""
    n, d = lengths.encoder, config.d_model
    if config.encoder_layer_attends(layer):
        return attention(config, n, n)
    if config.mixing in ("fourier", "hartley"):
        return fourier_mixing(n, d)
    if config.mixing in ("linear", "random"):
        return matrix_mixing(n, d)
    if config.mixing == "causal_fourier":
        return causal_fourier_mixing(n, d)
    if config.mixing == "identity":
        return 0.0
    raise ValueError(f"model.mixing {config.mixing!r} has no FLOPs: add it to encoder_mixing in models/cost/flops.py")


def executed_mixing(config: ModelConfig, layer: int, lengths: Lengths) -> float:
    """As `encoder_mixing`, with the Fourier transform counted as its backend computes it."""
    if config.encoder_layer_attends(layer) or config.mixing != "fourier" or config.fourier_backend == "auto":
        return encoder_mixing(config, layer, lengths)
    return executed_flops(config.fourier_backend, lengths.encoder, config.d_model)


def encoder_layer(config: ModelConfig, layer: int, lengths: Lengths) -> float:
    return encoder_mixing(config, layer, lengths) + feed_forward(config, config.encoder_block_config, lengths.encoder)


def encoder_input(config: ModelConfig, lengths: Lengths) -> float:
    return 2 * lengths.encoder * config.d_model**2 if config.encoder_block_config.project_input else 0.0


def decoder_tokens(config: ModelConfig, lengths: Lengths) -> int:
    return lengths.encoder + lengths.decoder if config.is_decoder_only else lengths.decoder


def decoder_layer(config: ModelConfig, lengths: Lengths) -> float:
    m, n = decoder_tokens(config, lengths), lengths.encoder
    mixing = attention(config, m, m) if config.decoder_mixing == "attention" else causal_fourier_mixing(m, config.d_model)
    cross = 0.0 if config.is_decoder_only else attention(config, m, n)
    return mixing + cross + feed_forward(config, config.decoder_block_config, m)


def output_head(config: ModelConfig, lengths: Lengths) -> float:
    """The projection to the vocabulary."""
    tokens = (lengths.decoder or lengths.encoder) if config.is_encoder_only else decoder_tokens(config, lengths)
    return 2 * tokens * config.d_model * config.padded_vocab_size


def read_pairs(config: ModelConfig, lengths: Lengths) -> int:
    """(query, key) pairs of the decoder's self-attention in which the query may read the key. A prefix decoder reads its
    prefix, which begins with the start token, in both directions."""
    m = decoder_tokens(config, lengths)
    prefix = min(lengths.encoder + 1, m) if config.architecture == "prefix_decoder" else 1
    return prefix**2 + (m * (m + 1) - prefix * (prefix + 1)) // 2


def unneeded(config: ModelConfig, lengths: Lengths, loss_positions: float) -> float:
    """The part of the forward FLOPs that no loss needs: the head at positions without a loss, and products of scores and values
    that a causal mask removes. `loss_positions` is the mean number of target tokens of a sequence; an encoder-only model
    computes its head at those only."""
    n, m, half_spectrum = lengths.encoder, decoder_tokens(config, lengths), config.d_model // 2 + 1
    total = 0.0
    if not config.is_encoder_only:
        total += 2 * (m - loss_positions) * config.d_model * config.padded_vocab_size
        width = config.inner_dim if config.decoder_mixing == "attention" else half_spectrum
        total += 4 * config.num_decoder_layers * (m**2 - read_pairs(config, lengths)) * width
    if config.mixing == "causal_fourier":
        layers = sum(not config.encoder_layer_attends(layer) for layer in range(config.num_encoder_layers))
        total += 4 * layers * (n**2 - n * (n + 1) // 2) * half_spectrum
    return total


def heads(config: ModelConfig, lengths: Lengths) -> float:
    """An encoder-only model's heads without the projection to the vocabulary."""
    n, d = lengths.encoder, config.d_model
    pools = not config.heads or "order" in config.heads or "sequence" in config.heads
    of_head = {
        "mlm": 2 * (lengths.decoder or n) * d * d,
        "order": 2 * d * 2,
        "sequence": 2 * d * config.num_labels,
        "token": 2 * n * d * config.num_token_labels,
        "answer": 2 * n * d * 2,
    }
    return (2 * d * d if pools else 0) + sum(of_head[head] for head in config.heads)
