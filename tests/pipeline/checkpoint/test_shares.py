"""How the weights of a checkpoint are divided among the ranks that write them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.checkpoint import checkpoint as saving
from pipeline.checkpoint.checkpoint import gather_share

SIZES = [7, 400, 3, 90, 90, 90, 1, 250, 64, 5]


def shares(tensor: int, data: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, torch.Tensor], str]]:
    """What each rank of one stage writes, tensor fastest."""
    entries = [
        SimpleNamespace(
            name=f"w{number}", is_copy=False, shard_dim=None, full_shape=(size,), parameter=torch.full((size,), 1.0)
        )
        for number, size in enumerate(SIZES)
    ]
    copy = SimpleNamespace(name="tied", is_copy=True)
    stages: Any = SimpleNamespace(canonical_parameters=lambda: [*entries, copy])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda totals: totals.fill_(4 * sum(SIZES)))  # of rank 0
    result = []
    for rank in range(tensor * data):
        mesh: Any = SimpleNamespace(
            pipeline_parallel=1,
            pipeline_rank=0,
            data_parallel=data,
            data_rank=rank // tensor,
            tensor_parallel=tensor,
            tensor_rank=rank % tensor,
            device=torch.device("cpu"),
        )
        result.append(gather_share(stages, mesh))
    return result


@pytest.mark.parametrize(("tensor", "data"), [(1, 1), (2, 1), (4, 8), (8, 64)])
@pytest.mark.parametrize("part_bytes", [1 << 30, 1000, 300, 1])
def test_every_parameter_is_written_once_and_no_rank_holds_more_than_its_part(
    tensor: int, data: int, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_SHARE_BYTES", part_bytes)
    found = shares(tensor, data, monkeypatch)
    written = [name for tensors, _ in found for name in tensors]
    assert sorted(written) == sorted(f"w{number}" for number in range(len(SIZES)))
    total = 4 * sum(SIZES)
    parts = max(1, min(tensor * data, total // part_bytes))
    largest = max(sum(value.numel() * 4 for value in tensors.values()) for tensors, _ in found)
    assert largest <= total / parts + 4 * max(SIZES)
    files = [name for tensors, name in found if tensors]
    assert len(files) == len(set(files)) <= parts
    assert all(name.endswith(f"-of-{parts:05d}.safetensors") for name in files)
    if part_bytes == 1 << 30:
        assert files == ["model-00001-of-00001.safetensors"]  # a small model is one file, written by the first rank
        assert found[0][0]
