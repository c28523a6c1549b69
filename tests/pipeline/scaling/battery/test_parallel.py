"""Runs in processes of their own: a signal, a deadline and a killed process end them, and what was written stays."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.scaling.battery.outcomes import read_outcomes
from pipeline.scaling.battery.parallel import BatteryProgress, run_battery
from pipeline.scaling.battery.settings import BatteryRecipe, BatteryRun

SIZE = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}


@pytest.fixture(scope="module")
def runs() -> list[BatteryRun]:
    """One run of two steps, and two that no test waits for."""
    training = {"steps": 2, "rows": 2, "targets": 1, "most_rows": 2, "warmup_steps": 1, "validate_every": 2, "test_rows": 4}
    recipe = BatteryRecipe.model_validate(
        {
            **{"tasks": ["recall", "copy", "sort"], "lengths": [16], "arms": ["ff_only"], "seeds": 1, "learning_rate": 0.01},
            **{"sizes": {"d16": {"model": SIZE}}, "training": training},
        }
    )
    short, *others = recipe.runs()
    endless = recipe.training.model_copy(update={"steps": 10**9, "validate_every": 10**6})
    return [short, *(replace(run, training=endless) for run in others)]


def test_a_signal_stops_after_what_was_written(runs: list[BatteryRun], tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        os.kill(os.getpid(), signal.SIGTERM)

    assert run_battery(tmp_path, runs, jobs=1, minutes=None, log=log) == BatteryProgress(1, 2)
    assert lines[0].startswith("[1/3] recall-n16-ff_only-d16-seed0: ")
    assert [one.name for one in read_outcomes(tmp_path)] == ["recall-n16-ff_only-d16-seed0"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_deadline_stops(runs: list[BatteryRun], tmp_path: Path) -> None:
    assert run_battery(tmp_path, runs[1:], jobs=1, minutes=0.001, log=print) == BatteryProgress(0, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_is_one_clear_line(runs: list[BatteryRun], tmp_path: Path) -> None:
    def kill(line: str) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(ValueError, match=r"a process was killed while it made one of copy-n16-ff_only-d16-seed0: rerun"):
        run_battery(tmp_path, runs[:2], jobs=1, minutes=None, log=kill)
    assert len(read_outcomes(tmp_path)) == 1
