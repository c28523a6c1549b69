"""Fourier mixing: the real part of the 2-D discrete Fourier transform over tokens and features.

    y = Re(F_N x F_D) / sqrt(N D) = (C_N x C_D - S_N x S_D) / sqrt(N D)        (FNet, arXiv:2105.03824, section 3)

C and S are symmetric, so the operator is its own transpose: backward is forward applied to the gradient, and nothing is saved.
FNet does not normalise the transform (`norm="backward"`); its post-norm removes the gain of sqrt(N D / 2). In a pre-norm T5
block the mixed values would exceed the residual stream by that factor, hence `norm="ortho"` there.

Shapes: B batch, N tokens, D features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.layers.attention_bias import ScoreBias
from models.mixing.backend_choice import choose_backend
from models.mixing.documents import document_tables, mix_documents
from models.mixing.transforms import BACKENDS, TransformName


class SelfAdjoint(torch.autograd.Function):
    """A transform whose transpose is itself: backward(g) = forward(g), no tensor saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, transform: TransformName, norm: str, backend: str) -> Tensor:
        ctx.choices = transform, norm, backend
        return BACKENDS[backend](x, transform, norm)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # through apply, so that the gradient can be differentiated again
        return SelfAdjoint.apply(gradients[0], *ctx.choices), None, None, None


class SelfAdjointDocuments(torch.autograd.Function):
    """The transform inside each document. Saves only the document numbers (integers); backward makes the tables again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, documents: Tensor, transform: TransformName, norm: str) -> Tensor:
        ctx.save_for_backward(documents)
        ctx.choices = transform, norm
        return mix_documents(x, document_tables(documents, x.dtype, norm), transform, norm)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (documents,) = ctx.saved_tensors
        return SelfAdjointDocuments.apply(gradients[0], documents, *ctx.choices), None, None, None


class FourierMixing(nn.Module):
    """Mixing sublayer without parameters. Inputs at padding positions are set to 0, so their content changes no output.

    The basis depends on N: a run uses one encoder length, in training and in inference.
    """

    transform: TransformName = "dft_real"

    def __init__(self, norm: str = "ortho", backend: str = "fft", within_documents: bool = False) -> None:
        super().__init__()
        self.norm, self.backend, self.within_documents = norm, backend, within_documents

    def forward(self, hidden: Tensor, mask: Tensor, score_bias: ScoreBias | None = None) -> Tensor:
        """hidden (B, N, D), mask (B, N) integer, 0 at padding; returns (B, N, D) in hidden's dtype.

        With `within_documents`, the other values of the mask are document numbers.
        """
        x = hidden * (mask > 0).unsqueeze(-1).to(hidden.dtype)
        if self.within_documents:
            return SelfAdjointDocuments.apply(x, mask, self.transform, self.norm)
        backend = self.backend
        if backend == "auto":
            backend = choose_backend(*x.shape, x.dtype, x.device, self.transform)
        return SelfAdjoint.apply(x, self.transform, self.norm, backend)

    def extra_repr(self) -> str:
        return f"norm={self.norm}, backend={self.backend}, within_documents={self.within_documents}"
