"""Causal Fourier mixing: for each token, its row of the 2-D transform of itself and the tokens before it.

    y[n, h] = Re sum_{m <= n} w^{nm} X[m, h],   w = exp(-2πi / P),   X = the DFT over features

(arXiv:2105.03824, section 5). The period P is fixed (model.max_length), so that a longer text does not change the rows of a
shorter one. The cosine and sine matrices are masked to their lower triangles, so later tokens have exactly no influence (the
O(N log N) forms by chirps leak by rounding). Only columns 0 … D/2 are computed: with A = tril(C) Re X and B = tril(S) Im X,
y[n, h] = A + B and y[n, D-h] = A - B.

Scaled by 1/sqrt(P D) under norm="ortho". Shapes: B batch, N tokens, D features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from models.layers.attention_bias import ScoreBias
from models.mixing.dft_tables import causal_tables


class CausalTransform(torch.autograd.Function):
    """The transform for rows `start` … of a text. Backward transposes the two triangles; no tensor is saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, period: int, norm: str, start: int, transposed: bool) -> Tensor:
        ctx.choices = period, norm, start, transposed
        return _transform(x, period, norm, start, transposed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        period, norm, start, transposed = ctx.choices
        return CausalTransform.apply(gradients[0], period, norm, start, not transposed), None, None, None, None


def _transform(x: Tensor, period: int, norm: str, start: int, transposed: bool) -> Tensor:
    num_rows, num_features = x.shape[-2:]
    total = start + num_rows if transposed else num_rows
    wide = x if x.dtype == torch.float64 else x.float()
    spectrum = torch.fft.rfft(wide, dim=-1)  # (B, N, D//2 + 1)
    cosines, sines = causal_tables(total, period, x.device, wide.dtype)
    cosines, sines = cosines[start:], sines[start:]
    if transposed:
        cosines, sines = cosines.t(), sines.t()
    even, odd = cosines @ spectrum.real, sines @ spectrum.imag
    mirrored = (even - odd)[..., 1 : (num_features + 1) // 2].flip(-1)
    scale = 1.0 if norm == "backward" else 1 / math.sqrt(period * num_features)
    return (torch.cat([even + odd, mirrored], dim=-1) * scale).to(x.dtype)


class CausalFourierMixing(nn.Module):
    """Without parameters. A mixing sublayer of an encoder, or in a decoder the replacement of self-attention."""

    def __init__(self, period: int, norm: str = "ortho") -> None:
        super().__init__()
        self.period, self.norm = period, norm

    def forward(self, hidden: Tensor, mask: Tensor | None, score_bias: ScoreBias | None = None, start: int = 0) -> Tensor:
        """hidden (B, N, D), mask (B, N) with 0 at padding or None; returns rows `start` … (B, N - start, D).

        Raises ValueError for a text longer than the period, because positions would repeat.
        """
        if hidden.shape[1] > self.period:
            raise ValueError(
                f"the text has {hidden.shape[1]} tokens, causal Fourier mixing repeats after model.max_length {self.period}: "
                "shorten it, or build the model with a larger model.max_length"
            )
        x = hidden if mask is None else hidden * (mask > 0).unsqueeze(-1).to(hidden.dtype)
        return CausalTransform.apply(x, self.period, self.norm, start, False)
