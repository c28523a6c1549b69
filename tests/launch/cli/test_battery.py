"""`fnet-t5 scaling battery`: runs, skips what is there, goes on after a move, reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.local import PREEMPTED_EXIT

RECIPE = "configs/battery/first.yaml"
SMALL = (
    *("tasks=[recall,nested_lists]", "lengths=[16]", "arms=[ff_only]", "seeds=1", "training.steps=2", "training.rows=2"),
    *("training.targets=1", "training.warmup_steps=1", "training.validate_every=2", "training.validation_rows=4"),
    "training.test_rows=4",
)


def test_runs_are_made_once_and_reported(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first, moved, report = tmp_path / "first", tmp_path / "moved", tmp_path / "report"
    assert command("scaling", "battery", RECIPE, *SMALL, "--output", first, "--minutes", "0") == PREEMPTED_EXIT
    assert "0 of 2 runs are in" in capsys.readouterr().out
    assert command("scaling", "battery", RECIPE, *SMALL, "--output", first, "--jobs", "2") == 0
    shown = capsys.readouterr().out
    assert "[2/2]" in shown
    made = {path.name: path.read_bytes() for path in first.iterdir()}
    assert sorted(made) == ["nested_lists-n16-ff_only-d32-seed0.json", "recall-n16-ff_only-d32-seed0.json"]
    first.rename(moved)
    assert command("scaling", "battery", RECIPE, *SMALL, "--output", moved, "--report", report) == 0
    assert "2 of 2 runs are in" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in moved.iterdir()} == made
    assert sorted(path.name for path in report.iterdir()) == ["README.md", "results.parquet", "runs.csv", "solved.svg"]


def test_an_impossible_model_is_one_line(command: Callable[..., int], error_line: Callable[[], str], tmp_path: Path) -> None:
    changes = "sizes.d32.model.num_encoder_layers=2", "arms=[fnet_t5_top2]"
    assert command("scaling", "battery", RECIPE, *SMALL, *changes, "--output", tmp_path) == 1
    assert "fnet_t5_top2 keeps attention in 2 encoder layers" in error_line()
