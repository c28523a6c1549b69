"""Token mixing sublayers: one file each, with one interface; `build_mixer` makes them by name.

`mixer(hidden, mask, score_bias)`: hidden (B, N, D), mask (B, N) integer with 0 at padding, and the `ScoreBias`, which only
attention reads; returns (B, N, D). Only `within_documents` mixing and attention read the mask's other values.
"""

from __future__ import annotations

from torch import nn

from models.config import ModelConfig
from models.layers.factory import LayerFactory
from models.mixing.attention import AttentionMixing
from models.mixing.causal_fourier import CausalFourierMixing
from models.mixing.fourier import FourierMixing
from models.mixing.hartley import HartleyMixing
from models.mixing.identity import IdentityMixing
from models.mixing.linear import LinearMixing
from models.mixing.random import RandomMixing


def build_mixer(config: ModelConfig, factory: LayerFactory, layer: int) -> nn.Module:
    """The mixing sublayer of encoder layer `layer`: attention if the layout gives it attention, else `config.mixing`."""
    if config.encoder_layer_attends(layer):
        return AttentionMixing(config, factory)
    norm = config.encoder_block_config.fourier_norm
    if config.mixing in ("fourier", "hartley"):
        transform = FourierMixing if config.mixing == "fourier" else HartleyMixing
        return transform(norm, config.fourier_backend, config.mix_within_documents)
    if config.mixing == "linear":
        return LinearMixing(config.max_length, config.d_model)
    if config.mixing == "random":
        return RandomMixing(config.max_length, config.d_model, layer)
    if config.mixing == "causal_fourier":
        return CausalFourierMixing(config.max_length, norm)
    if config.mixing == "identity":
        return IdentityMixing()
    raise AssertionError(config.mixing)  # ModelConfig refuses other names
