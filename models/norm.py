"""Root-mean-square layer norm (Zhang & Sennrich 2019, arXiv:1910.07467): no mean, no bias, as in T5."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.initialization import constant_parameter


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = constant_parameter((dim,), 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, D) → (…, D) in x's dtype; the variance is taken in fp32 because bf16 squares lose it."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(x.dtype)
