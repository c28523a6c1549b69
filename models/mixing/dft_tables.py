"""Cosine and sine tables of the discrete Fourier transform: real, made once per size, device and dtype.

Angles are reduced to (n · k) mod N in integers before they become floats: otherwise a 1024-point transform in fp32 has an error
of 7e-4. The tables are not buffers, so that no cast of a module changes them and no checkpoint holds them.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


@torch.compiler.assume_constant_result
def dft_tables(size: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of 2π n k / size, each (size, size) and symmetric."""
    return _tables(size, size, device, dtype)


@torch.compiler.assume_constant_result
def half_tables(size: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The parts of the tables for the even half (rows and columns 0 … size/2) and the odd half (1 … (size-1)/2) of a signal."""
    cosines, sines = _tables(size, size // 2 + 1, device, dtype)
    odd = (size + 1) // 2
    return cosines, sines[1:odd, 1:odd].contiguous()


@torch.compiler.assume_constant_result
def causal_tables(size: int, period: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Lower triangles of cosines and sines of 2π n k / period, each (size, size)."""
    cosines, sines = _tables(period, size, device, dtype)
    return cosines.tril(), sines.tril()


@lru_cache(maxsize=64)
def _tables(period: int, size: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.no_grad():
        index = torch.arange(size, device=device)
        angles = (torch.outer(index, index) % period).double() * (2 * math.pi / period)
        return angles.cos().to(dtype), angles.sin().to(dtype)
