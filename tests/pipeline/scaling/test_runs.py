"""Run folders read as points. The files are written by the trainer's own writers where that needs no training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig
from pipeline.run_folder import write_status
from pipeline.scaling.fit.points import Excluded, Point
from pipeline.scaling.runs import read_run
from pipeline.tracking.metrics import Counters, MetricsFile
from tests.helpers.datasets import write_dataset

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A finished run of 4 steps with two validations on a data folder."""

    def make(losses: tuple[float | None, ...] = (5.0, 4.0), status: str = "finished", raw_tokens: int = 300) -> Path:
        data = tmp_path / "data"
        if not data.exists():
            write_dataset(data, [list(range(300)), list(range(300))])
        run = tmp_path / "run"
        run.mkdir()
        config = RunConfig.model_validate(
            {
                "model": {"architecture": "t5", "size": "nano", "vocab_size": 420},
                "data": {"path": str(data), "encoder_length": 16, "decoder_length": 8},
                "train": {"steps": 4, "seed": 7},
            }
        )
        (run / "config.json").write_text(config.model_dump_json())
        (run / "tokenizer.json").write_bytes((data / "tokenizer.json").read_bytes())
        metrics = MetricsFile(run / "metrics.jsonl", 0)
        for number, loss in enumerate(losses, start=1):
            share = number / len(losses)
            step = int(4 * share)
            spent = Counters(raw_tokens=int(raw_tokens * share), flops=1e12 * share, seconds=8.0 * share)
            metrics.write({"step": step, "loss": 1.0, **asdict(spent)})
            metrics.write({"step": step, "validation_loss": 9.0, "source": "Python topics", **asdict(spent)})
            metrics.write({"step": step, "validation_loss": loss, "source": "all", **asdict(spent)})
        metrics.close()
        state = run / "checkpoints" / "step_00000004" / "state"
        state.mkdir(parents=True)
        (state / "position.json").write_text(json.dumps({"dataset_fingerprint": "abc"}))
        (run / "checkpoints" / "latest").write_text("step_00000004\n")
        write_status(run, status)
        return run

    return make


def read(run: Path, **more: Any) -> Point | Excluded:
    return read_run(run, arm="t5", budget=1e12, **{"train_tokens": 600, **more})


def test_the_loss_of_a_run_is_its_last_validation_over_all_sources(make_run: MakeRun) -> None:
    point = read(make_run())
    assert isinstance(point, Point)
    assert (point.loss, point.tokens, point.flops, point.seconds) == (4.0, 300, 1e12, 8.0)
    assert (point.arm, point.size, point.seed, point.data, point.epochs) == ("t5", "nano", 7, "abc", 0.5)
    assert "prefix_lm" in point.measure
    assert "16+8" in point.measure
    assert point.problem is None


def test_parameter_counts_equal_torch(make_run: MakeRun) -> None:
    from models.architectures.build import build_model

    run = make_run()
    model = build_model(RunConfig.load(run).model)
    point = read(run)
    assert isinstance(point, Point)
    assert point.num_parameters == sum(parameter.numel() for parameter in model.parameters())


def test_passes_are_computed_from_the_manifest_of_the_data(make_run: MakeRun) -> None:
    point = read(make_run(raw_tokens=3600), train_tokens=None)  # two documents of 300 tokens
    assert isinstance(point, Point)
    assert point.epochs == 6.0


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "metrics.jsonl",
        "STATUS",
        "tokenizer.json",
        "checkpoints/latest",
        "checkpoints/step_00000004/state/position.json",
    ],
)
def test_a_missing_file_is_named(make_run: MakeRun, name: str) -> None:
    run = make_run()
    (run / name).unlink()
    assert read(run) == Excluded(str(run), f"missing file: {Path(name).name}")


def test_missing_data_is_named(make_run: MakeRun) -> None:
    run = make_run()
    (run.parent / "data" / "manifest.json").unlink()
    found = read(run, train_tokens=None)
    assert isinstance(found, Excluded)
    assert found.reason.startswith("how often it repeats its data is unknown")
    assert "train_tokens" in found.reason


@pytest.mark.parametrize(
    ("losses", "status", "problem"),
    [
        ((5.0, None), "finished", "diverged: no finite validation loss at step 4"),
        ((4.0, 4.3), "finished", "diverged: validation loss 4.3000 at its end, 4.0000 before"),
        ((5.0, 4.0), "failed", "its status is failed, at step 4 of 4: resume it first"),
        ((5.0, 4.0), "running", "its status is running, at step 4 of 4: resume it first"),
    ],
)
def test_an_excluded_run_states_the_reason(make_run: MakeRun, losses: Any, status: str, problem: str) -> None:
    point = read(make_run(losses, status))
    assert isinstance(point, Point)
    assert point.problem == problem


def test_damaged_files_are_errors_not_missing_results(make_run: MakeRun) -> None:
    run = make_run()
    (run / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON .*restore it"):
        read(run)
