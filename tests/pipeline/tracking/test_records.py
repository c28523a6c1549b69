"""metrics.jsonl and MLflow after crashes and with unreachable servers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pipeline.run_folder import settle_status, write_status
from pipeline.tracking import mlflow_tracker
from pipeline.tracking.metrics import MetricsFile, read_metrics
from pipeline.tracking.mlflow_session import Row
from pipeline.tracking.mlflow_tracker import MlflowTracker, send_pending, settle_run


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
    for step in range(1000):
        tracker.log(step, {"loss": 1.0})
    assert tracker._thread.is_alive()  # it does not give up
    deadline = time.monotonic() + 120
    while not caplog.records and time.monotonic() < deadline:
        time.sleep(0.05)
    tracker.close("finished", timeout=1)
    warnings = [record.getMessage() for record in caplog.records if record.name == "pipeline.tracking.mlflow_tracker"]
    assert len(warnings) == 2  # one for the outage, whatever its length, and one at the end
    assert "127.0.0.1:9 does not take rows" in warnings[0]
    assert "rerun the same command" in warnings[1]
    assert tracker.take_notes() == warnings
    assert tracker.take_notes() == []
    assert (tmp_path / "mlflow_pending").read_text() == "finished\n"
    assert not (tmp_path / "mlflow_run_id").exists()


class FakeServer:
    """What stands behind `MlflowSession`: it keeps rows by (metric, step), and may be down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_down, self.points, self.status, self.opened = False, {}, "", 0
        self.requests: list[int] = []
        server = self

        class Session:
            run_id, client = "r", None

            def __init__(self, *arguments: object, warnings: list[str]) -> None:
                server.check()
                server.opened += 1

            def send(self, rows: list[Row]) -> None:
                server.check()
                server.requests.append(len(rows))
                for row in rows:
                    server.points.update({(name, row.step): value for name, value in row.numbers.items()})

            def missing(self, rows: Iterable[Row]) -> list[Row]:
                server.check()
                return [row for row in rows if (row.mark, row.step) not in server.points]

            def end(self, status: str) -> None:
                server.check()
                server.status = status

        monkeypatch.setattr(mlflow_tracker, "MlflowSession", Session)
        for name in ("_FLUSH_SECONDS", "_FIRST_PAUSE", "_LAST_PAUSE"):
            monkeypatch.setattr(mlflow_tracker, name, 0.01)

    def check(self) -> None:
        if self.is_down:
            raise ConnectionError("refused")

    def wait(self, number: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.points) < number:
            assert time.monotonic() < deadline, len(self.points)
            time.sleep(0.01)


def log(file: MetricsFile, tracker: MlflowTracker, steps: Iterable[int]) -> None:
    for step in steps:
        row = {"step": step, "learning_rate": 1.0 / step}
        file.write(row)
        tracker.log(step, row)


def test_every_row_arrives_after_an_outage_longer_than_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue holds 50 rows; 400 are logged while the server is down, which the terminal is told once each way."""
    monkeypatch.setattr(mlflow_tracker, "_QUEUED_ROWS", 50)
    server = FakeServer(monkeypatch)
    file = MetricsFile(tmp_path / "metrics.jsonl", resume_step=0)
    tracker = MlflowTracker(tmp_path, "experiment", {})
    log(file, tracker, range(1, 11))
    server.wait(10)
    server.is_down = True
    log(file, tracker, range(11, 411))
    deadline = time.monotonic() + 60
    notes: list[str] = []
    while not notes and time.monotonic() < deadline:
        notes += tracker.take_notes()
    server.is_down = False
    server.wait(410)
    log(file, tracker, range(411, 421))
    tracker.close("finished", timeout=60)
    assert server.points == {("learning_rate", step): 1.0 / step for step in range(1, 421)}
    assert server.status == "FINISHED"
    notes += tracker.take_notes()
    assert len(notes) == 2
    assert "does not take rows (ConnectionError: refused)" in notes[0]
    assert "answers again" in notes[1]
    assert sum(server.requests) == 420  # no row was sent twice


def test_rows_and_state_of_a_run_that_ended_in_an_outage_are_sent_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = FakeServer(monkeypatch)
    file = MetricsFile(tmp_path / "metrics.jsonl", resume_step=0)
    tracker = MlflowTracker(tmp_path, "experiment", {})
    log(file, tracker, [1, 2])
    server.wait(2)
    server.is_down = True
    log(file, tracker, [3])
    tracker.close("finished", timeout=0.3)
    assert server.status == ""
    assert send_pending(tmp_path / "other", "experiment", {}) == []
    server.is_down = False
    (line,) = send_pending(tmp_path, "experiment", {})
    assert "now has every row" in line
    assert sorted(step for _, step in server.points) == [1, 2, 3]
    assert server.status == "FINISHED"
    assert send_pending(tmp_path, "experiment", {}) == []


def test_a_restart_sends_only_what_mlflow_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With MLflow itself, on SQLite: a restart finds the rows of the first start that were never sent."""
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    path = tmp_path / "metrics.jsonl"
    rows: list[dict[str, Any]] = [
        {"step": step, "loss": 2.0, "learning_rate": 0.1, "raw_tokens": 10 * step} for step in range(1, 4)
    ]
    validation = {"validation_loss": 1.0, "source": "a b", "validation_target_tokens": 7}
    rows.insert(2, {"step": 2, **validation})
    first = MlflowTracker(tmp_path, "experiment", {"a": 1})
    for row in rows[:2]:
        first.log(row["step"], row)
    first.close("preempted", timeout=300)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    second = MlflowTracker(tmp_path, "experiment", {"a": 1})
    second.log(4, {"loss": 0.5, "learning_rate": 0.1, "raw_tokens": 40})
    second.close("finished", timeout=300)
    client = MlflowClient(uri)
    run_id = (tmp_path / "mlflow_run_id").read_text().strip()
    history = [(point.step, point.value) for point in client.get_metric_history(run_id, "loss")]
    assert sorted(history) == [(1, 2.0), (2, 2.0), (3, 2.0), (4, 0.5)]
    assert [point.step for point in client.get_metric_history(run_id, "validation_loss/a b")] == [2]
    assert sorted(point.step for point in client.get_metric_history(run_id, "by_tokens/loss")) == [10, 20, 30, 40]
    assert client.get_run(run_id).info.status == "FINISHED"


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
