"""Two real 2-D transforms over tokens and features, with three backends: FFT, two matrix products, or folded products.

With the symmetric cosine and sine matrices C and S of the discrete Fourier transform F = C - iS:

    dft_real:  Re(F_N x F_D) = C x C - S x S                                  (FNet, arXiv:2105.03824, section 3)
    hartley:   Re(F_N x F_D) - Im(F_N x F_D) = C x C - S x S + C x S + S x C  (Sparse Mixers, arXiv:2205.12399)

Both are their own transposes. Folding splits x along each axis into the even part x[n] + x[-n], which C reads, and the odd part
x[n] - x[-n], which S reads; each is half as long. This needs 8 times fewer multiplications than the plain products, no complex
numbers and no FFT.

Shapes: any leading dimensions, N tokens, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from models.mixing.dft_tables import dft_tables, half_tables

TransformName = Literal["dft_real", "hartley"]


def by_fft(x: Tensor, transform: TransformName, norm: str) -> Tensor:
    """Computed in fp32 (fp64 for fp64), because there is no FFT in bf16; returned in the dtype of x.

    Re y[n, d] = Re y[-n, -d] and Im y[n, d] = -Im y[-n, -d], so only columns 0 … D/2 are transformed, which is half the work.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    half = torch.fft.fft(torch.fft.rfft(wide, dim=-1, norm=norm), dim=-2, norm=norm)  # (…, N, D//2 + 1) complex
    if transform == "hartley":
        return _with_mirror(half.real - half.imag, half.real + half.imag, x)
    return _with_mirror(half.real, half.real, x)


def _with_mirror(near: Tensor, far: Tensor, like: Tensor) -> Tensor:
    """`near` (…, N, D//2 + 1), followed by `far` mirrored to columns -d and rows -n; shape and dtype of `like`."""
    num_near = near.shape[-1]
    far = far[..., 1 : 1 + like.shape[-1] - num_near]  # columns d with -d different from d
    result = torch.empty_like(like)
    result[..., :num_near] = near
    result[..., 0, num_near:] = far[..., 0, :].flip(-1)
    result[..., 1:, num_near:] = far[..., 1:, :].flip(-1, -2)
    return result


def by_matmul(x: Tensor, transform: TransformName, norm: str) -> Tensor:
    """Plain products with the full tables: 4 (N + D) multiply-adds a value."""
    cn, sn = dft_tables(x.shape[-2], x.device, x.dtype)
    cd, sd = dft_tables(x.shape[-1], x.device, x.dtype)
    cosines, sines = cn @ x, sn @ x
    if transform == "hartley":
        return (cosines @ (cd + sd) + sines @ (cd - sd)) * _scale(x, norm)
    return (cosines @ cd - sines @ sd) * _scale(x, norm)


def folded(x: Tensor, transform: TransformName, norm: str) -> Tensor:
    """Products of the even and odd halves with half tables, then unfolded: (N + D) / 2 multiply-adds a value for dft_real."""
    ce_n, so_n = half_tables(x.shape[-2], x.device, x.dtype)
    ce_d, so_d = half_tables(x.shape[-1], x.device, x.dtype)
    even_n, odd_n = _fold(x * _scale(x, norm), -2)
    even_even, even_odd = _fold(even_n, -1)
    odd_even, odd_odd = _fold(odd_n, -1)
    even = ce_n @ (even_even @ ce_d)  # even in n and d: (…, N//2 + 1, D//2 + 1)
    odd = so_n @ (odd_odd @ so_d)  # odd in n and d: (…, (N-1)//2, (D-1)//2)
    if transform == "dft_real":
        return _unfold(even, odd, x.shape)
    crossed = so_n @ (odd_even @ ce_d), ce_n @ (even_odd @ so_d)  # odd in n only, odd in d only
    return _unfold(even, odd, x.shape) + _unfold_crossed(*crossed, x.shape)


def _scale(x: Tensor, norm: str) -> float:
    return 1.0 if norm == "backward" else 1 / math.sqrt(x.shape[-1] * x.shape[-2])


def _fold(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """x[n] + x[-n] for n in 0 … N/2, each of the unpaired positions 0 and N/2 once; and x[n] - x[-n] for n in 1 … (N-1)/2."""
    size = x.shape[dim]
    pairs = (size - 1) // 2
    front = x.narrow(dim, 1, pairs)
    back = x.narrow(dim, size - pairs, pairs).flip(dim)
    parts = [x.narrow(dim, 0, 1), front + back]
    if size % 2 == 0:
        parts.append(x.narrow(dim, size // 2, 1))
    return torch.cat(parts, dim), front - back


def _mirror(x: Tensor, dim: int, size: int) -> Tensor:
    """The positions size/2+1 … size-1 of a signal whose positions 0 … size/2 are x: x[size - n]."""
    return x.narrow(dim, 1, (size - 1) // 2).flip(dim)


def _unfold(even: Tensor, odd: Tensor, shape: torch.Size) -> Tensor:
    """even - odd in both near quarters, even + odd in the other two, for parts that are even in both axes, and odd in both."""
    n, d = shape[-2:]
    padded = torch.nn.functional.pad(odd, (1, even.shape[-1] - odd.shape[-1] - 1, 1, even.shape[-2] - odd.shape[-2] - 1))
    same, crossed = even - padded, even + padded
    near = torch.cat([same, _mirror(crossed, -1, d)], -1)  # rows 0 … N/2
    far = torch.cat([_mirror(crossed, -2, n), _mirror(_mirror(same, -1, d), -2, n)], -1)
    return torch.cat([near, far], -2)


def _unfold_crossed(odd_even: Tensor, even_odd: Tensor, shape: torch.Size) -> Tensor:
    """Both parts added: the first is odd in n and even in d, the second even in n and odd in d."""
    n, d = shape[-2:]
    rows, columns = n // 2 + 1, d // 2 + 1
    first = torch.nn.functional.pad(odd_even, (0, 0, 1, rows - odd_even.shape[-2] - 1))
    second = torch.nn.functional.pad(even_odd, (1, columns - even_odd.shape[-1] - 1, 0, 0))
    total, difference = first + second, first - second
    near = torch.cat([total, _mirror(difference, -1, d)], -1)
    far = torch.cat([_mirror(-difference, -2, n), _mirror(_mirror(-total, -1, d), -2, n)], -1)
    return torch.cat([near, far], -2)


BACKENDS: dict[str, Callable[[Tensor, TransformName, str], Tensor]] = {"fft": by_fft, "matmul": by_matmul, "folded": folded}


def executed_flops(backend: str, num_tokens: int, num_features: int) -> float:
    """FLOPs that a backend computes for one (N, D) signal with dft_real; a multiply-add counts 2."""
    n, d = num_tokens, num_features
    if backend == "fft":
        return 2.5 * n * d * (math.log2(n) + math.log2(d))
    if backend == "matmul":
        return 4 * n * d * (n + d)
    rows, columns, odd_rows, odd_columns = n // 2 + 1, d // 2 + 1, (n - 1) // 2, (d - 1) // 2
    return 2.0 * (rows * columns * (rows + columns) + odd_rows * odd_columns * (odd_rows + odd_columns))
