"""Reading parts of a stored optimizer state: the right values, and no more than is needed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.checkpoint import optimizer_state
from pipeline.checkpoint.optimizer_state import StoredState, StoredWeights, tensor_key, write_rank

ROWS, COLUMNS, TENSOR, DATA = 8, 6, 2, 4


@pytest.fixture
def full(tmp_path: Path) -> torch.Tensor:
    """A parameter sharded by rows over two tensor ranks, each shard cut into four fragments of unequal length."""
    value = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    bounds = [0, 5, 6, 17, ROWS * COLUMNS // TENSOR]
    for rank in range(TENSOR * DATA):
        tensor_rank, data_rank = rank % TENSOR, rank // TENSOR
        flat = value.chunk(TENSOR)[tensor_rank].reshape(-1)
        begin, end = bounds[data_rank : data_rank + 2]
        tensors = {tensor_key("w", tensor_rank, begin, "exp_avg"): flat[begin:end].clone()}
        write_rank(tmp_path, rank, tensors, {"w": [[ROWS, COLUMNS], 0]}, 7, TENSOR)
    return value


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of elements of each read."""
    counts: list[int] = []
    real = optimizer_state._OpenFiles.open

    def counting(files: Any, path: Path) -> Any:
        opened = real(files, path)

        def get_slice(key: str) -> Any:
            values = opened.get_slice(key)

            class Counted:
                def __getitem__(self, index: Any) -> torch.Tensor:
                    found: torch.Tensor = values[index]
                    counts.append(found.numel())
                    return found

            return Counted()

        return SimpleNamespace(get_slice=get_slice)

    monkeypatch.setattr(optimizer_state._OpenFiles, "open", counting)
    return counts


def test_any_part_is_read_and_nothing_else(full: torch.Tensor, read: list[int], tmp_path: Path) -> None:
    stored = StoredState(tmp_path)
    for tensor_rank in range(TENSOR):
        flat = full.chunk(TENSOR)[tensor_rank].reshape(-1)
        for start in range(len(flat)):
            for numel in range(1, len(flat) - start + 1):
                read.clear()
                assert torch.equal(stored.part("w", "exp_avg", tensor_rank, TENSOR, start, numel), flat[start : start + numel])
                assert sum(read) == numel
    assert torch.equal(stored.part("w", "exp_avg", 0, 1, 10, 30), full.reshape(-1)[10:40])  # another tensor parallelism
    assert torch.equal(stored.shard("w", "exp_avg", 0, 1), full)


def test_a_part_that_no_file_holds_is_named(full: torch.Tensor, tmp_path: Path) -> None:
    (tmp_path / "rank_00002.safetensors").unlink()  # elements 5 to 6 of tensor rank 0
    stored = StoredState(tmp_path)
    assert torch.equal(stored.part("w", "exp_avg", 0, TENSOR, 6, 3), full.chunk(TENSOR)[0].reshape(-1)[6:9])
    with pytest.raises(ValueError, match="has elements 2 to 5 in sequence, not 9: files are missing"):
        stored.part("w", "exp_avg", 0, TENSOR, 2, 7)


def test_only_the_files_of_the_manifest_are_read(tmp_path: Path) -> None:
    """An interrupted save on another mesh may leave a file, and a network file system may list files late."""
    checkpoint, folder = tmp_path, tmp_path / "state" / "engine"
    folder.mkdir(parents=True)
    for rank, numel in ((0, 6), (1, 4)):
        tensors = {tensor_key("w", 0, 0, "master"): torch.full((numel,), float(rank))}
        write_rank(folder, rank, tensors, {"w": [[numel], None]}, 3, 1)
    sums = {"state/engine/rank_00000.safetensors": "0", "weights/rank_00001.safetensors": "0"}
    (checkpoint / "state" / "manifest.json").write_text(json.dumps({"sha256": sums}))
    stored = StoredState(folder)
    assert stored.layouts["w"].shape == (6,)
    assert torch.equal(stored.shard("w", "master", 0, 1), torch.zeros(6))


@pytest.mark.parametrize("dim", [None, 0, 1])
def test_a_rank_reads_its_shard_of_the_weights(dim: int | None, read: list[int], tmp_path: Path) -> None:
    value = torch.randn(ROWS, COLUMNS)
    save_file({"w": value}, tmp_path / "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "a.safetensors"}}')
    entry: Any = SimpleNamespace(name="w", shard_dim=dim, full_shape=(ROWS, COLUMNS))
    for rank in range(2):
        mesh: Any = SimpleNamespace(tensor_rank=rank, tensor_parallel=2)
        expected = value if dim is None else value.chunk(2, dim)[rank]
        assert torch.equal(StoredWeights(tmp_path).shard(entry, mesh), expected)
    assert sum(read) == (2 if dim is None else 1) * value.numel()
    with pytest.raises(ValueError, match="holds no v"):
        StoredWeights(tmp_path).shard(SimpleNamespace(name="v"), mesh)  # type: ignore[arg-type]
