"""Token mixing sublayers: each maps (B, N, D) to (B, N, D) and stands where an encoder layer could attend."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from models.mixing.fourier import FourierMixing

MIXERS: dict[str, Callable[[], nn.Module]] = {"fourier": FourierMixing}
