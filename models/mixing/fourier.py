"""Fourier mixing: the real part of the orthonormal 2-D discrete Fourier transform over tokens and features.

    y = Re(F_N x F_D) / sqrt(N D) = C_N x C_D - S_N x S_D        (FNet, Lee-Thorp et al., arXiv:2105.03824, section 3)

C and S are the symmetric cosine and sine matrices, so the operator is its own transpose: backward is forward applied to the
gradient, and nothing needs to be saved. FNet itself leaves the transform unnormalised and hides the gain of sqrt(N D / 2) in a
post-norm; in a pre-norm T5 block that gain would wipe out the residual stream, hence the orthonormal scale.

Shapes: B batch, N tokens, D features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def real_dft2(x: Tensor) -> Tensor:
    """Real part of the orthonormal DFT over the last two dimensions of a real (…, N, D) tensor, for any N and D.

    Computed in fp32 (fp64 for fp64 input), because no FFT exists in bf16; returned in the dtype of `x`. The output satisfies
    y[n, d] = y[-n, -d], so only the columns 0 … D/2 are transformed and the rest is mirrored: half the work.
    """
    num_features = x.shape[-1]
    wide = x if x.dtype == torch.float64 else x.float()
    spectrum = torch.fft.rfft(wide, dim=-1, norm="ortho")  # (…, N, D//2 + 1), complex
    half = torch.fft.fft(spectrum, dim=-2, norm="ortho").real  # (…, N, D//2 + 1)
    mirrored = half[..., 1 : (num_features + 1) // 2]  # columns 1 … of which -d is not itself
    mirrored = mirrored.flip(-1, -2).roll(1, -2)  # row n holds row (-n) mod N
    return torch.cat([half, mirrored], dim=-1).to(x.dtype)


class RealDFT2(torch.autograd.Function):
    """`real_dft2` as a self-adjoint operator: backward(g) = forward(g), no tensor saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return real_dft2(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Through apply, not real_dft2, so that the gradient can be differentiated again.
        return RealDFT2.apply(gradients[0])


class FourierMixing(nn.Module):
    """Parameter-free mixing sublayer. Padding positions are zeroed on the way in, so their content changes no output.

    The basis depends on N: a run keeps one encoder length, in training and in inference alike.
    """

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden (B, N, D), mask (B, N) integer with 1 at real tokens; returns (B, N, D) in hidden's dtype."""
        return RealDFT2.apply(hidden * mask.unsqueeze(-1).to(hidden.dtype))
