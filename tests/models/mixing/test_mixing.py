"""Every mixing sublayer compared with its definition: complex matrices, numpy's FFT, block by block, row by row."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.config import ModelConfig, expand_size
from models.layers.attention_bias import encoder_bias_rule
from models.layers.factory import TorchLayers
from models.layers.initialization import initialize
from models.mixing import backend_choice, build_mixer
from models.mixing.causal_fourier import CausalFourierMixing, CausalTransform
from models.mixing.dft_tables import dft_tables
from models.mixing.fourier import FourierMixing, SelfAdjoint, SelfAdjointDocuments
from models.mixing.hartley import HartleyMixing
from models.mixing.transforms import BACKENDS, executed_flops


def reference(x: Tensor, transform: str, norm: str) -> Tensor:
    """numpy's 2-D FFT in double precision."""
    spectrum = np.fft.fft2(x.double().numpy(), norm=norm)
    return torch.from_numpy(spectrum.real - spectrum.imag if transform == "hartley" else spectrum.real)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 34),
    st.integers(1, 34),
    st.sampled_from(sorted(BACKENDS)),
    st.sampled_from(["dft_real", "hartley"]),
    st.sampled_from(["ortho", "backward"]),
)
def test_every_backend_equals_the_transform_at_any_size(n: int, d: int, backend: str, transform: str, norm: str) -> None:
    x = torch.randn(2, n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(n * 100 + d))
    found = BACKENDS[backend](x, transform, norm)  # type: ignore[arg-type]
    torch.testing.assert_close(found, reference(x, transform, norm), rtol=0, atol=1e-11)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("size", [(512, 768), (333, 96)])
def test_fp32_is_accurate_to_seven_digits_and_bf16_to_two(backend: str, size: tuple[int, int]) -> None:
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    exact = reference(x, "dft_real", "ortho")
    found = BACKENDS[backend](x, "dft_real", "ortho")
    assert (found - exact).norm() / exact.norm() < 1e-6
    rounded = BACKENDS[backend](x.bfloat16(), "dft_real", "ortho")
    assert rounded.dtype == torch.bfloat16
    assert (rounded.double() - exact).norm() / exact.norm() < 8e-3


@pytest.mark.parametrize("transform", ["dft_real", "hartley"])
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_gradients_agree_with_finite_differences(backend: str, transform: str) -> None:
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: SelfAdjoint.apply(x, transform, "ortho", backend), x)
    assert torch.autograd.gradgradcheck(lambda x: SelfAdjoint.apply(x, transform, "ortho", backend), x)


def test_hartley_is_its_own_inverse_and_the_real_part_is_not() -> None:
    x = torch.randn(2, 12, 10, dtype=torch.float64)
    mask = torch.ones(2, 12, dtype=torch.int64)
    hartley, fourier = HartleyMixing(), FourierMixing()
    torch.testing.assert_close(hartley(hartley(x, mask), mask), x)
    flipped = x.flip(1, 2).roll((1, 1), (1, 2))  # x[-n, -d]
    torch.testing.assert_close(fourier(fourier(x, mask), mask), (x + flipped) / 2)


def test_tables_come_from_integer_angles() -> None:
    """At 4096 points, the error of an fp32 angle from n·k is more than a thousand times this bound."""
    cosines, _ = dft_tables(4096, torch.device("cpu"), torch.float32)
    column = 4093
    exact = [math.cos(2 * math.pi * ((n * column) % 4096) / 4096) for n in range(4096)]
    torch.testing.assert_close(cosines[:, column].double(), torch.tensor(exact, dtype=torch.float64), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["fourier", "hartley", "linear", "random", "identity", "attention", "causal_fourier"])
def test_every_mixer_has_the_interface_a_gradient_and_no_stored_tables(name: str) -> None:
    config = ModelConfig(
        **expand_size({"size": "nano", "vocab_size": 100, "mixing": name, "max_length": 12, "position": "none"})
    )
    mixer = build_mixer(config, TorchLayers(), 0)
    initialize(mixer, seed=0)
    x = torch.randn(2, 12, 64, requires_grad=True)
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, 7:] = 0
    tables = torch.zeros(1, dtype=torch.int64)
    bias = encoder_bias_rule(config).make(tables, mask, 12, 12, x.dtype)
    mixed = mixer(x, mask, bias)
    assert mixed.shape == x.shape
    mixed.sum().backward()
    assert x.grad is not None
    assert all("over_" in key or "attention" in key for key in mixer.state_dict())
    if name != "identity":  # values in padding do not matter
        other = torch.where(mask.bool()[:, :, None], x, 1e4).detach()
        torch.testing.assert_close(mixer(other, mask, bias)[1, :7], mixed[1, :7].detach())


def test_linear_and_random_mixing_are_two_matrix_products() -> None:
    for name in ("linear", "random"):
        section = {"size": "nano", "vocab_size": 100, "mixing": name, "max_length": 9}
        mixer = build_mixer(ModelConfig(**expand_size(section)), TorchLayers(), 1)
        initialize(mixer, seed=0)
        x = torch.randn(2, 9, 64)
        expected = torch.einsum("nm,bmd,de->bne", mixer.over_tokens, x, mixer.over_features)
        torch.testing.assert_close(mixer(x, torch.ones(2, 9, dtype=torch.int64)), expected, rtol=1e-4, atol=1e-5)
        assert len(list(mixer.parameters())) == (2 if name == "linear" else 0)


def test_random_mixing_is_the_same_in_every_process_and_differs_between_layers() -> None:
    section = {"size": "nano", "vocab_size": 100, "mixing": "random", "max_length": 9}
    config = ModelConfig(**expand_size(section))
    one, same, other = (build_mixer(config, TorchLayers(), layer) for layer in (0, 0, 1))
    assert torch.equal(one.over_tokens, same.over_tokens)
    assert not torch.equal(one.over_tokens, other.over_tokens)


