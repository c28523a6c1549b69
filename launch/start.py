"""One way to start a run, for `fnet-t5 train`, ladders, the demo and SLURM: check it, write its configuration, train it.

A recipe and its overrides become a validated `RunConfig`. `check_run` resolves it and checks folder, data and weights;
`write_config` writes it to the run folder; `start_run` starts the processes, which read nothing but that file. SLURM calls
`check_run` before it submits a job, and the job's script starts `fnet-t5 train`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.dataset.manifest import Manifest, ManifestError, load_manifest
from data_prep.files import FolderInUseError, only_writer
from launch.config import check_same_run, write_resolved
from launch.local import PREEMPTED_EXIT, SIGNAL_EXIT, STOPPED_EXITS, preempted_exit, run_local
from launch.preflight import (
    changed_rates,
    check_data,
    check_disk,
    check_folder,
    check_initial_weights,
    check_resume,
    check_weights,
    schedule_warnings,
)
from pipeline.config import RunConfig, flatten
from pipeline.data.run_length import describe_length, repetition_warnings, with_steps
from pipeline.run_folder import (
    STATUS,
    by_preference,
    find,
    latest,
    problem,
    read_status,
    settle_status,
    step_name,
    write_status,
)
from pipeline.tracking import mlflow_tracker
from pipeline.tracking.mlflow_tracker import settle_run
from pipeline.training.hooks.preemption import StopSignal

_PREEMPTING = (0, SIGNAL_EXIT + signal.SIGTERM, SIGNAL_EXIT + signal.SIGUSR1)
"""Exit codes of a preempted run: its processes were asked to stop, or ended by themselves after they had saved."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run: local ones that this process starts, or those of an outer launcher's job, of which it is one."""

    number: int
    rank: int | None = None
    """This process's rank in an outer launcher's job; None for local processes."""

    @classmethod
    def from_environment(cls, config: RunConfig, nproc: int | None) -> Processes:
        """Join the job of torchrun or srun where RANK is set, else `nproc` local processes (default: one replica).

        Raises ValueError if WORLD_SIZE is missing, or if `nproc` is given inside a job.
        """
        if "RANK" not in os.environ:
            return cls(nproc or config.mesh.tensor_parallel * config.mesh.pipeline_parallel)
        if "WORLD_SIZE" not in os.environ:
            raise ValueError("RANK is set but WORLD_SIZE is not: start with torchrun, or unset RANK to start local processes")
        if nproc is not None:
            raise ValueError(
                f"--nproc {nproc} inside a job (RANK is set): the outer launcher starts the processes, leave it out"
            )
        return cls(int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"]))

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for the run: it checks files and prints messages, the other ranks do not."""
        return not self.rank


@dataclass(frozen=True)
class BranchPoint:
    """A checkpoint of another run that a new run begins at. `step` None is the latest one."""

    parent: Path
    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run that passed `check_run`."""

    config: RunConfig
    """Resolved: absolute paths, vocabulary size."""
    folder: Path
    manifest: Manifest
    """Of `config.data.path`."""
    processes: Processes | None
    """None where a cluster starts them later."""
    branch: BranchPoint | None
    is_restart: bool
    """Whether the folder already holds this run."""
    checkpoint: Path | None
    """The checkpoint that it will resume from, if its files are intact."""
    notes: tuple[str, ...] = ()
    """What a person should know before it starts."""
    length: str = ""
    """How much data the whole run reads, and how often each row; empty on ranks after the first of a job."""

    @property
    def is_finished(self) -> bool:
        """Whether the run was trained to its last step before."""
        at_last_step = self.checkpoint is not None and self.checkpoint.name == step_name(self.config.train.steps)
        return at_last_step and read_status(self.folder) == "finished"


def check_run(
    config: RunConfig,
    folder: Path,
    *,
    processes: Processes | None = None,
    branch: BranchPoint | None = None,
    manifest: Manifest | None = None,
) -> PreparedRun:
    """Resolve a configuration and check all that can be checked before any process starts. Leaves nothing written.

    The manifest of the data is read here, once, unless the caller has read it. Ranks after the first of a job check only what
    needs no files of the run: the first one checks for all.
    Raises ValueError, naming the remedy, if the folder holds something else, the data lack what the run reads, initial weights
    do not fit the model, or the processes do not fit mesh and batch.
    """
    if manifest is None:
        try:
            manifest = load_manifest(config.data.path)
        except ManifestError as error:
            moved = "; if it was moved, give its new place: data.path=FOLDER" if latest(folder) else ""
            raise ValueError(f"data.path: {error}{moved}") from error
    config = config.resolved()
    if processes is not None:
        config.train.accumulation_steps(config.mesh.data_parallel(processes.number))
    checkpoint = latest(folder)
    notes: list[str] = []
    length = ""
    is_first = processes is None or processes.is_first
    if is_first:
        check_folder(folder)
    if is_first or config.train.length_key != "steps":  # every rank writes the same config.json
        batches = check_data(config, manifest)
        config = with_steps(config, batches)
    if is_first:
        length = describe_length(config, batches)
        notes += [f"warning: skipped checkpoint {wrong}" for wrong in _unusable(folder, checkpoint)]
        if checkpoint is not None:
            check_same_run(config, folder, has_checkpoint=True)
            check_resume(config, checkpoint, batches.fingerprint, is_branch=False)
            notes += changed_rates(config, folder, checkpoint)
        elif branch is not None:
            begin = find(branch.parent, branch.step)
            check_resume(config, begin, batches.fingerprint, is_branch=True)
            check_weights(config, begin, f"--branch {begin} does not fit the recipe's model section")
        else:  # otherwise they are not read: they may be gone
            notes += check_initial_weights(config)
        notes += [*check_disk(config, folder), *schedule_warnings(config), *repetition_warnings(config, batches)]
    is_restart = check_same_run(config, folder, has_checkpoint=checkpoint is not None)
    return PreparedRun(
        config=config,
        folder=folder,
        manifest=manifest,
        processes=processes,
        branch=branch,
        is_restart=is_restart,
        checkpoint=checkpoint,
        notes=tuple(notes),
        length=length,
    )


def _unusable(folder: Path, checkpoint: Path | None) -> Iterator[str]:
    """Why each checkpoint that is preferable to the one that will be resumed cannot be used."""
    for path in by_preference(folder):
        if path == checkpoint:
            return
        if (wrong := problem(path)) is not None:
            yield wrong


def write_config(run: PreparedRun) -> None:
    """Write the resolved configuration, the only thing that the run's processes read; every rank of a job may call it."""
    write_resolved(run.config, run.folder)


def begin_branch(run: PreparedRun) -> int:
    """Give the run its parent's checkpoint, unless it has its own; returns the step that it begins at."""
    from pipeline.checkpoint.branch import branch  # imports DeepSpeed

    assert run.branch is not None
    return branch(run.branch.parent, run.folder, run.branch.step)


def send_pending(run: PreparedRun) -> list[str]:
    """Send to MLflow what it lacks of a finished run. Returns what a person should know."""
    if not run.config.tracking.enabled:
        return []
    return mlflow_tracker.send_pending(run.folder, run.config.tracking.experiment, flatten(run.config.model_dump(mode="json")))


def start_run(run: PreparedRun, then: Sequence[PreparedRun] = (), stop: StopSignal | None = None) -> int:
    """Train a run, and then others in the same local processes; returns an exit code.

    `stop` watches for signals before the first step, for a rank of an outer launcher's job.

    0: done. PREEMPTED_EXIT: stopped by SIGTERM or SIGUSR1 and saved, to be started again (0 under torchrun, which treats any
    other code as a failure). 128 + N: ended by signal N. Otherwise the code of the first process that failed.
    However it ends, STATUS and the MLflow run of each folder are settled: no ended run stays `running`.
    """
    assert run.processes is not None, "give check_run the processes of a run that is started here"
    if run.processes.rank is not None:
        return _join(run, stop or StopSignal())
    runs = [run, *then]
    before = _status_times(runs)
    code = 1  # if run_local raises
    try:
        grace = 60 * max(one.config.train.stop_grace for one in runs)
        code = run_local(run.folder, run.processes.number, then=[one.folder for one in then], stop_grace=grace)
    finally:
        _settle(runs, before, has_failed=code != 0 and code not in STOPPED_EXITS, was_stopped=code in STOPPED_EXITS)
    was_preempted = any(read_status(one.folder) == "preempted" for one in runs)
    return PREEMPTED_EXIT if code in _PREEMPTING and was_preempted else code


def _join(run: PreparedRun, stop: StopSignal) -> int:
    """Train as one rank of an outer launcher's job."""
    from pipeline.tracking.logs import configure_logging

    configure_logging()  # with the rank; before libraries that log are imported
    from pipeline.training.trainer import train

    assert run.processes is not None
    before = _status_times([run])
    if run.processes.is_first:
        stop.at_start = lambda reason: _settle([run], before, has_failed=False, was_stopped=True)
    try:
        status = train(run.folder, stop=stop)
    except BaseException:
        if run.processes.is_first:
            _settle([run], before, has_failed=True)
        raise
    return preempted_exit() if status == "preempted" else 0


def _settle(runs: Sequence[PreparedRun], before: Mapping[Path, int], *, has_failed: bool, was_stopped: bool = False) -> None:
    """Set STATUS and MLflow to failed where the processes ended and could not do so themselves.

    A stop before the first step loses nothing: the run is then preempted. After a failure, the run that was being trained
    is the first that did not finish in this start. It has failed too if its processes died before they wrote a STATUS of
    their own (one from an earlier start may be there).
    """
    has_ended_early = has_failed or was_stopped
    current = next((run for run in runs if not _finished_since(run.folder, before)), None) if has_ended_early else None
    for run in runs:
        try:
            with only_writer(run.folder):
                if run is current and _status_time(run.folder) == before[run.folder]:
                    write_status(run.folder, "failed" if has_failed else "preempted")
                else:
                    settle_status(run.folder)
        except FolderInUseError:  # another process trains here: STATUS is about that one
            continue
        if run.config.tracking.enabled and read_status(run.folder) == "failed":
            settle_run(run.folder)


def _finished_since(folder: Path, before: Mapping[Path, int]) -> bool:
    return read_status(folder) == "finished" and _status_time(folder) != before[folder]


def _status_times(runs: Sequence[PreparedRun]) -> dict[Path, int]:
    return {run.folder: _status_time(run.folder) for run in runs}


def _status_time(folder: Path) -> int:
    """When STATUS was written, in ns; 0 where there is none."""
    path = folder / STATUS
    return path.stat().st_mtime_ns if path.is_file() else 0
