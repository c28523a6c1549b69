"""Tests of `checkpoint list`, `verify` and `reshard`, and of branches, on a run written by four processes."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.tokenization.tokenizer import load_tokenizer
from launch.cli import _GlobalOptions, build_app
from launch.preflight import check_initial_weights
from pipeline.checkpoint.branch import branch
from pipeline.checkpoint.checkpoint import Position
from pipeline.checkpoint.optimizer_state import KINDS, OPTIMIZER_FOLDER, StoredState
from pipeline.checkpoint.reshard import reshard
from pipeline.config import MeshConfig, RunConfig
from pipeline.run_folder import STATE, describe, find, latest, load_weights
from pipeline.tracking.metrics import read_metrics
from tests.helpers.datasets import tales, write_text_dataset
from tests.helpers.processes import WORKER, start_processes
from tests.helpers.recipes import nano_recipe, write_run


def recipe(dataset: Path) -> dict[str, dict[str, Any]]:
    """Four steps on pipeline 2 × data 2, with checkpoints at steps 2 and 4, with dropout, without samples 3 and 4."""
    return nano_recipe(
        dataset,
        model={"dropout": 0.1},
        data={"skip_ranges": [[3, 5]]},
        mesh={"tensor_parallel": 1, "pipeline_parallel": 2},
        train={"steps": 4, "checkpoint_every": 2, "validate_every": 2, "keep_last": None},
        optimizer={"learning_rate": 0.002, "warmup_steps": 3, "decay_steps": 44},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    folder = write_run(tmp_path_factory.mktemp("reshard") / "run", recipe(dataset))
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


def stored(run: Path, step: int) -> dict[tuple[str, str], torch.Tensor]:
    """Weights and moments of a checkpoint, whole, by name and kind."""
    state = StoredState(find(run, step) / STATE / OPTIMIZER_FOLDER)
    return {(name, kind): state.shard(name, kind, 0, 1) for name in state.layouts for kind in KINDS}


def assert_equal_state(first: dict[tuple[str, str], torch.Tensor], second: dict[tuple[str, str], torch.Tensor]) -> None:
    assert first.keys() == second.keys() != set()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_a_branch_without_a_change_continues_bit_for_bit(run: Path, tmp_path: Path, dataset: Path) -> None:
    """Pipeline 2 × data 2 with ZeRO-1: steps 3 and 4 of the branch are those of its parent.

    A range of samples that lies before its place in the data changes nothing.
    """
    same = recipe(dataset)
    same["data"]["skip_ranges"] = [[0, 2], [3, 5]]
    folder = write_run(tmp_path / "branch", same)
    branch(run, folder, step=2)
    start_processes(4, WORKER, folder)
    assert_equal_state(stored(folder, 4), stored(run, 4))
    columns = ("step", "loss", "grad_norm", "learning_rate", "raw_tokens", "target_tokens", "flops", "epoch")
    rows = [[[row[name] for name in columns] for row in _logged(one)] for one in (run, folder)]
    assert rows[0] == rows[1]
    assert [row[0] for row in rows[0]] == [1, 2, 3, 4]
    # a warm-up of 3 steps, then a cosine to a tenth at step 44
    expected = [0.002 / 3, 0.004 / 3, 0.002, 0.002 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 41)))]
    assert [row[3] for row in rows[0]] == pytest.approx(expected, rel=1e-12)
    ends = [Position.read(find(one, 4)) for one in (run, folder)]
    assert ends[0].guards == ends[1].guards
    assert len(ends[1].guards["losses"]) == len(ends[1].guards["norms"]) == 4  # the history of the spike guard is whole
    assert ends[0].next_sample == ends[1].next_sample == 4 * 8 + 2


def _logged(run: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run / "metrics.jsonl") if "loss" in row]


def test_a_run_on_other_data_begins_with_the_moments_of_a_checkpoint(run: Path, tmp_path: Path, dataset: Path) -> None:
    """On another mesh, with another seed and schedule. The first step makes no update, so that it saves what it began with."""
    texts = {"train": tales(1), "val": tales(2)[:4]}
    data = write_text_dataset(tmp_path / "data", texts, [24], tokenizer=load_tokenizer(dataset / "tokenizer.json"))
    given = find(run, 4)
    changed = nano_recipe(
        data,
        mesh={"tensor_parallel": 2, "pipeline_parallel": 1},
        train={"steps": 1, "seed": 5, "skip_steps": [1], "initial_weights": str(given), "initial_moments": True},
        optimizer={"learning_rate": 0.5, "warmup_steps": 10},
    )
    folder = write_run(tmp_path / "new", changed)
    assert check_initial_weights(RunConfig.load(folder)) == []
    start_processes(4, WORKER, folder)
    assert_equal_state(stored(folder, 1), stored(run, 4))
    begun, position = find(folder, 1), Position.read(find(folder, 1))
    assert StoredState(begun / STATE / OPTIMIZER_FOLDER).step == 4  # of the bias correction
    assert all(torch.equal(value, load_weights(given)[name]) for name, value in load_weights(begun).items())
    assert (position.step, position.seed, position.next_sample, position.guards["losses"]) == (1, 5, 8, [])
    (row,) = _logged(folder)
    assert (row["step"], row["learning_rate"], row["skipped"]) == (1, 0.05, "train.skip_steps")


def test_a_new_run_with_moments_updates_as_its_parent_would(tmp_path: Path, dataset: Path) -> None:
    """The data are one row, so the parent and the new run read the same: steps 3 and 4 of the one are 1 and 2 of the other."""
    tokenizer = load_tokenizer(dataset / "tokenizer.json")
    text = tokenizer.decode(tokenizer.encode(tales(0)[0][0]).ids[:20])
    texts = {"train": [(text, "one")], "val": tales(2)[:4]}
    data = write_text_dataset(tmp_path / "data", texts, [24], tokenizer=tokenizer)
    optimizer = {"learning_rate": 0.01, "warmup_steps": 0, "schedule": "constant"}
    parent = write_run(tmp_path / "parent", nano_recipe(data, train={"steps": 4, "checkpoint_every": 2}, optimizer=optimizer))
    start_processes(1, WORKER, parent)
    train = {"steps": 2, "seed": 0, "initial_weights": str(find(parent, 2)), "initial_moments": True}
    new = write_run(tmp_path / "new", nano_recipe(data, train=train, optimizer=optimizer))
    start_processes(1, WORKER, new)
    assert_equal_state(stored(new, 2), stored(parent, 4))
    first, last = stored(parent, 2), stored(parent, 4)
    assert not any(torch.equal(first[key], last[key]) for key in last if key[1] == "exp_avg")
    rows, continued = _logged(parent), _logged(new)
    assert [row["loss"] for row in rows[2:]] == [row["loss"] for row in continued]
    assert rows[0]["loss"] > rows[-1]["loss"] > 0
    assert [(row["epoch"], row["repeated_rows"]) for row in rows] == [(8.0, 7), (16.0, 15), (24.0, 23), (32.0, 31)]


def test_moments_are_refused_where_there_are_none(run: Path, tmp_path: Path, dataset: Path) -> None:
    given = find(run, 4)

    def check(folder: Path, **model: object) -> list[str]:
        sections = nano_recipe(
            dataset, model=model, train={"steps": 1, "initial_weights": str(folder), "initial_moments": True}
        )
        return check_initial_weights(RunConfig.load(write_run(tmp_path / str(len(list(tmp_path.iterdir()))), sections)))

    weights_alone = tmp_path / "imported"
    shutil.copytree(given / "weights", weights_alone / "weights")
    with pytest.raises(ValueError, match=r"train\.initial_moments: .*imported has weights alone, no state/engine with moments"):
        check(weights_alone)
    with pytest.raises(ValueError, match=r"is a run folder: give one of its checkpoints"):
        check(run)
    cut = tmp_path / "cut"
    shutil.copytree(given, cut)
    next((cut / "state/engine").iterdir()).unlink()
    with pytest.raises(
        ValueError, match=r"train\.initial_weights: .*rank_\d+\.safetensors is missing: the checkpoint is damaged"
    ):
        check(cut)
    with pytest.raises(ValueError, match=r"does not fit the recipe's model section"):
        check(given, d_ff=64)
    with pytest.raises(ValueError, match=r"train\.initial_moments true takes the moments from a checkpoint: give it as"):
        RunConfig.model_validate(nano_recipe(dataset, train={"steps": 1, "initial_moments": True}))
    (run / "tokenizer.json").write_bytes((kept := (run / "tokenizer.json").read_bytes()) + b" ")
    (warning,) = check(given)
    (run / "tokenizer.json").write_bytes(kept)
    assert "was trained with another tokenizer" in warning


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
