"""MLflow tracking by one rank, off the training path: a tracker that is slow or dead delays and stops nothing.

Values go into a queue; a thread of its own imports MLflow, opens or continues the run, and writes batches. What it cannot write
is lost to MLflow only: metrics.jsonl has it.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_prep.files import atomic_write

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
    """Beside a SQLite file, where MLflow itself would use the current folder; a server decides for itself."""
    uri = tracking_uri()
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()


def settle_run(run: Path, timeout: float = 20.0) -> None:
    """Mark the MLflow run of a run folder as FAILED where its processes died before they could; waits at most `timeout` s."""
    path = run / RUN_ID_FILE
    if not path.is_file():
        return

    def settle() -> None:
        from mlflow.tracking import MlflowClient

        with suppress(Exception):  # a server that is away is no second failure
            client = MlflowClient(tracking_uri=tracking_uri())
            run_id = path.read_text().strip()
            if client.get_run(run_id).info.status == "RUNNING":
                client.set_terminated(run_id, status="FAILED")

    thread = threading.Thread(target=settle, name="mlflow", daemon=True)
    thread.start()
    thread.join(timeout)


def open_parent(folder: Path, experiment: str, name: str, tags: Mapping[str, str]) -> str | None:
    """The MLflow run above the runs of a sweep, begun once and kept in `folder`; None, with a warning, where none can be."""
    path = folder / RUN_ID_FILE
    if path.is_file():
        return path.read_text().strip()
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(tracking_uri=tracking_uri())
        run_id = str(client.create_run(_experiment_id(client, experiment), run_name=name, tags=dict(tags)).info.run_id)
    except Exception as error:
        warnings.warn(
            f"MLflow at {tracking_uri()} gives no parent run ({type(error).__name__}): runs stand alone", stacklevel=2
        )
        return None
    try:
        with path.open("x") as file:  # of several processes that begin a sweep together, one opens its run
            file.write(run_id + "\n")
    except FileExistsError:
        client.delete_run(run_id)
        return path.read_text().strip()
    return run_id


def close_parent(folder: Path) -> None:
    """Mark the MLflow run of a sweep as finished; a server that is away stops nothing."""
    from mlflow.tracking import MlflowClient

    with suppress(Exception):
        MlflowClient(tracking_uri=tracking_uri()).set_terminated((folder / RUN_ID_FILE).read_text().strip(), status="FINISHED")


def _experiment_id(client: Any, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    return str(experiment.experiment_id if experiment else client.create_experiment(name, _artifact_location()))


class NoTracker:
    """Does nothing: for the ranks that do not write, and where tracking is off."""

    def log(self, step: int, values: dict[str, Any]) -> None: ...

    def artifact(self, path: Path, folder: str) -> None: ...

    def close(self, status: str, artifacts: tuple[Path, ...] = ()) -> None: ...


class MlflowTracker(NoTracker):
    """Tracks one run folder; the run's id is kept in it, so a restarted run continues the same MLflow run."""

    def __init__(self, run: Path, experiment: str, parameters: dict[str, Any], tags: Mapping[str, str] | None = None) -> None:
        self._run, self._experiment, self._parameters, self._tags = run, experiment, parameters, dict(tags or {})
        self._queue: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Queue the numbers among `values`: by step, and losses by raw tokens too (`by_tokens/loss`).

        A row of one source is kept apart by its name: `validation_loss/Github`.
        """
        source = values.get("source", "all")
        suffix = "" if source == "all" else "/" + _FORBIDDEN.sub("_", str(source))
        counted = {name: float(value) for name, value in values.items() if isinstance(value, int | float) and name != "step"}
        if suffix:  # what the run has spent is in the row of all sources
            counted = {name: value for name, value in counted.items() if name in _OF_A_SOURCE}
        now = int(time.time() * 1000)
        self._queue.put(("metrics", step, now, {name + suffix: value for name, value in counted.items()}))
        tokens = values.get("raw_tokens")
        losses = {f"by_tokens/{name}{suffix}": value for name, value in counted.items() if name in _BY_TOKENS}
        if tokens is not None and losses:
            self._queue.put(("metrics", int(tokens), now, losses))

    def artifact(self, path: Path, folder: str) -> None:
        """Queue a file for the run's artifacts."""
        self._queue.put(("artifact", path, folder))

    def close(self, status: str, artifacts: tuple[Path, ...] = (), timeout: float = 60.0) -> None:
        """Write what is queued, set the run's final state, and wait at most `timeout` seconds for it."""
        self._queue.put(("close", _STATES[status], artifacts))
        self._thread.join(timeout)
        if self._thread.is_alive():
            warnings.warn(
                f"MLflow at {tracking_uri()} did not answer for {timeout:.0f} s: its last rows are missing", stacklevel=2
            )

    def _work(self) -> None:
        try:
            self._serve()
        except Exception as error:  # whatever a tracking server does, training goes on
            warnings.warn(
                f"MLflow tracking at {tracking_uri()} stopped ({type(error).__name__}: {error}); metrics.jsonl goes on",
                stacklevel=2,
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
                warnings.warn(
                    f"MLflow run {run_id} of {path} is unknown to {tracking_uri()}: a new run is started", stacklevel=2
                )
            else:
                client.update_run(run_id, status="RUNNING")
                return run_id
        run_id = str(client.create_run(_experiment_id(client, self._experiment), run_name=self._run.name).info.run_id)
        with atomic_write(path) as file:
            file.write(run_id.encode() + b"\n")
        return run_id

    def _take(self) -> list[tuple[Any, ...]]:
        """Everything queued within a flush interval, at least one entry."""
        entries = [self._queue.get()]
        deadline = time.monotonic() + _FLUSH_SECONDS
        while entries[-1][0] != "close":
            try:
                entries.append(self._queue.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                break
        return entries
