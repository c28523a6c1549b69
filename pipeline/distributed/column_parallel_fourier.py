"""Fourier mixing with its output columns divided among the tensor ranks, for micro-batches that t does not divide.

    y[n, d] = Re sum_k exp(-2 pi i n k / N) z[k, d] / sqrt(N),   z = the transform of x along the features

Column d of the output needs only column d of z, and y[n, d] = y[-n, -d]. Only the columns 0 … D/2 are therefore computed: each
tensor rank transforms its columns along the tokens, and an all-gather of real numbers joins them. Every rank computes the
transform along the features, because it needs it for all tokens. Work of a rank: 2.5 N D (log2 D + log2(N) / t) FLOPs.

Shapes: B batch, N tokens, D features, C = ceil((D/2 + 1) / t) columns of a rank, t tensor-parallel degree.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor, nn
from torch.nn import functional as F

from models.mixing.fourier import FourierMixing


class _ColumnDFT2(torch.autograd.Function):
    """The real 2-D DFT of a replicated tensor, with the columns divided among ranks; self-adjoint like the whole operator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: str) -> Tensor:
        ctx.norm = norm
        return column_dft2(x, norm, parallel_state.get_tensor_model_parallel_group())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # the gradient is equal on every rank, as the output was
        return column_dft2(gradients[0], ctx.norm, parallel_state.get_tensor_model_parallel_group()), None


def column_dft2(x: Tensor, norm: str, group: Any) -> Tensor:
    """(B, N, D) the same on every rank of `group` → Re(F_N x F_D), (B, N, D) on every rank, in x's dtype.

    `norm` as in `torch.fft`: "ortho" divides by sqrt(N D).
    """
    num_features = x.shape[-1]
    num_half = num_features // 2 + 1
    width = -(-num_half // group.size())
    first = min(group.rank() * width, num_half)
    wide = x if x.dtype == torch.float64 else x.float()
    spectrum = torch.fft.rfft(wide, dim=-1, norm=norm)[..., first : min(first + width, num_half)]  # (B, N, C) complex
    if spectrum.shape[-1]:  # the last ranks may have fewer columns or none, and there is no transform of nothing
        spectrum = torch.fft.fft(spectrum, dim=-2, norm=norm)
    columns = spectrum.real.to(x.dtype)
    columns = F.pad(columns, (0, width - columns.shape[-1])).contiguous()
    parts = columns.new_empty((group.size() * columns.shape[0], *columns.shape[1:]))
    torch.distributed.all_gather_into_tensor(parts, columns, group=group)
    half = torch.cat(parts.chunk(group.size()), dim=-1)[..., :num_half]  # (B, N, D/2 + 1)
    mirrored = half[..., 1 : (num_features + 1) // 2].flip(-1, -2).roll(1, -2)
    return torch.cat([half, mirrored], dim=-1)


class ColumnFourierMixing(nn.Module):
    """`FourierMixing` for replicated hidden states on several tensor ranks."""

    def __init__(self, norm: str = "ortho") -> None:
        super().__init__()
        self.norm = norm

    def forward(self, hidden: Tensor, mask: Tensor, *ignored: Any) -> Tensor:
        """hidden (B, N, D), mask (B, N) integer, 0 at padding; returns (B, N, D) in hidden's dtype."""
        return _ColumnDFT2.apply(hidden * (mask > 0).unsqueeze(-1).to(hidden.dtype), self.norm)


def shard_columns(layer: nn.Module) -> nn.Module:
    """Replace Fourier mixing in an encoder layer by column-parallel mixing. Other layers are unchanged."""
    mixing = layer.get_submodule("mixing")
    # transforms of single documents within a row run on every rank: their lengths differ, so they share no columns
    if type(mixing) is FourierMixing and not getattr(mixing, "within_documents", False):
        layer.add_module("mixing", ColumnFourierMixing(getattr(mixing, "norm", "ortho")))
    return layer
