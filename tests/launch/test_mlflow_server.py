"""A run tracked by a real MLflow server that is away for three minutes: training continues and no metric is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from pipeline.run_folder import latest, read_status
from pipeline.tracking.metrics import read_metrics
from tests.helpers.processes import free_port
from tests.helpers.recipes import nano_recipe

STEPS, LOG_EVERY = 10_000_000, 20  # the first start never ends by itself, because the start of a server may take any time
OUTAGE_SECONDS = 180


@contextmanager
def _server(folder: Path, port: int) -> Iterator[None]:
    """`mlflow server` with its database and artifacts in a folder. It is killed at the end, as if its machine were lost."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=folder)
    try:
        deadline = time.monotonic() + 300
        while True:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await_lines(path: Path, number: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while not path.exists() or len(path.read_bytes().splitlines()) < number:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_restarted_server_receives_the_complete_run(
    dataset: Path, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    recipe, run, server = tmp_path / "nano.yaml", tmp_path / "run", tmp_path / "server"
    server.mkdir()
    recipe.write_text(
        yaml.safe_dump(
            nano_recipe(
                dataset,
                train={
                    **{"steps": STEPS, "global_batch_size": 4, "micro_batch_size": 4, "spike_sigma": 0},
                    **{"log_every": LOG_EVERY, "checkpoint_every": STEPS, "validate_every": STEPS},
                },
                optimizer={"schedule": "constant"},
                tracking={"experiment": "server", "enabled": True},
            )
        )
    )
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    environ = {**environment, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "MLFLOW_TRACKING_URI": uri}
    program = [sys.executable, "-c", "from launch.cli import main; main()", "train", str(recipe), "--output", str(run)]
    with _server(server, port):
        training = subprocess.Popen(program, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        request.addfinalizer(training.kill)  # its ranks die with it
        _await_lines(run / "mlflow_run_id", 1, training)
        _await_lines(run / "metrics.jsonl", 10, training)
    # No server listens now, for longer than the 40 seconds after which MLflow's own retries once gave up.
    time.sleep(OUTAGE_SECONDS)
    before = len((run / "metrics.jsonl").read_bytes().splitlines())
    _await_lines(run / "metrics.jsonl", before + 10, training)
    with _server(server, port):
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        run_id = (run / "mlflow_run_id").read_text().strip()
        now = len((run / "metrics.jsonl").read_bytes().splitlines())
        while len(client.get_metric_history(run_id, "loss")) < now:  # rows logged in the meantime arrive
            assert training.poll() is None, training.communicate()[0]
            time.sleep(0.5)
        training.send_signal(signal.SIGTERM)
        printed, _ = training.communicate(timeout=400)
        assert training.returncode == 75, printed
        assert "does not take rows" in printed
        assert "answers again after" in printed
        assert read_status(run) == "preempted"
        assert client.get_run(run_id).info.status == "KILLED"
        checkpoint = latest(run)
        assert checkpoint is not None
        last = (int(checkpoint.name.removeprefix("step_")) // LOG_EVERY + 2) * LOG_EVERY
        subprocess.run([*program, f"train.steps={last}"], env=environ, check=True, capture_output=True, timeout=600)
        assert read_status(run) == "finished"
        assert client.get_run(run_id).info.status == "FINISHED"
        losses = {row["step"]: row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row}
        assert list(losses) == [1, *range(LOG_EVERY, last + 1, LOG_EVERY)]
        assert {point.step: point.value for point in client.get_metric_history(run_id, "loss")} == losses
        assert {entry.path for entry in client.list_artifacts(run_id)} >= {"config.yaml", "manifest.json", "provenance.json"}
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        downloaded = Path(client.download_artifacts(run_id, "config.yaml", str(tmp_path)))
        assert downloaded.read_bytes() == (run / "config.yaml").read_bytes()
