"""Fourier mixing compared with torch's complex FFT, the cosine/sine matrices of its definition, and finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.mixing.fourier import FourierMixing, SelfAdjoint
from models.mixing.transforms import by_fft


def plain(x: torch.Tensor) -> torch.Tensor:
    return by_fft(x, "dft_real", "ortho")


def real_dft(x: torch.Tensor) -> torch.Tensor:
    return SelfAdjoint.apply(x, "dft_real", "ortho", "fft")


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_equals_the_full_complex_transform_at_any_length(n: int, d: int, seed: int) -> None:
    x = torch.randn(2, n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = torch.fft.fft2(x, norm="ortho").real
    torch.testing.assert_close(plain(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n", "d"), [(8, 6), (7, 5), (12, 9)])
def test_equals_the_cosine_and_sine_matrices(n: int, d: int) -> None:
    def angles(size: int) -> torch.Tensor:
        index = torch.arange(size)
        return 2 * math.pi * (torch.outer(index, index) % size).double() / size

    x = torch.randn(3, n, d, dtype=torch.float64)
    cosines = angles(n).cos() @ x @ angles(d).cos()
    sines = angles(n).sin() @ x @ angles(d).sin()
    torch.testing.assert_close(plain(x), (cosines - sines) / math.sqrt(n * d))


@pytest.mark.parametrize(("n", "d"), [(4, 6), (5, 3), (1, 4), (2, 1)])
def test_gradients_agree_with_finite_differences(n: int, d: int) -> None:
    x = torch.randn(2, n, d, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(real_dft, x)
    assert torch.autograd.gradgradcheck(real_dft, x)


def test_is_self_adjoint() -> None:
    x, y = torch.randn(2, 1, 33, 18, dtype=torch.float64)
    torch.testing.assert_close((plain(x) * y).sum(), (x * plain(y)).sum())


def test_saves_no_tensor_for_backward() -> None:
    saved: list[torch.Tensor] = []
    x = torch.randn(2, 16, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        real_dft(x)
    assert saved == []


def test_bf16_computes_in_fp32_and_returns_bf16() -> None:
    x = torch.randn(2, 64, 48).bfloat16()
    y = plain(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, torch.fft.fft2(x.double(), norm="ortho").real.bfloat16())


def test_values_in_padding_do_not_matter() -> None:
    x = torch.randn(2, 12, 8)
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, 7:] = 0
    other = x.clone()
    other[1, 7:] = 1e6
    torch.testing.assert_close(FourierMixing()(x, mask), FourierMixing()(other, mask), rtol=0, atol=0)
