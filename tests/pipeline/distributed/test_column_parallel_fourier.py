"""The column-parallel transform compared with torch's two-dimensional one, rank by rank in one process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.mixing.fourier import FourierMixing
from pipeline.distributed.column_parallel_fourier import column_dft2, shard_columns


def on_ranks(x: Tensor, norm: str, size: int, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The result of every rank of a group. The first pass collects what each sends, the second gathers it."""
    sent: dict[int, Tensor] = {}

    def group(rank: int) -> Any:
        return SimpleNamespace(size=lambda: size, rank=lambda: rank)

    def collect(out: Tensor, own: Tensor, group: Any) -> None:
        sent[group.rank()] = own.clone()
        out.zero_()

    def gather(out: Tensor, own: Tensor, group: Any) -> None:
        out.copy_(torch.cat([sent[rank] for rank in range(size)]))

    results = []
    for all_gather in (collect, gather):
        monkeypatch.setattr(torch.distributed, "all_gather_into_tensor", all_gather)
        results = [column_dft2(x, norm, group(rank)) for rank in range(size)]
    return results


@pytest.mark.parametrize("norm", ["ortho", "backward", "forward"])
@pytest.mark.parametrize(("size", "features"), [(1, 8), (2, 8), (3, 9), (4, 16), (4, 6)])
def test_equals_the_transform_of_torch_on_every_rank(
    norm: str, size: int, features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 7, features, dtype=torch.float64)
    expected = torch.fft.fft2(x, norm=norm).real
    for result in on_ranks(x, norm, size, monkeypatch):
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_bf16_is_transformed_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 7, 16).bfloat16()
    expected = torch.fft.fft2(x.float(), norm="ortho").real.bfloat16()
    for result in on_ranks(x, "ortho", 2, monkeypatch):
        assert result.dtype == torch.bfloat16
        assert torch.equal(result, expected)


@pytest.mark.parametrize("norm", ["ortho", "backward"])
def test_a_layer_keeps_the_norm_of_its_mixing(norm: str) -> None:
    layer = torch.nn.Module()
    layer.mixing = FourierMixing(norm)
    assert shard_columns(layer).get_submodule("mixing").norm == norm
