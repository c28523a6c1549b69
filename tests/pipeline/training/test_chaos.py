"""A run with ten injected faults ends with exactly the losses of an undisturbed run that skips the same steps."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.run_folder import find, load_weights
from pipeline.tracking.metrics import read_metrics
from tests.helpers.processes import HELPERS
from tests.helpers.recipes import nano_recipe, write_run

STEPS = 44
FAULTS = [
    {"step": 4, "kind": "kill", "rank": 2},
    {"step": 9, "kind": "term", "rank": 0},
    {"step": 10, "kind": "kill_in_save", "rank": 0},
    {"step": 15, "kind": "nan", "rank": 3},
    {"step": 18, "kind": "kill", "rank": 0},
    {"step": 22, "kind": "spike", "rank": 2},
    {"step": 26, "kind": "term", "rank": 1},
    {"step": 30, "kind": "kill_in_save", "rank": 0},
    {"step": 31, "kind": "nan", "rank": 2},
    {"step": 37, "kind": "kill", "rank": 3},
]


def write_faulty_run(run: Path, dataset: Path, faults: list[dict[str, Any]], **train: Any) -> Path:
    """A run on pipeline 2 × data 2, and the faults that `chaos_worker.py` injects."""
    recipe = nano_recipe(
        dataset,
        mesh={"tensor_parallel": 1, "pipeline_parallel": 2},
        train={
            **{"steps": STEPS, "checkpoint_every": 5, "validate_every": 100, "keep_last": 3, "spike_window": 16},
            **train,
        },
        optimizer={"learning_rate": 0.002, "warmup_steps": 3, "decay_steps": STEPS},
    )
    write_run(run, recipe)
    (run / "faults.json").write_text(json.dumps(faults))
    return run


def start(run: Path) -> int:
    """Four local ranks of a run, as `fnet-t5 train` starts them."""
    code = (
        "import sys; from pathlib import Path; from launch.local import run_local\n"
        f"sys.exit(run_local(Path({str(run)!r}), 4, worker=Path({str(HELPERS / 'chaos_worker.py')!r})))"
    )
    return subprocess.run([sys.executable, "-c", code], check=False, timeout=600).returncode


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_faults_do_not_change_the_losses(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    faulty = write_faulty_run(tmp_path / "faulty", dataset, FAULTS)
    starts, deaths = 0, []
    while (read := (faulty / "STATUS").read_text().strip() if (faulty / "STATUS").exists() else "") != "finished":
        assert starts < 12, read
        began = time.monotonic()
        deaths.append(start(faulty))
        starts += 1
        assert time.monotonic() - began < 500
    assert deaths[-1] == 0
    assert len(list((faulty / "faults").iterdir())) == 7  # every fault that happens once has happened
    undisturbed = write_faulty_run(tmp_path / "undisturbed", dataset, [], skip_steps=[15, 22, 31], spike_sigma=0)
    assert start(undisturbed) == 0

    rows = {
        run: [row for row in read_metrics(run / "metrics.jsonl") if "grad_norm" in row or "skipped" in row]
        for run in (faulty, undisturbed)
    }
    skipped = {row["step"]: row["skipped"] for row in rows[faulty] if "skipped" in row}
    assert skipped == {15: "not finite", 31: "not finite", 22: "spike"}
    curves = [{row["step"]: row["loss"] for row in rows[run] if "skipped" not in row} for run in (faulty, undisturbed)]
    assert curves[0] == curves[1]
    assert len(curves[0]) == STEPS - 3
    ours, theirs = (load_weights(find(run)) for run in (faulty, undisturbed))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
