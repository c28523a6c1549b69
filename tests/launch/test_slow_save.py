"""A real run on a disk that takes longer to sync a checkpoint than a stopped run may be silent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline.checkpoint.checkpoint import verify
from pipeline.run_folder import checkpoints_of, latest, read_status
from tests.helpers.recipes import nano_recipe

SECONDS = 10
# Imported by every process at its start: each file of a checkpoint takes ten seconds to sync.
SLOW_DISK = f"""
import os, time
fsync = os.fsync
def slow(descriptor):
    if os.readlink(f"/proc/self/fd/{{descriptor}}").endswith(".safetensors"):
        time.sleep({SECONDS})
    fsync(descriptor)
os.fsync = slow
"""


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_save_that_takes_longer_than_the_limit_without_progress_is_completed(
    dataset: Path, tmp_path: Path, environment: dict[str, str], request: pytest.FixtureRequest
) -> None:
    """Three files of ten seconds each, and a limit of fifteen."""
    recipe, run, patch = tmp_path / "nano.yaml", tmp_path / "run", tmp_path / "patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(SLOW_DISK)
    train = {"steps": 10**7, "checkpoint_every": 10**7, "validate_every": 10**7, "stop_minutes": 0.25, "spike_sigma": 0}
    recipe.write_text(yaml.safe_dump(nano_recipe(dataset, train=train, optimizer={"schedule": "constant"})))
    path = os.pathsep.join([str(patch), environment["PYTHONPATH"]])
    environ = {**environment, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": path}
    program = [sys.executable, "-c", "from launch.cli import main; main()", "train", str(recipe), "--output", str(run)]
    training = subprocess.Popen(program, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    request.addfinalizer(training.kill)  # its rank dies with it
    metrics = run / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < 3:
        assert training.poll() is None, training.communicate()[0]
        time.sleep(0.1)
    started = time.monotonic()
    training.send_signal(signal.SIGTERM)
    printed, _ = training.communicate(timeout=1200)
    assert time.monotonic() - started > 3 * SECONDS
    assert training.returncode == 75, printed
    assert read_status(run) == "preempted"
    checkpoint = latest(run)
    assert checkpoint is not None
    verify(checkpoint)
    assert f"Stopped; {checkpoint.name} is saved" in printed
    assert not list(checkpoints_of(run).glob(".step_*"))
