"""What reading a prefix and writing behind it must cost: FLOPs a row and bytes of caches, in closed form.

A multiply-add counts 2, causal self-attention in full, Fourier mixing as in `flops.py`. Keys and values are computed once for
each token and kept; logits are taken of the last token only.

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
    """Keys and values of all decoder layers after the last of the new tokens is known."""

    own: int
    """Of the decoder's own tokens: they grow with every token."""
    cross: int
    """Of the encoder's output: computed once, 0 for a decoder alone."""

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
    """Of one row, a token behind the first: the mean over all of them, 2 … new_tokens."""
    # linear in the keys, so the mean is what the middle costs
    first, last = own_keys(config, prefix, 2), own_keys(config, prefix, new_tokens)
    return (_step(config, prefix, first) + _step(config, prefix, last)) / 2


def cache_bytes(config: ModelConfig, prefix: int, new_tokens: int, batch: int, bytes_per_value: int) -> CacheBytes:
    """Of B rows that have written `new_tokens`."""
    a_token = 2 * config.num_decoder_layers * config.inner_dim * batch * bytes_per_value
    own = a_token * own_keys(config, prefix, new_tokens)
    return CacheBytes(own, 0 if config.is_decoder_only else a_token * prefix)


def step_bytes(config: ModelConfig, prefix: int, new_tokens: int, batch: int, bytes_per_value: int) -> float:
    """What a following token of B rows must at least read: weights of the decoder and the head once, and every row's cache.

    The mean over tokens 2 … new_tokens. Where a machine moves these bytes more slowly than it computes, they are the time.
    """
    caches = [cache_bytes(config, prefix, count, batch, bytes_per_value).total for count in (2, new_tokens)]
    return bytes_per_value * step_parameters(config) + sum(caches) / 2


def step_parameters(config: ModelConfig) -> int:
    """Parameters that the computation of one further token reads: all of the decoder's layers and the head, nothing of an
    encoder."""
    counts = parameter_counts(config)
    layers = sum(count for name, count in counts.items() if name.startswith(("decoder.layers.", "decoder.final_norm")))
    # the keys and values of the encoder's output are there already: those two projections are not read again
    unread = 0 if config.is_decoder_only else 2 * config.num_decoder_layers * _projection(config)
    return layers - unread + counts["embedding" if config.tie_embeddings else "head"]


def own_keys(config: ModelConfig, prefix: int, written: int) -> int:
    """Tokens in the decoder's own cache when the `written`-th new token is chosen; it is not yet among them.

    Raises ValueError for a model that writes no text, or whose decoder keeps no keys.
    """
    if config.is_encoder_only:
        raise ValueError(f"model.architecture is {config.architecture!r}: an encoder-only model writes no text")
    if config.decoder_mixing != "attention":
        raise ValueError(f"model.decoder_mixing is {config.decoder_mixing!r}: costs are known of decoders that attend")
    # the start token comes first: before the prefix where there is no encoder to read it
    return written + (prefix if config.is_decoder_only else 0)


def _step(config: ModelConfig, prefix: int, num_keys: int) -> float:
    """One token through the decoder and the head, with `num_keys` keys of its own stack, itself among them."""
    d, a = config.d_model, config.inner_dim
    layer = 8 * d * a + 4 * num_keys * a + flops.feed_forward(config, config.decoder_block_config, 1)
    if not config.is_decoder_only:
        layer += 4 * d * a + 4 * prefix * a
    return config.num_decoder_layers * layer + _head(config)


def _head(config: ModelConfig) -> float:
    return 2 * config.d_model * config.padded_vocab_size


def _projection(config: ModelConfig) -> int:
    return config.inner_dim * (config.d_model + config.decoder_block_config.bias)
