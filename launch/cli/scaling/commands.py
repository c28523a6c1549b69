"""`fnet-t5 scaling`: plan a compute-matched ladder, run it, show its progress, and report its results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.arguments import ManyValuesCommand, Overrides
from launch.cli.scaling import battery

if TYPE_CHECKING:
    from launch.scaling.pool import JobSlots
    from pipeline.scaling.ladder.ladder import Ladder, PlannedRun

Folder = Annotated[Path, typer.Argument(metavar="LADDER", help="Ladder folder made by `scaling plan`.")]


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    group = typer.Typer(
        help="Compute-matched ladders: plan, run, show progress, report.",
        no_args_is_help=True,
        epilog="Example: fnet-t5 scaling plan configs/scaling/cpu-smoke.yaml --output runs/cpu-smoke/ladder",
    )
    group.command(
        epilog="Example: fnet-t5 scaling plan configs/scaling/cpu-smoke.yaml --output runs/cpu-smoke/ladder",
        no_args_is_help=True,
    )(plan)
    group.command(
        cls=ManyValuesCommand, epilog="Example: fnet-t5 scaling run runs/cpu-smoke/ladder --jobs 2", no_args_is_help=True
    )(run)
    group.command(
        epilog="Example: fnet-t5 scaling report runs/cpu-smoke/ladder --output runs/cpu-smoke/report", no_args_is_help=True
    )(report)
    group.command(epilog="Example: fnet-t5 scaling measure runs/t5 runs/gpt2 --prefix 512 --suffix 128", no_args_is_help=True)(
        measure
    )
    group.command(epilog="Example: fnet-t5 scaling status runs/cpu-smoke/ladder", no_args_is_help=True)(status)
    battery.register(group)
    group.command(epilog="Example: fnet-t5 scaling add runs/ladder arms.ff_only={}", no_args_is_help=True)(add)
    group.command(epilog="Example: fnet-t5 scaling predict runs/ladder --flops 1e15", no_args_is_help=True)(predict)
    group.command(
        epilog="Example: fnet-t5 scaling archive runs/cpu-smoke/ladder --output results/cpu-smoke", no_args_is_help=True
    )(archive)
    app.add_typer(group, name="scaling")


def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.yaml", help="A recipe: a path, or the name of a shipped one.")],
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="Ladder folder to write. Default: only show the plan.")] = None,
) -> None:
    """Plan a ladder: its runs, their cost, the pairs to compare, and the effect that it can detect. Starts nothing.

    The plan is hashed, so that a report can show that it is the one that was run.
    """
    from launch.cli.scaling.views import show_plan
    from launch.config import load_config
    from launch.scaling.execute import check_ladder_rows
    from pipeline.scaling.ladder.ladder import make_ladder, write_ladder
    from pipeline.scaling.ladder.recipe import LadderRecipe

    config = load_config(LadderRecipe, recipe, overrides or [], kind="scaling")
    ladder = make_ladder(config)
    if ladder.data_sha256 is not None:
        check_ladder_rows(ladder)
    show_plan(ladder)
    if output is not None:
        typer.echo(f"Planned in {write_ladder(ladder, output)}. Next: fnet-t5 scaling run {output}")


def run(
    folder: Folder,
    only: Annotated[list[str] | None, typer.Option(help="Names of the runs to complete. Default: all.")] = None,
    jobs: Annotated[
        str,
        typer.Option(help="Maximum number of runs at the same time; auto: one for each GPU, or each OMP_NUM_THREADS cores."),
    ] = "1",
    nice: Annotated[int, typer.Option(help="Lower the priority of the runs by this much.", min=0, max=19)] = 0,
    minutes: Annotated[
        float | None, typer.Option(help="Save and stop after this many minutes; rerun the command to resume.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Where the data are now, if they were moved. The ladder keeps this place.")
    ] = None,
) -> None:
    """Run a ladder here: sweeps of learning rates, then every run with its budgets. Completed runs are skipped.

    Several of these commands may work on one ladder at the same time, one --only each, as a job array does.
    """
    from pipeline.scaling.ladder.ladder import read_ladder

    ladder = read_ladder(folder)
    if data is not None:
        from launch.scaling.execute import move_data

        ladder = move_data(folder, ladder, data)
    chosen = [ladder.run(name) for name in only] if only else list(ladder.runs)
    parent = _open_parent(folder, ladder)
    if only and len(only) == 1 and minutes is None and not nice:
        _run_one(folder, ladder, chosen[0], parent)
    else:
        _run_many(folder, ladder, chosen, parent=parent, slots=_slots(jobs, nice), minutes=minutes)


def _open_parent(folder: Path, ladder: Ladder) -> str | None:
    """The id of the MLflow run above the ladder's runs; None where tracking is off or not reachable."""
    from pipeline.tracking.mlflow_tracker import open_parent

    tracking = ladder.recipe.tracking
    if not tracking.enabled:
        return None
    tags = {"ladder.sha256": ladder.sha256, "mlflow.note.content": "\n".join(ladder.recipe.hypotheses)}
    return open_parent(folder, tracking.experiment, ladder.recipe.name, tags)