@pytest.mark.parametrize("name", ["linear", "random", "causal_fourier"])
def test_too_long_an_input_names_the_field(name: str) -> None:
    section = {"size": "nano", "vocab_size": 100, "mixing": name, "max_length": 9}
    mixer = build_mixer(ModelConfig(**expand_size(section)), TorchLayers(), 0)
    with pytest.raises(ValueError, match=r"10 tokens.*model\.max_length"):
        mixer(torch.randn(1, 10, 64), torch.ones(1, 10, dtype=torch.int64))


# --- per document ---


@pytest.mark.parametrize("mixer", [FourierMixing, HartleyMixing])
@pytest.mark.parametrize("norm", ["ortho", "backward"])
def test_documents_of_a_row_are_transformed_separately(mixer: type[FourierMixing], norm: str) -> None:
    x = torch.randn(2, 11, 6, dtype=torch.float64)
    documents = torch.tensor([[1] * 4 + [2] * 5 + [0] * 2, [1] * 11])
    found = mixer(norm, within_documents=True)(x, documents)
    for row, start, stop in ((0, 0, 4), (0, 4, 9), (1, 0, 11)):
        expected = reference(x[row, start:stop], mixer.transform, norm)
        torch.testing.assert_close(found[row, start:stop], expected, rtol=0, atol=1e-11)
    assert torch.equal(found[0, 9:], torch.zeros(2, 6, dtype=torch.float64))


def test_documents_are_isolated_and_have_correct_gradients() -> None:
    x = torch.randn(1, 8, 4, dtype=torch.float64, requires_grad=True)
    documents = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0]])
    assert torch.autograd.gradcheck(lambda x: SelfAdjointDocuments.apply(x, documents, "dft_real", "ortho"), x)
    (gradient,) = torch.autograd.grad(SelfAdjointDocuments.apply(x, documents, "dft_real", "ortho")[0, :3].sum(), x)
    assert torch.equal(gradient[0, 3:], torch.zeros(5, 4, dtype=torch.float64))


# --- causal ---


def causal_reference(x: Tensor, period: int) -> Tensor:
    """The causal transform, row by row in complex arithmetic."""
    num_tokens, num_features = x.shape[-2:]
    features = torch.fft.fft(x, dim=-1)
    rows = []
    for n in range(num_tokens):
        twiddles = torch.tensor([np.exp(-2j * np.pi * ((n * m) % period) / period) for m in range(n + 1)])
        rows.append(torch.einsum("m,bmd->bd", twiddles, features[:, : n + 1]).real)
    return torch.stack(rows, dim=1) / math.sqrt(period * num_features)


@pytest.mark.parametrize(("n", "d", "period"), [(7, 6, 7), (8, 5, 8), (5, 4, 16), (1, 3, 4)])
def test_causal_rows_are_partial_sums_of_the_transform(n: int, d: int, period: int) -> None:
    x = torch.randn(2, n, d, dtype=torch.float64)
    found = CausalFourierMixing(period)(x, None)
    torch.testing.assert_close(found, causal_reference(x, period), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: CausalTransform.apply(x, period, "ortho", 0, False), x.requires_grad_())
    if n > 2:
        assert torch.autograd.gradcheck(lambda x: CausalTransform.apply(x, period, "ortho", 2, False), x)


def test_future_tokens_have_no_influence() -> None:
    x = torch.randn(1, 20, 8)
    changed = x.clone()
    changed[:, 13:] = 1e6
    mixer = CausalFourierMixing(32)
    assert torch.equal(mixer(x, None)[:, :13], mixer(changed, None)[:, :13])


def test_the_last_row_of_a_full_period_equals_the_full_transform() -> None:
    x = torch.randn(1, 16, 8, dtype=torch.float64)
    torch.testing.assert_close(CausalFourierMixing(16)(x, None)[:, -1], reference(x, "dft_real", "ortho")[:, -1])


# --- the choice of a backend ---


def test_auto_measures_once_and_stores_the_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    backend_choice._choose.cache_clear()
    calls = []

    def measure(*arguments: object) -> str:
        calls.append(arguments)
        return "matmul"

    monkeypatch.setattr(backend_choice, "measure", measure)
    x = torch.randn(3, 16, 8, dtype=torch.float64)
    mask = torch.ones(3, 16, dtype=torch.int64)
    torch.testing.assert_close(FourierMixing(backend="auto")(x, mask), reference(x, "dft_real", "ortho"))
    backend_choice._choose.cache_clear()  # like a new process
    FourierMixing(backend="auto")(x, mask)
    assert len(calls) == 1
    assert list(json.loads(backend_choice.cache_file().read_text()).values()) == ["matmul"]
    backend_choice._choose.cache_clear()


def test_the_measured_winner_is_a_backend() -> None:
    assert backend_choice.measure(1, 16, 8, torch.float32, torch.device("cpu"), "dft_real") in BACKENDS


def test_executed_flops_of_the_folded_form_are_an_eighth_of_the_plain_one() -> None:
    assert executed_flops("matmul", 512, 768) / executed_flops("folded", 512, 768) == pytest.approx(8, rel=0.01)
    assert executed_flops("folded", 512, 768) == pytest.approx(512 * 768 * (512 + 768) / 2, rel=0.01)  # d(N + d)/2 per token


@pytest.mark.parametrize("backend", ["matmul", "folded"])
def test_compiles_without_a_graph_break(backend: str) -> None:
    mixer: nn.Module = FourierMixing(backend=backend)
    x, mask = torch.randn(2, 8, 6), torch.ones(2, 8, dtype=torch.int64)
    compiled = torch.compile(mixer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, mask), mixer(x, mask))
