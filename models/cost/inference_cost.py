"""The cost of generation in closed form: FLOPs a row to read a prefix and generate after it, and bytes of caches.

A multiply-add counts 2, causal self-attention in full, Fourier mixing as in `flops.py`. Keys and values are computed once for
each token and cached; logits are computed for the last token only.

D model width, A width of all heads together.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.config import ModelConfig
from models.cost import flops
from models.cost.flops import Lengths
from models.cost.parameters import parameter_counts


@dataclass(frozen=True)
class CacheBytes:
    """Keys and values of all decoder layers when the last new token has been generated."""

    own: int
    """Of the decoder's own tokens: grows with every token."""
    cross: int
    """Of the encoder's output: computed once; 0 for a decoder-only model."""

    @property
    def total(self) -> int:
        return self.own + self.cross


def first_token_flops(config: ModelConfig, prefix: int) -> float:
    """Of one row, from the prefix's ids to the logits of the first new token. Raises ValueError as `own_keys` does."""
    if config.is_decoder_only:
        num_read = own_keys(config, prefix, 1)
        layer = flops.attention(config, num_read, num_read) + flops.feed_forward(config, config.decoder_block_config, num_read)
        return config.num_decoder_layers * layer + _head(config)
    lengths = Lengths(prefix, 1)
    encoder = sum(flops.encoder_layer(config, layer, lengths) for layer in range(config.num_encoder_layers))
    cross_keys_values = config.num_decoder_layers * 4 * prefix * config.d_model * config.inner_dim
    first_step = _step(config, prefix, own_keys(config, prefix, 1))
    return flops.encoder_input(config, lengths) + encoder + cross_keys_values + first_step


def token_flops(config: ModelConfig, prefix: int, new_tokens: int) -> float:
    """Of one row and one token after the first: the mean over tokens 2 … new_tokens."""
    # linear in the number of keys, so the mean over all tokens is the mean of the first and the last
    first, last = own_keys(config, prefix, 2), own_keys(config, prefix, new_tokens)
    return (_step(config, prefix, first) + _step(config, prefix, last)) / 2


def cache_bytes(config: ModelConfig, prefix: int, new_tokens: int, batch: int, bytes_per_value: int) -> CacheBytes:
    """Of `batch` rows with `new_tokens` new tokens each."""
    a_token = 2 * config.num_decoder_layers * config.inner_dim * batch * bytes_per_value
    own = a_token * own_keys(config, prefix, new_tokens)
    return CacheBytes(own, 0 if config.is_decoder_only else a_token * prefix)


def step_bytes(config: ModelConfig, prefix: int, new_tokens: int, batch: int, bytes_per_value: int) -> float:
    """Bytes that a following token of B rows must at least read: the weights of decoder and head once, and every row's cache.

    The mean over tokens 2 … new_tokens. They determine the time if the machine is bound by memory bandwidth.
    """
    caches = [cache_bytes(config, prefix, count, batch, bytes_per_value).total for count in (2, new_tokens)]
    return bytes_per_value * step_parameters(config) + sum(caches) / 2


def step_parameters(config: ModelConfig) -> int:
    """Parameters that one further token reads: the decoder's layers and the head, none of the encoder."""
    counts = parameter_counts(config)
    layers = sum(count for name, count in counts.items() if name.startswith(("decoder.layers.", "decoder.final_norm")))
    # the keys and values of the encoder's output are cached: those two projections are not read again
    unread = 0 if config.is_decoder_only else 2 * config.num_decoder_layers * _projection(config)
    return layers - unread + counts["embedding" if config.tie_embeddings else "head"]


def own_keys(config: ModelConfig, prefix: int, written: int) -> int:
    """Tokens in the decoder's own cache when the `written`-th new token is chosen, without that token.

    Raises ValueError for a model that does not generate, or whose decoder has no keys.
    """
    if config.is_encoder_only:
        raise ValueError(f"model.architecture is {config.architecture!r}: an encoder-only model does not generate text")
    if config.decoder_mixing != "attention":
        raise ValueError(f"model.decoder_mixing is {config.decoder_mixing!r}: costs are known only for decoders with attention")
    # the start token counts too; a decoder-only model has the prefix in the same cache
    return written + (prefix if config.is_decoder_only else 0)


def _step(config: ModelConfig, prefix: int, num_keys: int) -> float:
    """One token through the decoder and the head, with `num_keys` keys of its own stack, its own included."""
    d, a = config.d_model, config.inner_dim
    layer = 8 * d * a + 4 * num_keys * a + flops.feed_forward(config, config.decoder_block_config, 1)
    if not config.is_decoder_only:
        layer += 4 * d * a + 4 * prefix * a
    return config.num_decoder_layers * layer + _head(config)


def _head(config: ModelConfig) -> float:
    return 2 * config.d_model * config.padded_vocab_size


def _projection(config: ModelConfig) -> int:
    return config.inner_dim * (config.d_model + config.decoder_block_config.bias)
