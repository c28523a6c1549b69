"""The hooks that every training run has, in their order."""

from __future__ import annotations

from pipeline.config import RunConfig
from pipeline.distributed.mesh import Mesh
from pipeline.distributed.watchdog import Watchdog
from pipeline.training.hooks.activity import Activity
from pipeline.training.hooks.checkpointing import Checkpointing
from pipeline.training.hooks.consistency import ReplicaConsistency
from pipeline.training.hooks.epochs import Epochs
from pipeline.training.hooks.hook import Hook
from pipeline.training.hooks.metrics import MetricsWriter, StepMetrics
from pipeline.training.hooks.mlflow_tracking import MlflowTracking
from pipeline.training.hooks.preemption import StopOnSignal, StopSignal
from pipeline.training.hooks.progress import TrainingProgress
from pipeline.training.hooks.run_files import RunFiles
from pipeline.training.hooks.samples import Samples
from pipeline.training.hooks.skipped_steps import SkippedSteps
from pipeline.training.hooks.validation import Validation


def default_hooks(config: RunConfig, mesh: Mesh, watchdog: Watchdog, stop: StopSignal) -> list[Hook]:
    """The hooks of one rank. What does not apply (a rank that writes nothing, tracking switched off) is not in the list.

    The order matters in five places:

    1. `Activity` is first, so that the watchdog and the log know what a rank does before any other hook does it.
    2. Hooks that receive (console, files, MLflow) come before those that report, so that they are open when a row arrives.
       metrics.jsonl gets a row before MLflow.
    3. At the end, STATUS is written before MLflow is closed, which may wait for a server.
    4. A skipped step is logged (`StepMetrics`) before too many of them fail the run (`SkippedSteps`).
    5. `Validation` comes before `Checkpointing` and `StopOnSignal`: a checkpoint follows the validation of its step.
    """
    train = config.train
    hooks: list[Hook] = [Activity(watchdog)]
    if mesh.is_main:
        hooks += [TrainingProgress(), RunFiles(), MetricsWriter(), Epochs()]
    if mesh.is_main and config.tracking.enabled:
        hooks.append(MlflowTracking())
    hooks += [
        ReplicaConsistency(train.consistency_check_every),
        StepMetrics(train.log_every),
        SkippedSteps(train.max_skips),
        Validation(train.validate_every, stop),
    ]
    if train.samples:
        hooks.append(Samples(train.samples, train.sample_tokens))
    hooks += [
        Checkpointing(
            every=train.checkpoint_every,
            steps=train.checkpoint_steps,
            minutes=train.checkpoint_minutes,
            keep_last=train.keep_last,
            keep_every=train.keep_every,
        ),
        StopOnSignal(stop),
    ]
    return hooks
