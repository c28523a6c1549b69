"""MLflow tracking by one rank, outside of the training loop: a slow or dead server delays and stops nothing.

Rows go into a bounded queue. A thread imports MLflow, opens or resumes the MLflow run, and sends them. When the server does not
answer it tries again for as long as the run lives, with growing pauses. Rows that the queue could not hold meanwhile, and those
that an earlier start could not send, are read from metrics.jsonl: MLflow ends with every row of that file.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_prep.files import atomic_write
from pipeline.run_folder import METRICS
from pipeline.tracking.metrics import read_metrics
from pipeline.tracking.mlflow_session import RUN_ID_FILE, MlflowSession, Row, connect, experiment_id, http_status, tracking_uri

_log = logging.getLogger(__name__)

PENDING_FILE = "mlflow_pending"
"""In a run folder: the final state of the run, where MLflow could not be told."""
_QUEUED_ROWS = 10_000
_QUEUED_ARTIFACTS = 1_000
_ROWS_AT_ONCE = 500
_FLUSH_SECONDS = 2.0
_FIRST_PAUSE, _LONGEST_PAUSE, _LAST_PAUSE = 1.0, 60.0, 2.0
"""Seconds between two tries: at first, at most, and at most once the run has ended and waits for the server."""
_ARTIFACT_TRIES = 3
_STATES = {"finished": "FINISHED", "preempted": "KILLED", "failed": "FAILED"}


def settle_run(run: Path, timeout: float = 20.0) -> None:
    """Mark the MLflow run of a run folder as FAILED if its processes died while it was RUNNING. Waits at most `timeout` s."""
    path = run / RUN_ID_FILE
    if not path.is_file():
        return

    def settle() -> None:
        with suppress(Exception):  # an unreachable server must not hide the first failure
            client = connect()
            run_id = path.read_text().strip()
            if client.get_run(run_id).info.status == "RUNNING":
                client.set_terminated(run_id, status="FAILED")

    thread = threading.Thread(target=settle, name="mlflow", daemon=True)
    thread.start()
    thread.join(timeout)


def send_pending(run: Path, experiment: str, parameters: Mapping[str, Any]) -> list[str]:
    """Send what MLflow lacks of a run that ended while the server was away. Returns lines for a person, if any was lacking."""
    path = run / PENDING_FILE
    if not path.is_file():
        return []
    status = path.read_text().strip()
    tracker = MlflowTracker(run, experiment, parameters)
    tracker.close(status if status in _STATES else "failed")
    return tracker.take_notes() or [f"MLflow at {tracking_uri()} now has every row of {run / METRICS}"]


def open_parent(folder: Path, experiment: str, name: str, tags: Mapping[str, str]) -> str | None:
    """The id of the MLflow run above the runs of a sweep, created once and kept in `folder`.

    None, with a warning, if the server cannot be reached.
    """
    path = folder / RUN_ID_FILE
    if path.is_file():
        return path.read_text().strip()
    try:
        client = connect()
        run_id = str(client.create_run(experiment_id(client, experiment), run_name=name, tags=dict(tags)).info.run_id)
    except Exception as error:
        _log.warning("MLflow at %s: no parent run (%s); runs are tracked without one", tracking_uri(), type(error).__name__)
        return None
    try:
        with path.open("x") as file:  # several processes may start a sweep together: the first one's run is used
            file.write(run_id + "\n")
    except FileExistsError:
        client.delete_run(run_id)
        return path.read_text().strip()
    return run_id


def close_parent(folder: Path) -> None:
    """Mark the MLflow run of a sweep as finished. An unreachable server is ignored."""
    with suppress(Exception):
        connect().set_terminated((folder / RUN_ID_FILE).read_text().strip(), status="FINISHED")


class MlflowTracker:
    """Tracks one run folder. The folder keeps the id of the MLflow run, so a restarted run resumes it.

    The n-th call of `log` belongs to the n-th row that metrics.jsonl gets after the tracker was made.
    """

    def __init__(
        self, run: Path, experiment: str, parameters: Mapping[str, Any], tags: Mapping[str, str] | None = None
    ) -> None:
        self._run, self._start = run, (experiment, dict(parameters), dict(tags or {}))
        self._wake = threading.Condition()
        self._rows: deque[Row] = deque(maxlen=_QUEUED_ROWS)
        self._artifacts: deque[tuple[Path, str | None]] = deque(maxlen=_QUEUED_ARTIFACTS)
        self._notes: deque[str] = deque(maxlen=100)
        self._num_logged = len(read_metrics(run / METRICS))
        self._num_sent = 0
        """Rows from the first one on that MLflow is known to have."""
        self._end: str | None = None
        self._is_abandoned = False
        self._session: MlflowSession | None = None
        self._down_since: float | None = None
        self._failed_artifacts = 0
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Queue the numbers among `values` by step, and losses also by raw tokens (`by_tokens/loss`)."""
        with self._wake:
            self._rows.append(Row.of(self._num_logged, {**values, "step": step}))
            self._num_logged += 1

    def artifact(self, path: Path, folder: str) -> None:
        """Queue a file for the artifacts of the MLflow run."""
        with self._wake:
            self._artifacts.append((path, folder))

    def take_notes(self) -> list[str]:
        """Lines for a person about outages, since the last call."""
        with self._wake:
            notes = list(self._notes)
            self._notes.clear()
        return notes

    def close(self, status: str, artifacts: tuple[Path, ...] = (), timeout: float = 60.0) -> None:
        """Send what is queued, set the final state of the MLflow run, and wait at most `timeout` seconds for it.

        If that fails, the run folder remembers it, and the next `fnet-t5 train` of this folder sends the rest.
        """
        with self._wake:
            self._artifacts.extend((path, None) for path in artifacts)
            self._end = _STATES[status]
            self._wake.notify()
        self._thread.join(timeout)
        with self._wake:
            self._is_abandoned = self._thread.is_alive()
        if self._is_abandoned:
            with atomic_write(self._run / PENDING_FILE) as file:
                file.write(status.encode() + b"\n")
            self._note(
                f"MLflow at {tracking_uri()} did not answer for {timeout:.0f} s: it lacks rows of {self._run / METRICS} and "
                "the final state; rerun the same command when the server is back, and they are sent"
            )

    def _note(self, line: str) -> None:
        _log.warning(line)
        with self._wake:
            self._notes.append(line)

    def _work(self) -> None:
        pause = _FIRST_PAUSE
        while not self._is_abandoned:
            try:
                if self._serve():
                    (self._run / PENDING_FILE).unlink(missing_ok=True)
                    return
                pause = _FIRST_PAUSE
            except ImportError as error:
                self._note(f"MLflow cannot be imported ({error}): the run is not tracked; metrics.jsonl is still written")
                return
            except Exception as error:  # a tracking server must not stop training
                self._has_failed(error)
                with self._wake:
                    self._wake.wait_for(lambda: self._end is not None, pause)
                    is_ending = self._end is not None
                if is_ending:
                    time.sleep(min(pause, _LAST_PAUSE))
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _has_failed(self, error: Exception) -> None:
        if http_status(error) == 404:  # the run was deleted: another one is made, and gets all rows
            self._session, self._num_sent = None, 0
        if self._down_since is None:
            self._down_since = time.monotonic()
            lines = str(error).splitlines() or [""]
            self._note(
                f"MLflow at {tracking_uri()} does not take rows ({type(error).__name__}: {lines[0][:200]}): trying again "
                "until it does; metrics.jsonl has every row"
            )

    def _has_answered(self) -> None:
        if self._down_since is not None:
            seconds, self._down_since = time.monotonic() - self._down_since, None
            self._note(f"MLflow at {tracking_uri()} answers again after {seconds:.0f} s; the rows in between are sent")

    def _serve(self) -> bool:
        """Send what is queued. Returns whether the run has ended and MLflow knows all of it."""
        if self._session is None:
            warnings: list[str] = []
            self._session = MlflowSession(self._run, *self._start, warnings=warnings)
            for line in warnings:
                self._note(line)
                self._num_sent = 0
            self._has_answered()
        with self._wake:
            self._wake.wait_for(lambda: self._end is not None or len(self._rows) >= _ROWS_AT_ONCE, _FLUSH_SECONDS)
            is_ending = self._end is not None
            rows = list(self._rows)[:_ROWS_AT_ONCE]
            begin = rows[0].index if rows else self._num_logged
        if begin > self._num_sent:
            self._send_from_file(self._session, begin)
        elif rows:
            self._send(self._session, rows)
            with self._wake:
                self._num_sent = rows[-1].index + 1
                while self._rows and self._rows[0].index < self._num_sent:
                    self._rows.popleft()
        else:
            self._send_artifacts(self._session)
            if is_ending:
                assert self._end is not None
                self._session.end(self._end)
                self._has_answered()
                return True
        return False

    def _send(self, session: MlflowSession, rows: list[Row]) -> None:
        try:
            session.send(rows)
        except Exception as error:
            if http_status(error) not in (400, 413, 422):
                raise
            self._note(f"MLflow at {tracking_uri()} refused rows of steps {rows[0].step} to {rows[-1].step} ({error}): dropped")
        self._has_answered()

    def _send_from_file(self, session: MlflowSession, end: int) -> None:
        """Rows that are not in the queue: of earlier starts, or of an outage that was longer than the queue."""
        rows = [Row.of(index, values) for index, values in enumerate(read_metrics(self._run / METRICS)[:end])]
        lacking = session.missing(row for row in rows if row.index >= self._num_sent)
        for start in range(0, len(lacking), _ROWS_AT_ONCE):
            self._send(session, lacking[start : start + _ROWS_AT_ONCE])
        self._num_sent = end

    def _send_artifacts(self, session: MlflowSession) -> None:
        while self._artifacts:
            path, folder = self._artifacts[0]
            try:
                session.client.log_artifact(session.run_id, str(path), folder)
            except Exception as error:
                session.client.get_run(session.run_id)  # raises in an outage: then nothing is wrong with the artifact
                self._failed_artifacts += 1
                if path.is_file() and self._failed_artifacts % _ARTIFACT_TRIES:
                    raise
                self._note(f"MLflow at {tracking_uri()} does not take the artifact {path} ({type(error).__name__}: {error})")
            with self._wake:
                if self._artifacts and self._artifacts[0] == (path, folder):  # a full queue may have dropped it
                    self._artifacts.popleft()