def _run_one(folder: Path, ladder: Ladder, run: PlannedRun, parent: str | None) -> None:
    """In this process."""
    from launch.local import PREEMPTED_EXIT
    from launch.scaling.execute import PreemptedError, execute, stop_between_trainings

    stop_between_trainings()
    try:
        execute(folder, ladder, run, parent, typer.echo)
    except PreemptedError as stopped:
        typer.echo(str(stopped))
        raise typer.Exit(PREEMPTED_EXIT) from None


def _slots(jobs: str, nice: int) -> JobSlots:
    from launch.scaling.pool import JobSlots

    if jobs == "auto":
        return JobSlots.automatic(niceness=nice)
    if not jobs.isdecimal() or int(jobs) < 1:
        raise ValueError(f"--jobs {jobs}: give a number of at least 1, or auto")
    return JobSlots(jobs=int(jobs), niceness=nice)


def _run_many(
    folder: Path, ladder: Ladder, chosen: list[PlannedRun], *, parent: str | None, slots: JobSlots, minutes: float | None
) -> None:
    """In one process each, as many at a time as there are slots."""
    from launch.local import PREEMPTED_EXIT
    from launch.scaling.pool import Pool
    from pipeline.scaling.ladder.states import state_of
    from pipeline.tracking.mlflow_tracker import close_parent

    todo = [run for run in chosen if state_of(folder, ladder, run).state != "complete"]
    completed = f"{len(chosen) - len(todo)} of {len(chosen)} runs are complete"
    typer.echo(f"{completed}; running {slots.jobs} at a time, logs in {folder / 'logs'}")
    outcome = Pool(folder, ladder, slots=slots, minutes=minutes, log=typer.echo).run(todo)
    if parent is not None and all(state_of(folder, ladder, run).state == "complete" for run in ladder.runs):
        close_parent(folder)
    typer.echo(f"{outcome.done} runs completed, {len(outcome.failed)} failed, {outcome.left} remaining")
    if outcome.failed:
        raise ValueError(f"failed: {', '.join(outcome.failed)}. Fix the cause and rerun the same command")
    if outcome.left:
        raise typer.Exit(PREEMPTED_EXIT)


def measure(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS…", help="Run folders outside of any ladder, or ladder folders.")],
    prefix: Annotated[
        int | None, typer.Option(help="Prefix length in tokens: at most the encoder length. A ladder has its own.", min=1)
    ] = None,
    suffix: Annotated[int | None, typer.Option(help="Suffix length in tokens. A ladder has its own.", min=1)] = None,
    rows: Annotated[int, typer.Option(help="Rows of each source. A ladder has its own.", min=1)] = 256,
) -> None:
    """Measure finished runs: suffix bits per byte, by which `scaling report` compares runs of any objective and architecture,
    whether a model uses its input, n-gram floors, and the loss of every token.

    `scaling run` measures the runs of a ladder itself. Give a ladder folder to measure those that an earlier version finished.
    """
    from launch.scaling.execute import measure_ladder
    from pipeline.eval.measurements import Extent, measure_run
    from pipeline.scaling.ladder.ladder import LADDER_FILE

    for folder in runs:
        if (folder / LADDER_FILE).is_file():
            measure_ladder(folder, typer.echo)
        elif prefix is None or suffix is None:
            raise ValueError(f"{folder} is no ladder: give --prefix and --suffix, the same for all runs that you will compare")
        else:
            found = measure_run(folder, Extent(prefix=prefix, suffix=suffix, rows_per_source=rows))
            typer.echo(f"{folder}: {found.bits_per_byte:.4f} bits per byte")


def status(folder: Folder) -> None:
    """Show the state of every run of a ladder."""
    from launch.cli.scaling.views import show_states
    from pipeline.scaling.ladder.ladder import read_ladder
    from pipeline.scaling.ladder.states import state_of

    ladder: Ladder = read_ladder(folder)
    show_states(folder, [state_of(folder, ladder, one) for one in ladder.runs])


