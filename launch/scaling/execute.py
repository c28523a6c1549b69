"""Executing one run of a ladder here: its run folders, its trainings, its measure; restartable at any point.

A sweep tries its learning rates until the best lies between two others. A main run trains its plateau, branches off every
smaller budget, and scores each end on the yardstick. What is complete is passed over, what was begun goes on.
"""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from data_prep.dataset.manifest import MANIFEST_FILE
from data_prep.files import sha256_file
from launch.config import check_same_run, write_resolved
from launch.local import STOPPED_EXITS, run_local
from launch.preflight import check_data, check_folder
from pipeline.config import RunConfig
from pipeline.eval.suffix_bpb import ALL, overall, suffix_bpb_file, write_suffix_bpb
from pipeline.run_folder import read_status, settle_status
from pipeline.scaling.ladder.ladder import Ladder, PlannedRun
from pipeline.scaling.ladder.learning_rates import has_diverged, next_rate, rate_for, read_optimum, tries_of, write_optimum
from pipeline.scaling.ladder.run_configs import run_config, runs_of, sweep_folder

Say = Callable[[str], None]


class PreemptedError(Exception):
    """A training was asked to stop, and has saved itself."""


def stop_between_trainings() -> None:
    """Have SIGTERM and SIGUSR1 raise PreemptedError while nothing trains; a training takes them over and saves itself."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise PreemptedError("asked to stop; the same command goes on")

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)


def check_ladder_data(ladder: Ladder) -> None:
    """Raise ValueError where the data folder is not the one that the ladder was planned on."""
    path = ladder.recipe.data.path / MANIFEST_FILE
    if ladder.data_sha256 is None:
        raise ValueError(f"the ladder was planned before {ladder.recipe.data.path} was there: plan again, now that it is")
    if not path.is_file() or sha256_file(path) != ladder.data_sha256:
        raise ValueError(f"{path} is not the data that the ladder was planned on: restore it, or plan anew into another folder")


def check_ladder_rows(ladder: Ladder) -> None:
    """Raise ValueError where the data folder lacks rows or a split that a run of the ladder reads."""
    for number in range(len(ladder.recipe.objectives)):
        run = next(run for run in ladder.runs if run.objective == number)
        check_data(run_config(ladder, run, run.ends[0], 1.0, None))


def execute(folder: Path, ladder: Ladder, run: PlannedRun, parent: str | None, say: Say) -> None:
    """Bring one run to its end. Raises PreemptedError where it was asked to stop, ValueError where it cannot end well."""
    check_ladder_data(ladder)
    if run.phase == "sweep":
        _sweep(folder, ladder, run, parent, say)
    else:
        _main(folder, ladder, run, parent, say)


def _sweep(folder: Path, ladder: Ladder, run: PlannedRun, parent: str | None, say: Say) -> None:
    if read_optimum(folder, run) is not None:
        return
    rates = run.rates
    while True:
        tries = tries_of(folder, run, rates)
        todo = [rate for rate in rates if rate not in tries]
        if not todo:
            try:
                further = next_rate(tries, ladder.recipe.learning_rate)
            except ValueError as error:
                raise ValueError(f"{run.name}: {error}") from error
            if further is None:
                break
            rates = (*rates, further)
            continue
        if todo[0] not in run.rates:
            say(f"{run.name}: the best rate lies at the edge, {todo[0]:.3g} comes next")
        folders = [runs_of(folder) / sweep_folder(run, rate) for rate in todo]
        for path, rate in zip(folders, todo, strict=True):
            _prepare(path, run_config(ladder, run, run.ends[0], rate, parent))
        _train(folders, ladder, run, may_diverge=True)
    found = write_optimum(folder, run, tries)
    losses = ", ".join(f"{rate}: {'diverged' if loss is None else f'{loss:.4f}'}" for rate, loss in found.tries.items())
    say(f"{run.name}: learning rate {found.rate:.3g} ({losses})")


def _main(folder: Path, ladder: Ladder, run: PlannedRun, parent: str | None, say: Say) -> None:
    rate = rate_for(folder, ladder, run)
    places = {end.label: runs_of(folder) / name for end, name in run.folders()}
    main_run = places[run.ends[-1].label]
    for end in run.ends:
        config = run_config(ladder, run, end, rate, parent)
        _prepare(places[end.label], config)
    if read_status(main_run) != "finished":
        _train([main_run], ladder, run)
    branches = [end for end in run.ends[:-1] if read_status(places[end.label]) != "finished"]
    if branches:
        from pipeline.checkpoint.branch import branch  # imports DeepSpeed

        for end in branches:
            branch(main_run, places[end.label], end.decay_begin)
        _train([places[end.label] for end in branches], ladder, run)
    for end in run.ends:
        _measure(places[end.label], ladder)
    say(f"{run.name}: complete")


def _prepare(path: Path, config: RunConfig) -> None:
    if path.exists():
        check_folder(path)
        check_same_run(config, path)
    else:
        check_data(config)
    write_resolved(config, path)


def _train(folders: Sequence[Path], ladder: Ladder, run: PlannedRun, may_diverge: bool = False) -> None:
    """Train folders one after another in the same processes; a try of a sweep that diverged is a result, too."""
    todo = [path for path in folders if read_status(path) != "finished" and not (may_diverge and has_diverged(path))]
    while todo:
        code = run_local(todo[0], ladder.recipe.sizes[run.size].num_processes, then=todo[1:])
        for path in todo:
            settle_status(path)
        left = [path for path in todo if read_status(path) != "finished" and not (may_diverge and has_diverged(path))]
        if left and (code in STOPPED_EXITS or any(read_status(path) == "preempted" for path in left)):
            raise PreemptedError(f"{left[0].name} was stopped; it goes on from there")
        if left and (len(left) == len(todo) or read_status(left[0]) == "failed"):
            raise ValueError(f"{left[0].name} ended as {read_status(left[0])}: see {todo[0] / 'logs'}")
        todo = left


def _measure(path: Path, ladder: Ladder) -> None:
    """Score a finished run on the yardstick; the prefix is as long as the encoder, the suffix as the decoder."""
    if suffix_bpb_file(path) is not None:
        return
    data = ladder.recipe.data
    measure(path, data.encoder_length, data.decoder_length, ladder.recipe.suffix_bpb.rows_per_source)


def measure(run: Path, prefix: int, suffix: int, rows: int) -> float:
    """Score a run on the yardstick, keep the result in its folder, and return bits per byte of all sources together.

    Raises ValueError for a run without a checkpoint, for one whose scores are not finite, and for one that was scored on other
    text: a ladder's report may rest on that.
    """
    from pipeline.eval.evaluate import evaluate_sources

    scores = evaluate_sources(run, prefix_length=prefix, suffix_length=suffix, rows_per_source=rows)
    if not all(math.isfinite(one.nll) for one in scores.values()):
        raise ValueError(f"{run} scores no finite number on held-out text: it has diverged")
    path = suffix_bpb_file(run)
    if path is not None:
        kept = json.loads(path.read_bytes())
        text = kept["sources"][ALL]["text_sha256"]
        if (kept["prefix"], kept["suffix"], text) != (prefix, suffix, overall(scores).text_sha256):
            raise ValueError(
                f"{path} scores this run on other text ({kept['suffix']} tokens given {kept['prefix']}, text {text[:8]}), on "
                "which a ladder's report may rest: give --prefix, --suffix and --rows as there, or delete the file first"
            )
    write_suffix_bpb(run, prefix, suffix, scores)
    return overall(scores).bits_per_byte
