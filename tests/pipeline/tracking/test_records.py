"""metrics.jsonl and MLflow after crashes and with unreachable servers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.run_folder import settle_status, write_status
from pipeline.tracking.metrics import MetricsFile, read_metrics
from pipeline.tracking.mlflow_tracker import MlflowTracker, settle_run


def test_resume_drops_rows_that_will_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, resume_step=0)
    for step in (1, 2, 3):
        file.write({"step": step, "loss": 1.0 / step, "target_tokens": step})
    file.close()
    with path.open("ab") as cut:
        cut.write(b'{"step": 4, "lo')  # a crash in the middle of a write
    continued = MetricsFile(path, resume_step=2)
    continued.write({"step": 3, "loss": 0.5, "target_tokens": 30})
    continued.close()
    assert [(row["step"], row["target_tokens"]) for row in read_metrics(path)] == [(1, 1), (2, 2), (3, 30)]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2"):
        read_metrics(path)


@pytest.mark.parametrize(("before", "after"), [("running", "failed"), ("finished", "finished"), ("preempted", "preempted")])
def test_a_run_without_processes_is_not_running(tmp_path: Path, before: str, after: str) -> None:
    write_status(tmp_path, before)
    settle_status(tmp_path)
    assert (tmp_path / "STATUS").read_text() == f"{after}\n"


def test_an_unreachable_tracking_server_does_not_block_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port, on which no server listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    tracker = MlflowTracker(tmp_path, "experiment", {"a": 1})
    started = time.perf_counter()
    for step in range(1000):
        tracker.log(step, {"loss": 1.0})
    assert time.perf_counter() - started < 1
    tracker.close("finished", timeout=60)
    (warning,) = [record for record in caplog.records if record.name == "pipeline.tracking.mlflow_tracker"]
    assert warning.levelname == "WARNING"
    assert "127.0.0.1:9 stopped" in warning.getMessage()
    assert not (tmp_path / "mlflow_run_id").exists()


def test_a_run_whose_processes_died_is_marked_failed_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    run_id = client.create_run(client.create_experiment("died")).info.run_id
    settle_run(tmp_path)  # not tracked: nothing to do
    (tmp_path / "mlflow_run_id").write_text(run_id + "\n")
    settle_run(tmp_path, timeout=60)
    assert client.get_run(run_id).info.status == "FAILED"
    client.set_terminated(run_id, status="FINISHED")
    settle_run(tmp_path, timeout=60)  # a finished run stays finished
    assert client.get_run(run_id).info.status == "FINISHED"
