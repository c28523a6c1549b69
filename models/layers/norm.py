"""Normalisation over features: T5's root-mean-square norm, or the layer norm of BERT, FNet and GPT-2.

RMS: Zhang & Sennrich 2019 (arXiv:1910.07467), no mean, no bias. Layer norm: Ba et al. 2016 (arXiv:1607.06450).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import NormKind
from models.layers.initialization import constant_parameter


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = constant_parameter((dim,), 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, D) → (…, D) in x's dtype; the variance is computed in fp32, because squares in bf16 are too inexact."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(x.dtype)


class LayerNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = constant_parameter((dim,), 1.0)
        self.bias = constant_parameter((dim,), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, D) → (…, D) in x's dtype; torch computes mean and variance in fp32 for every dtype."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def build_norm(kind: NormKind, dim: int, eps: float) -> nn.Module:
    return RMSNorm(dim, eps) if kind == "rms" else LayerNorm(dim, eps)