def add(
    folder: Folder,
    overrides: Overrides = None,
    recipe: Annotated[
        str | None, typer.Option(help="The extended recipe. Default: the ladder's own, with the key=value given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the extended plan.")] = False,
) -> None:
    """Extend a plan: more arms, sizes, budgets or seeds. What was planned is kept, and the extension is recorded with its time.

    Complete it with `scaling run`.
    """
    from launch.cli.scaling.views import show_plan
    from launch.scaling.ladder_recipes import extended_recipe
    from pipeline.scaling.ladder.extend import extend
    from pipeline.scaling.ladder.ladder import read_ladder, write_extension

    ladder = read_ladder(folder)
    extended = extend(ladder, extended_recipe(ladder, recipe, overrides or []))
    show_plan(extended)
    added = extended.extensions[-1].runs
    typer.echo(f"Adds {len(added)} runs: {', '.join(run.name for run in added)}")
    if not dry_run:
        write_extension(folder, extended)
        typer.echo(f"Recorded in {folder / 'ladder.json'}. Next: fnet-t5 scaling run {folder}")


def predict(
    ladder: Annotated[str, typer.Argument(metavar="LADDER|RECIPE.yaml", help="A ladder with results, or a recipe.")],
    flops: Annotated[float | None, typer.Option(help="Training FLOPs.")] = None,
    params: Annotated[float | None, typer.Option(help="Parameters.")] = None,
    tokens: Annotated[float | None, typer.Option(help="Raw tokens of text.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Arms to predict. Default: all.")] = None,
) -> None:
    """Predict losses from the loss surfaces of a ladder: give one or two of --flops, --params and --tokens.

    With one of them the others are the compute-optimal ones. A recipe, of which nothing has run, predicts from the surface that
    it assumes, without an interval.
    """
    from launch.cli.scaling.views import show_predictions
    from launch.scaling.ladder_recipes import predictions
    from pipeline.scaling.predict import Asked

    show_predictions(*predictions(ladder, Asked(flops=flops, num_parameters=params, tokens=tokens), arm or []))


def archive(
    folder: Folder,
    output: Annotated[Path, typer.Option(help="Folder to write, or an archive of the same ladder to complete.")],
    max_kb: Annotated[int, typer.Option(help="Leave out files of more than this many kB.", min=1)] = 60,
) -> None:
    """Copy the plan and all small results of completed runs, without weights: to commit them, or to go on elsewhere.

    An archive is a ladder folder: `scaling report` reads it, `scaling run` trains the runs that it lacks. Repeated, the command
    adds what was completed meanwhile, here or in another copy of the ladder.
    """
    from pipeline.scaling.ladder.archive import archive as write_archive

    done = write_archive(folder, output, 1000 * max_kb)
    typer.echo(f"{output}: {len(done.runs)} folders of runs, {done.num_bytes / 1e6:.2f} MB")
    for title, names in (
        ("not complete, so not archived", done.incomplete),
        ("differ from what the archive holds, which was kept", done.kept),
        (f"larger than {max_kb} kB, left out", done.large),
    ):
        if names:
            typer.echo(f"{title}: {', '.join(names)}")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUNS…", help="Ladder folders, run folders outside of any ladder, or runs.csv of a report."),
    ],
    output: Annotated[Path, typer.Option(help="Folder for index.html, report.md, tables of runs and fits.json.")],
    baseline: Annotated[
        str | None, typer.Option(help="Arm that the others are compared with. Default: the ladder's, or t5.")
    ] = None,
    inference: Annotated[
        Path | None, typer.Option(help="JSON file of `fnet-t5 bench inference`, to show its costs too.")
    ] = None,
) -> None:
    """Fit scaling laws, compare the arms and write a report: the answer with its uncertainty, then the evidence.

    It begins with checks that T5 uses its input, and says nothing about mixing where one does not hold or was not measured.
    Runs that are unfinished, diverged, repeated their data too often or are copies are named and excluded. Runs of different
    tokenizers, data or evaluations in one report are an error.
    """
    import shlex

    from launch.scaling.report import log_to_mlflow, make_report

    words = [*map(str, runs), "--output", str(output), *(["--baseline", baseline] if baseline else [])]
    command = "fnet-t5 scaling report " + shlex.join([*words, *(["--inference", str(inference)] if inference else [])])
    made = make_report(runs, output, baseline, inference, command)
    for sentence in made.answer:
        typer.echo(sentence)
    for excluded in made.excluded:
        typer.echo(f"excluded: {excluded.run}: {excluded.reason}")
    log_to_mlflow(runs, made.files)
    typer.echo(f"Written: {', '.join(map(str, made.files))}")
