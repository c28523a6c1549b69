"""MLflow tracking by one rank, outside of the training loop: a slow or dead server delays and stops nothing.

Values go into a queue. A thread imports MLflow, opens or resumes the MLflow run, and writes batches. What it cannot write is
missing in MLflow only: metrics.jsonl has it.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_prep.files import atomic_write

_log = logging.getLogger(__name__)

RUN_ID_FILE = "mlflow_run_id"
_FLUSH_SECONDS = 2.0
_FORBIDDEN = re.compile(r"[^\w\-. :/]", re.ASCII)  # in the names of MLflow's metrics
_BY_TOKENS = ("loss", "validation_loss", "bits_per_byte")
_OF_A_SOURCE = ("validation_loss", "bits_per_byte", "validation_target_tokens")
_STATES = {"finished": "FINISHED", "preempted": "KILLED", "failed": "FAILED"}


def tracking_uri() -> str:
    """Where runs are tracked: MLFLOW_TRACKING_URI, or a SQLite file in the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def _artifact_location() -> str | None:
    """A folder next to a SQLite file (MLflow's default is the current folder); None for a server, which has its own."""
    uri = tracking_uri()
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()


def settle_run(run: Path, timeout: float = 20.0) -> None:
    """Mark the MLflow run of a run folder as FAILED if its processes died while it was RUNNING. Waits at most `timeout` s."""
    path = run / RUN_ID_FILE
    if not path.is_file():
        return

    def settle() -> None:
        from mlflow.tracking import MlflowClient

        with suppress(Exception):  # an unreachable server must not hide the first failure
            client = MlflowClient(tracking_uri=tracking_uri())
            run_id = path.read_text().strip()
            if client.get_run(run_id).info.status == "RUNNING":
                client.set_terminated(run_id, status="FAILED")

    thread = threading.Thread(target=settle, name="mlflow", daemon=True)
    thread.start()
    thread.join(timeout)


def open_parent(folder: Path, experiment: str, name: str, tags: Mapping[str, str]) -> str | None:
    """The id of the MLflow run above the runs of a sweep, created once and kept in `folder`.

    None, with a warning, if the server cannot be reached.
    """
    path = folder / RUN_ID_FILE
    if path.is_file():
        return path.read_text().strip()
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(tracking_uri=tracking_uri())
        run_id = str(client.create_run(_experiment_id(client, experiment), run_name=name, tags=dict(tags)).info.run_id)
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
    from mlflow.tracking import MlflowClient

    with suppress(Exception):
        MlflowClient(tracking_uri=tracking_uri()).set_terminated((folder / RUN_ID_FILE).read_text().strip(), status="FINISHED")


def _experiment_id(client: Any, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    return str(experiment.experiment_id if experiment else client.create_experiment(name, _artifact_location()))


class MlflowTracker:
    """Tracks one run folder. The folder keeps the id of the MLflow run, so a restarted run resumes it."""

    def __init__(self, run: Path, experiment: str, parameters: dict[str, Any], tags: Mapping[str, str] | None = None) -> None:
        self._run, self._experiment, self._parameters, self._tags = run, experiment, parameters, dict(tags or {})
        self._queue: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Queue the numbers among `values` by step, and losses also by raw tokens (`by_tokens/loss`).

        The name of a source becomes part of the metric: `validation_loss/Github`.
        """
        source = values.get("source", "all")
        suffix = "" if source == "all" else "/" + _FORBIDDEN.sub("_", str(source))
        counted = {name: float(value) for name, value in values.items() if isinstance(value, int | float) and name != "step"}
        if suffix:  # counters are in the row of all sources
            counted = {name: value for name, value in counted.items() if name in _OF_A_SOURCE}
        now = int(time.time() * 1000)
        self._queue.put(("metrics", step, now, {name + suffix: value for name, value in counted.items()}))
        tokens = values.get("raw_tokens")
        losses = {f"by_tokens/{name}{suffix}": value for name, value in counted.items() if name in _BY_TOKENS}
        if tokens is not None and losses:
            self._queue.put(("metrics", int(tokens), now, losses))

    def artifact(self, path: Path, folder: str) -> None:
        """Queue a file for the artifacts of the MLflow run."""
        self._queue.put(("artifact", path, folder))

    def close(self, status: str, artifacts: tuple[Path, ...] = (), timeout: float = 60.0) -> None:
        """Write what is queued, set the final state of the MLflow run, and wait at most `timeout` seconds for it."""
        self._queue.put(("close", _STATES[status], artifacts))
        self._thread.join(timeout)
        if self._thread.is_alive():
            _log.warning("MLflow at %s did not answer for %.0f s: its last rows are missing", tracking_uri(), timeout)

    def _work(self) -> None:
        try:
            self._serve()
        except Exception as error:  # a tracking server must not stop training
            _log.warning(
                "MLflow tracking at %s stopped (%s: %s); metrics.jsonl is still written",
                tracking_uri(),
                type(error).__name__,
                error,
            )

    def _serve(self) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=tracking_uri())
        run_id = self._open(client)
        for name, value in self._tags.items():
            client.set_tag(run_id, name, value)
        known = client.get_run(run_id).data.params
        fresh = {name: value for name, value in self._parameters.items() if name not in known}
        client.log_batch(run_id, params=[Param(name, str(value)) for name, value in fresh.items()])
        for name, value in self._parameters.items():
            if name in known and known[name] != str(value):  # MLflow refuses to change a parameter
                client.set_tag(run_id, f"restart.{name}", str(value))
        while True:
            entries = self._take()
            rows = [entry for entry in entries if entry[0] == "metrics"]
            metrics = [
                Metric(name, value, time_ms, step) for _, step, time_ms, numbers in rows for name, value in numbers.items()
            ]
            for start in range(0, len(metrics), 1000):
                client.log_batch(run_id, metrics=metrics[start : start + 1000])
            for entry in entries:
                if entry[0] == "artifact":
                    client.log_artifact(run_id, str(entry[1]), entry[2])
                if entry[0] == "close":
                    for path in entry[2]:
                        client.log_artifact(run_id, str(path))
                    client.set_terminated(run_id, status=entry[1])
                    return

    def _open(self, client: Any) -> str:
        path = self._run / RUN_ID_FILE
        if path.is_file():
            run_id = path.read_text().strip()
            try:
                client.get_run(run_id)
            except Exception:
                _log.warning("MLflow at %s has no run %s, the id in %s: starting a new run", tracking_uri(), run_id, path)
            else:
                client.update_run(run_id, status="RUNNING")
                return run_id
        run_id = str(client.create_run(_experiment_id(client, self._experiment), run_name=self._run.name).info.run_id)
        with atomic_write(path) as file:
            file.write(run_id.encode() + b"\n")
        return run_id

    def _take(self) -> list[tuple[Any, ...]]:
        """Everything queued within one flush interval, at least one entry."""
        entries = [self._queue.get()]
        deadline = time.monotonic() + _FLUSH_SECONDS
        while entries[-1][0] != "close":
            try:
                entries.append(self._queue.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                break
        return entries
