"""What is asked of an MLflow server for one run folder: open its run, send rows of metrics.jsonl, find out which are missing.

Every call may raise what the MLflow client raises; `pipeline/tracking/mlflow_tracker.py` retries. Every call may be repeated.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.files import atomic_write

RUN_ID_FILE = "mlflow_run_id"
_FORBIDDEN = re.compile(r"[^\w\-. :/]", re.ASCII)  # in the names of MLflow's metrics
_BY_TOKENS = ("loss", "validation_loss", "bits_per_byte")
_OF_A_SOURCE = ("validation_loss", "bits_per_byte", "validation_target_tokens")
# The tracker retries by itself, for ever: a request must not hold it for the minutes that are MLflow's default.
_CLIENT_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
_METRICS_A_REQUEST = 900  # MLflow takes 1000


def tracking_uri() -> str:
    """Where runs are tracked: MLFLOW_TRACKING_URI, or a SQLite file in the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def _artifact_location() -> str | None:
    """A folder next to a SQLite file (MLflow's default is the current folder); None for a server, which has its own."""
    uri = tracking_uri()
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()


def connect() -> Any:
    """A client of the tracking server. Nothing is sent yet."""
    for name, value in _CLIENT_LIMITS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri())


def experiment_id(client: Any, name: str) -> str:
    """The id of an experiment, which is created if there is none of this name."""
    experiment = client.get_experiment_by_name(name)
    return str(experiment.experiment_id if experiment else client.create_experiment(name, _artifact_location()))


def http_status(error: Exception) -> int | None:
    """The HTTP status of the server's answer, or of the error that stands for it; None where there was no answer."""
    response = getattr(error, "response", None)
    if response is not None:
        return int(getattr(response, "status_code", 0)) or None
    return int(error.get_http_status_code()) if hasattr(error, "get_http_status_code") else None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of metrics.jsonl as MLflow shows it. Sending it twice changes nothing, because its time stays the same."""

    index: int
    """Its place in metrics.jsonl."""
    step: int
    time: int
    """When it was logged, in ms."""
    numbers: dict[str, float]
    by_tokens: dict[str, float]
    """Losses that are also shown by tokens of the corpus."""
    tokens: int

    @classmethod
    def of(cls, index: int, values: Mapping[str, Any], time_ms: int | None = None) -> Row:
        """The numbers among `values`. The name of a source becomes part of the metric: `validation_loss/Github`."""
        source = values.get("source", "all")
        suffix = "" if source == "all" else "/" + _FORBIDDEN.sub("_", str(source))
        counted = {name: float(value) for name, value in values.items() if isinstance(value, int | float) and name != "step"}
        if suffix:  # counters are in the row of all sources
            counted = {name: value for name, value in counted.items() if name in _OF_A_SOURCE}
        has_tokens = values.get("raw_tokens") is not None
        losses = {f"by_tokens/{name}{suffix}": value for name, value in counted.items() if name in _BY_TOKENS and has_tokens}
        return cls(
            index=index,
            step=int(values["step"]),
            time=int(time.time() * 1000) if time_ms is None else time_ms,
            numbers={name + suffix: value for name, value in counted.items()},
            by_tokens=losses,
            tokens=int(values.get("raw_tokens") or 0),
        )

    @property
    def mark(self) -> str | None:
        """The metric that shows whether MLflow has this row: one that every row of its kind has."""
        if "learning_rate" in self.numbers:
            return "learning_rate"
        of_validation = (name for name in self.numbers if name.startswith("validation_target_tokens"))
        return next(of_validation, next(iter(self.numbers), None))


class MlflowSession:
    """An open MLflow run."""

    def __init__(
        self, run: Path, experiment: str, parameters: Mapping[str, Any], tags: Mapping[str, str], *, warnings: list[str]
    ) -> None:
        """Open or create the MLflow run of a run folder, and set what it was started with.

        A line is added to `warnings` where the id in the folder is unknown to the server.
        """
        self.client = connect()
        self.run_id = self._open(run, experiment, warnings)
        for name, value in tags.items():
            self.client.set_tag(self.run_id, name, value)
        self._set_parameters(parameters)

    def _open(self, run: Path, experiment: str, warnings: list[str]) -> str:
        path = run / RUN_ID_FILE
        if path.is_file():
            run_id = path.read_text().strip()
            try:
                known = self.client.get_run(run_id).info.experiment_id
            except Exception as error:
                if http_status(error) != 404:  # an outage: the run may be there
                    raise
                warnings.append(f"MLflow at {tracking_uri()} has no run {run_id}, the id in {path}: starting a new run")
            else:
                if known == experiment_id(self.client, experiment):
                    self.client.update_run(run_id, status="RUNNING")
                    return run_id
                warnings.append(f"MLflow run {run_id} is not in tracking.experiment {experiment}: starting a new run there")
        run_id = str(self.client.create_run(experiment_id(self.client, experiment), run_name=run.name).info.run_id)
        with atomic_write(path) as file:
            file.write(run_id.encode() + b"\n")
        return run_id

    def _set_parameters(self, parameters: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        known = self.client.get_run(self.run_id).data.params
        fresh = [Param(name, str(value)) for name, value in parameters.items() if name not in known]
        for start in range(0, len(fresh), 100):  # MLflow's limit
            self.client.log_batch(self.run_id, params=fresh[start : start + 100])
        for name, value in parameters.items():
            if name in known and known[name] != str(value):  # MLflow refuses to change a parameter
                self.client.set_tag(self.run_id, f"restart.{name}", str(value))

    def send(self, rows: Sequence[Row]) -> None:
        """Log rows. A row is never divided between two requests."""
        from mlflow.entities import Metric

        batch: list[Any] = []
        for row in rows:
            metrics = [Metric(name, value, row.time, row.step) for name, value in row.numbers.items()]
            metrics += [Metric(name, value, row.time, row.tokens) for name, value in row.by_tokens.items()]
            if len(batch) + len(metrics) > _METRICS_A_REQUEST:
                self.client.log_batch(self.run_id, metrics=batch)
                batch = []
            batch += metrics
        if batch:
            self.client.log_batch(self.run_id, metrics=batch)

    def missing(self, rows: Iterable[Row]) -> list[Row]:
        """Those of the rows that MLflow does not have."""
        known: dict[str, set[int]] = {}
        result = []
        for row in rows:
            if row.mark is None:
                continue
            if row.mark not in known:
                known[row.mark] = {point.step for point in self.client.get_metric_history(self.run_id, row.mark)}
            if row.step not in known[row.mark]:
                result.append(row)
        return result

    def end(self, status: str) -> None:
        """Set the final state of the MLflow run."""
        self.client.set_terminated(self.run_id, status=status)
