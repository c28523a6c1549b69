"""Executing one run of a ladder here: its run folders, its trainings, its evaluation. It can be restarted at any point.

A sweep tries learning rates until the best is between two others. A check tries half and twice the rate that follows. A main
run trains its plateau, branches off every
smaller budget, and evaluates suffix bits per byte of each end. Completed parts are skipped, unfinished ones resumed.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from data_prep.dataset.manifest import MANIFEST_FILE, Manifest, ManifestError, load_manifest
from data_prep.files import sha256_file
from launch.config import write_resolved
from launch.local import PREEMPTED_EXIT, STOPPED_EXITS
from launch.preflight import check_data
from launch.start import PreparedRun, Processes, check_run, start_run, write_config
from pipeline.config import RunConfig
from pipeline.eval.measurements import MEASUREMENTS_FILE, Extent, measure_run
from pipeline.eval.suffix_bpb import suffix_bpb_file
from pipeline.run_folder import latest, read_status
from pipeline.scaling.ladder.ladder import Ladder, PlannedRun, read_ladder, write_data_path
from pipeline.scaling.ladder.learning_rates import (
    check_rates,
    has_diverged,
    next_rate,
    rate_for,
    read_optimum,
    tries_of,
    write_check,
    write_optimum,
)
from pipeline.scaling.ladder.run_configs import run_config, runs_of, sweep_folder
from pipeline.scaling.ladder.states import state_of
from pipeline.scaling.runs import ARCHIVED_FILE

Log = Callable[[str], None]
FLOORS = "floors"
"""Folder of a ladder with the losses of n-gram tables on the rows that its runs are measured on."""


class PreemptedError(Exception):
    """A training was asked to stop, and has saved itself."""


def stop_between_trainings() -> None:
    """Have SIGTERM and SIGUSR1 raise PreemptedError while nothing trains; a training takes them over and saves itself."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise PreemptedError("stopped; rerun the same command to resume")

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)


def check_ladder_data(ladder: Ladder) -> None:
    """Raise ValueError if the data folder is not the one that the ladder was planned on, or an equal one."""
    path = ladder.data_path / MANIFEST_FILE
    if ladder.data_sha256 is None:
        raise ValueError(f"the ladder was planned before {ladder.recipe.data.path} existed: plan it again")
    if not path.is_file():
        raise ValueError(f"the data of the ladder are not in {ladder.data_path}: give their folder with `scaling run --data`")
    if sha256_file(path) == ladder.data_sha256:
        return
    with suppress(ManifestError):  # prepared again: other times and commands, the same tokens
        if load_manifest(ladder.data_path).fingerprint() == ladder.data_fingerprint:
            return
    raise ValueError(
        f"{path} is not the data that the ladder was planned on: restore it, give another folder with `scaling run --data`, "
        "or plan again into another folder"
    )


def move_data(folder: Path, ladder: Ladder, data: Path) -> Ladder:
    """The ladder with its data in another folder, which is noted in the ladder's folder and in the configuration of each run.

    Raises ValueError if these are not the data that the ladder was planned on.
    """
    if ladder.recipe.data.blend:
        raise ValueError("--data moves data.path only, and this ladder reads data.blend: keep its folders where they are")
    moved = replace(ladder, data_folder=data.resolve())
    check_ladder_data(moved)
    write_data_path(folder, data)
    for path in runs_of(folder).glob("*/config.json"):
        config = json.loads(path.read_bytes())
        if not (path.parent / ARCHIVED_FILE).is_file() and config["data"]["path"] != str(moved.data_path):
            config["data"]["path"] = str(moved.data_path)
            write_resolved(RunConfig.model_validate(config), path.parent)
    return moved


def check_ladder_rows(ladder: Ladder) -> None:
    """Raise ValueError if the data folder lacks rows or a split that a run of the ladder reads."""
    manifest = load_manifest(ladder.data_path)
    for number in range(len(ladder.recipe.objectives)):
        run = next(run for run in ladder.runs if run.objective == number)
        check_data(run_config(ladder, run, run.ends[0], 1.0, None), manifest)


def execute(folder: Path, ladder: Ladder, run: PlannedRun, parent: str | None, log: Log) -> None:
    """Complete one run of the ladder in `folder`; `parent` is the id of the MLflow run above all its trainings.

    Raises PreemptedError if it was asked to stop, ValueError if a training fails.
    """
    if state_of(folder, ladder, run).state == "complete":  # perhaps archived, without weights and without its data
        log(f"{run.name}: complete")
        return
    check_ladder_data(ladder)
    manifest = load_manifest(ladder.data_path)
    execution = _Execution(folder=folder, ladder=ladder, run=run, parent=parent, log=log, manifest=manifest)
    {"sweep": execution.sweep, "check": execution.check, "main": execution.main}[run.phase]()


