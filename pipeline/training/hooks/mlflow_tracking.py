"""The MLflow run that shows a training run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.dataset.manifest import MANIFEST_FILE
from pipeline.config import flatten
from pipeline.tracking.mlflow_tracker import MlflowTracker
from pipeline.tracking.provenance import PROVENANCE, read_provenance
from pipeline.training.hooks.hook import Hook, StepReport

if TYPE_CHECKING:
    from pipeline.training.trainer import Trainer


class MlflowTracking(Hook):
    """Sends rows and files to MLflow in the background; an MLflow that fails stops nothing. For the main rank."""

    def on_start(self, trainer: Trainer) -> None:
        config = trainer.config
        parameters = flatten(config.model_dump(mode="json"))
        self._tracker = MlflowTracker(trainer.run_folder, config.tracking.experiment, parameters, _tags(trainer))

    def on_log(self, trainer: Trainer, row: dict[str, Any]) -> None:
        self._tracker.log(trainer.step, row)

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        self._tell(trainer)

    def _tell(self, trainer: Trainer) -> None:
        for line in self._tracker.take_notes():
            trainer.hooks.on_note(trainer, line)

    def on_artifact(self, trainer: Trainer, path: Path, folder: str) -> None:
        self._tracker.artifact(path, folder)

    def on_end(self, trainer: Trainer, status: str) -> None:
        run = trainer.run_folder
        kept = (run / "config.yaml", run / PROVENANCE, trainer.config.data.path / MANIFEST_FILE)
        self._tracker.close(status, tuple(path for path in kept if path.is_file()))
        self._tell(trainer)


def _tags(trainer: Trainer) -> dict[str, str]:
    """The revision of the code, the fingerprint of the data, and the MLflow run of the sweep above this one."""
    tags = {"data.fingerprint": trainer.batches.fingerprint}
    provenance = read_provenance(trainer.run_folder)
    if "revision" in provenance:
        tags["mlflow.source.git.commit"] = provenance["revision"]
    if trainer.config.tracking.parent_run is not None:
        tags["mlflow.parentRunId"] = trainer.config.tracking.parent_run
    return tags
