"""Executing one run of a ladder here: its run folders, its trainings, its evaluation. It can be restarted at any point.

A sweep tries learning rates until the best is between two others. A main run trains its plateau, branches off every
smaller budget, and evaluates suffix bits per byte of each end. Completed parts are skipped, unfinished ones resumed.
"""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from data_prep.dataset.manifest import MANIFEST_FILE, Manifest, load_manifest
from data_prep.files import sha256_file
from launch.local import PREEMPTED_EXIT, STOPPED_EXITS
from launch.preflight import check_data
from launch.start import PreparedRun, Processes, check_run, start_run, write_config
from pipeline.config import RunConfig
from pipeline.eval.suffix_bpb import ALL, overall, suffix_bpb_file, write_suffix_bpb
from pipeline.run_folder import read_status
from pipeline.scaling.ladder.ladder import Ladder, PlannedRun
from pipeline.scaling.ladder.learning_rates import has_diverged, next_rate, rate_for, read_optimum, tries_of, write_optimum
from pipeline.scaling.ladder.run_configs import run_config, runs_of, sweep_folder

Log = Callable[[str], None]


class PreemptedError(Exception):
    """A training was asked to stop, and has saved itself."""


def stop_between_trainings() -> None:
    """Have SIGTERM and SIGUSR1 raise PreemptedError while nothing trains; a training takes them over and saves itself."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise PreemptedError("stopped; rerun the same command to resume")

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)


def check_ladder_data(ladder: Ladder) -> None:
    """Raise ValueError if the data folder is not the one that the ladder was planned on."""
    path = ladder.recipe.data.path / MANIFEST_FILE
    if ladder.data_sha256 is None:
        raise ValueError(f"the ladder was planned before {ladder.recipe.data.path} existed: plan it again")
    if not path.is_file() or sha256_file(path) != ladder.data_sha256:
        raise ValueError(
            f"{path} is not the data that the ladder was planned on: restore it, or plan again into another folder"
        )


def check_ladder_rows(ladder: Ladder) -> None:
    """Raise ValueError if the data folder lacks rows or a split that a run of the ladder reads."""
    manifest = load_manifest(ladder.recipe.data.path)
    for number in range(len(ladder.recipe.objectives)):
        run = next(run for run in ladder.runs if run.objective == number)
        check_data(run_config(ladder, run, run.ends[0], 1.0, None), manifest)


def execute(folder: Path, ladder: Ladder, run: PlannedRun, parent: str | None, log: Log) -> None:
    """Complete one run of the ladder in `folder`; `parent` is the id of the MLflow run above all its trainings.

    Raises PreemptedError if it was asked to stop, ValueError if a training fails.
    """
    check_ladder_data(ladder)
    manifest = load_manifest(ladder.recipe.data.path)
    execution = _Execution(folder=folder, ladder=ladder, run=run, parent=parent, log=log, manifest=manifest)
    if run.phase == "sweep":
        execution.sweep()
    else:
        execution.main()


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

    def _try(self, rates: Sequence[float]) -> None:
        """Train at each rate that was not tried to its end."""
        run = self.run
        tries = tries_of(self.folder, run, tuple(rates))
        todo = [rate for rate in rates if rate not in tries]
        if not todo:
            return
        if todo[0] not in run.rates:
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
        """Evaluate suffix bits per byte of a finished run; the prefix is as long as the encoder, the suffix as the decoder."""
        if suffix_bpb_file(run) is not None:
            return
        data = self.ladder.recipe.data
        measure(run, data.encoder_length, data.decoder_length, self.ladder.recipe.suffix_bpb.rows_per_source)


def measure(run: Path, prefix: int, suffix: int, rows: int) -> float:
    """Evaluate suffix bits per byte of a run, write them to its folder, and return those of all sources together.

    `prefix` and `suffix` are lengths in tokens, `rows` is the number of rows of each source.
    Raises ValueError for a run without a checkpoint, for losses that are not finite, and for a run that was evaluated on other
    text before: a ladder's report may rest on that.
    """
    from pipeline.eval.evaluate import evaluate_sources

    scores = evaluate_sources(run, prefix_length=prefix, suffix_length=suffix, rows_per_source=rows)
    if not all(math.isfinite(one.nll) for one in scores.values()):
        raise ValueError(f"{run} has a loss on held-out text that is not finite: it has diverged")
    path = suffix_bpb_file(run)
    if path is not None:
        kept = json.loads(path.read_bytes())
        text = kept["sources"][ALL]["text_sha256"]
        if (kept["prefix"], kept["suffix"], text) != (prefix, suffix, overall(scores).text_sha256):
            raise ValueError(
                f"{path} evaluates this run on other text ({kept['suffix']} tokens given {kept['prefix']}, text {text[:8]}), "
                "on which a ladder's report may rest: give the same --prefix, --suffix and --rows, or delete the file first"
            )
    write_suffix_bpb(run, prefix, suffix, scores)
    return overall(scores).bits_per_byte