@dataclass(frozen=True, kw_only=True)
class _Execution:
    """One run of a ladder, and what its trainings need."""

    folder: Path
    ladder: Ladder
    run: PlannedRun
    parent: str | None
    log: Log
    manifest: Manifest

    def sweep(self) -> None:
        """Try learning rates, and further ones beyond an edge, until the best is between two others."""
        run = self.run
        search = self.ladder.recipe.learning_rate
        if search is None or read_optimum(self.folder, run) is not None:
            return
        rates = run.rates
        while True:
            self._try(rates)
            tries = tries_of(self.folder, run, rates)
            try:
                further = next_rate(tries, search)
            except ValueError as error:
                raise ValueError(f"{run.name}: {error}") from error
            if further is None:
                break
            rates = (*rates, further)
        found = write_optimum(self.folder, run, tries)
        losses = ", ".join(f"{rate}: {'diverged' if loss is None else f'{loss:.4f}'}" for rate, loss in found.tries.items())
        self.log(f"{run.name}: learning rate {found.rate:.3g} ({losses})")

    def main(self) -> None:
        """Train the plateau, then a branch for every smaller budget, and evaluate each end."""
        run = self.run
        rate = rate_for(self.folder, self.ladder, run)
        ends = {
            end.label: self._prepare(name, run_config(self.ladder, run, end, rate, self.parent)) for end, name in run.folders()
        }
        plateau = ends[run.ends[-1].label]
        if read_status(plateau.folder) != "finished":
            self._train([plateau])
        unfinished = [end for end in run.ends[:-1] if read_status(ends[end.label].folder) != "finished"]
        if unfinished:
            from pipeline.checkpoint.branch import branch  # imports DeepSpeed

            for end in unfinished:
                branch(plateau.folder, ends[end.label].folder, end.decay_begin)
            self._train([ends[end.label] for end in unfinished])
        for end in run.ends:
            self._evaluate(ends[end.label].folder)
        self.log(f"{run.name}: complete")

    def check(self) -> None:
        """Try half and twice the rate of the power law at the largest budget, and compare them with the ladder's run."""
        run = self.run
        self._try(check_rates(self.folder, self.ladder, run))
        found = write_check(self.folder, self.ladder, run)
        if found is None:
            raise ValueError(
                f"{run.name} compares with {run.arm} at {run.size}, whose run is not finished: `fnet-t5 scaling run "
                f"{self.folder}` completes both"
            )
        losses = ", ".join(f"{rate}: {'diverged' if loss is None else f'{loss:.4f}'}" for rate, loss in found.tries.items())
        self.log(f"{run.name}: the rate {found.rate:.3g} costs {found.cost:.2%} ({losses})")

    def _try(self, rates: Sequence[float]) -> None:
        """Train at each rate that was not tried to its end."""
        run = self.run
        tries = tries_of(self.folder, run, tuple(rates))
        todo = [rate for rate in rates if rate not in tries]
        if not todo:
            return
        if run.phase == "sweep" and todo[0] not in run.rates:
            self.log(f"{run.name}: the best rate is at the edge; trying {todo[0]:.3g} next")
        configs = {rate: run_config(self.ladder, run, run.ends[0], rate, self.parent) for rate in todo}
        self._train([self._prepare(sweep_folder(run, rate), config) for rate, config in configs.items()], may_diverge=True)

    def _prepare(self, name: str, config: RunConfig) -> PreparedRun:
        processes = Processes(self.ladder.recipe.sizes[self.run.size].num_processes)
        prepared = check_run(config, runs_of(self.folder) / name, processes=processes, manifest=self.manifest)
        write_config(prepared)
        return prepared

    def _train(self, runs: Sequence[PreparedRun], may_diverge: bool = False) -> None:
        """Train runs one after another in the same processes; a try of a sweep that diverged is a result, too."""

        def is_done(run: PreparedRun) -> bool:
            return read_status(run.folder) == "finished" or (may_diverge and has_diverged(run.folder))

        todo = [run for run in runs if not is_done(run)]
        while todo:
            code = start_run(todo[0], then=todo[1:])
            left = [run for run in todo if not is_done(run)]
            statuses = [read_status(run.folder) for run in left]
            if left and (code in STOPPED_EXITS or code == PREEMPTED_EXIT or "preempted" in statuses):
                raise PreemptedError(f"{left[0].folder.name} was stopped; rerun the same command to resume")
            if left and (len(left) == len(todo) or statuses[0] == "failed"):
                raise ValueError(f"{left[0].folder.name} ended as {statuses[0]}: see {todo[0].folder / 'logs'}")
            todo = left

    def _evaluate(self, run: Path) -> None:
        """Measure a finished run; the prefix is as long as the encoder, the suffix as the decoder."""
        if suffix_bpb_file(run) is not None:
            return
        measure_run(run, extent_of(self.ladder), self.folder / FLOORS)


def extent_of(ladder: Ladder) -> Extent:
    """The rows that the runs of a ladder are measured on."""
    data = ladder.recipe.data
    rows = ladder.recipe.suffix_bpb.rows_per_source
    return Extent(prefix=data.encoder_length, suffix=data.decoder_length, rows_per_source=rows)


def measure_ladder(folder: Path, log: Log) -> None:
    """Measure every finished run of a ladder that an earlier version did not measure, or measured less of."""
    ladder = read_ladder(folder)
    main = [name for run in ladder.runs if run.phase == "main" for _, name in run.folders()]
    finished = [run for run in (runs_of(folder) / name for name in main) if read_status(run) == "finished"]
    lacking = [run for run in finished if not (run / MEASUREMENTS_FILE).is_file()]
    todo = [run for run in lacking if latest(run) is not None]
    for run in todo:
        log(f"{run}: {measure_run(run, extent_of(ladder), folder / FLOORS).bits_per_byte:.4f} bits per byte")
    log(f"{folder}: {len(todo)} of {len(finished)} finished runs were measured now")
    gone = len(lacking) - len(todo)
    if gone:
        log(f"{folder}: {gone} runs cannot be measured, because their checkpoints are gone")
