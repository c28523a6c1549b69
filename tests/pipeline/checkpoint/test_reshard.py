"""Tests of `checkpoint list`, `verify` and `reshard`, and of branches, on a run written by four processes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from launch.cli import _GlobalOptions, build_app
from pipeline.checkpoint.branch import branch
from pipeline.checkpoint.optimizer_state import KINDS, OPTIMIZER_FOLDER, StoredState
from pipeline.checkpoint.reshard import reshard
from pipeline.config import MeshConfig
from pipeline.run_folder import STATE, describe, find, latest, load_weights
from pipeline.tracking.metrics import read_metrics
from tests.helpers.processes import WORKER, start_processes
from tests.helpers.recipes import nano_recipe, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """Four steps on pipeline 2 × data 2, with checkpoints at steps 2 and 4."""
    recipe = nano_recipe(
        dataset,
        mesh={"tensor_parallel": 1, "pipeline_parallel": 2},
        train={"steps": 4, "checkpoint_every": 2, "validate_every": 2, "keep_last": None},
        optimizer={"learning_rate": 0.002, "warmup_steps": 3, "decay_steps": 44},
    )
    folder = write_run(tmp_path_factory.mktemp("reshard") / "run", recipe)
    start_processes(4, WORKER, folder)
    return folder


@pytest.mark.parametrize(("tensor", "pipeline", "data"), [(1, 1, 1), (2, 2, 2), (4, 1, 2), (1, 4, 1)])
def test_resharded_tensors_are_bitwise_equal(run: Path, tmp_path: Path, tensor: int, pipeline: int, data: int) -> None:
    moved = tmp_path / "moved"
    checkpoint = reshard(run, moved, MeshConfig(tensor_parallel=tensor, pipeline_parallel=pipeline), data)
    before, after = StoredState(find(run) / STATE / OPTIMIZER_FOLDER), StoredState(checkpoint / STATE / OPTIMIZER_FOLDER)
    assert after.layouts == before.layouts
    assert after.step == before.step == 4
    assert after.tensor_parallel == tensor
    for name in before.layouts:
        for kind in KINDS:
            assert torch.equal(before.shard(name, kind, 0, 1), after.shard(name, kind, 0, 1)), (name, kind)
    weights = load_weights(checkpoint)
    assert all(torch.equal(value, weights[name]) for name, value in load_weights(find(run)).items())
    assert describe(checkpoint).mesh == f"{tensor} × {pipeline} × {data}"
    assert latest(moved) == checkpoint
    # fp32: the weights on disk are the optimizer's main weights
    assert all(torch.equal(after.shard(name, "master", 0, 1), value) for name, value in weights.items())


def test_impossible_meshes_and_non_empty_folders_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a multiple of train"):
        reshard(run, tmp_path / "three", MeshConfig(), 3)
    with pytest.raises(ValueError, match="is not empty"):
        reshard(run, run, MeshConfig(), 1)


def test_a_branch_starts_at_a_checkpoint_of_its_parent(run: Path, tmp_path: Path) -> None:
    assert branch(run, tmp_path, step=2) == 2
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row] == [1, 2]
    found = latest(tmp_path)
    assert found is not None
    assert found.name == "step_00000002"
    assert branch(run, tmp_path, step=2) == 2  # a second start changes nothing
    with pytest.raises(ValueError, match="has no checkpoint of step 3"):
        branch(run, tmp_path / "other", step=3)


def test_the_checkpoint_command_lists_and_verifies(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)

    def command(*arguments: str) -> int:
        return int(build_app(_GlobalOptions())(list(arguments), standalone_mode=False) or 0)

    command("checkpoint", "list", str(copy))
    listed = capsys.readouterr().out
    assert "1 × 2 × 2" in listed
    assert "latest" in listed
    assert command("checkpoint", "verify", str(copy)) == 0
    assert capsys.readouterr().out.count("all checksums match") == 2
    damaged = next((copy / "checkpoints/step_00000002/state/engine").iterdir())
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    assert command("checkpoint", "verify", str(copy)) == 1
    assert f"{damaged.name} differs from its checksum" in capsys.readouterr().err
