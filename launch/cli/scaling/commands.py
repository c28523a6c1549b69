"""`fnet-t5 scaling`: plan a compute-matched ladder, run it, see how far it is, and report what it says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.arguments import ManyValuesCommand, Overrides

if TYPE_CHECKING:
    from pipeline.scaling.ladder.ladder import Ladder

Folder = Annotated[Path, typer.Argument(metavar="LADDER", help="Folder that `scaling plan` made.")]


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    group = typer.Typer(
        help="Compute-matched ladders: plan, run, follow, report.",
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
    app.add_typer(group, name="scaling")


def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.yaml", help="A recipe: a path, or the name of a shipped one.")],
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="Ladder folder to make. Default: only show the plan.")] = None,
) -> None:
    """Write down and hash every run of a ladder, its cost, the pairs to compare and what it can detect. Starts nothing."""
    from launch.cli.scaling.views import show_plan
    from launch.config import load_config
    from launch.scaling.execute import check_ladder_rows
    from pipeline.scaling.ladder.ladder import make_ladder, write_ladder
    from pipeline.scaling.ladder.recipe import LadderRecipe

    config = load_config(LadderRecipe, recipe, overrides or [], kind="scaling")
    if config.data.path.is_dir():
        config = config.model_copy(update={"data": config.data.model_copy(update={"path": config.data.path.resolve()})})
    ladder = make_ladder(config)
    if ladder.data_sha256 is not None:
        check_ladder_rows(ladder)
    show_plan(ladder)
    if output is not None:
        typer.echo(f"Planned in {write_ladder(ladder, output)}. Next: fnet-t5 scaling run {output}")


def run(
    folder: Folder,
    only: Annotated[list[str] | None, typer.Option(help="Names of the runs to bring to their end. Default: all.")] = None,
    jobs: Annotated[int, typer.Option(help="Runs side by side on this machine.", min=1)] = 1,
    minutes: Annotated[float | None, typer.Option(help="Stop, saved, after so many minutes; the same command goes on.")] = None,
) -> None:
    """Execute a ladder here: sweeps of learning rates, then every run with its budgets. Complete ones are passed over.

    Several of these may work on one ladder at the same time, as a job array does, one --only each.
    """
    from launch.local import PREEMPTED_EXIT
    from pipeline.scaling.ladder.ladder import read_ladder
    from pipeline.scaling.ladder.states import state_of
    from pipeline.tracking.mlflow_tracker import close_parent, open_parent

    ladder = read_ladder(folder)
    chosen = [ladder.run(name) for name in only] if only else list(ladder.runs)
    tracking = ladder.recipe.tracking
    parent = None
    if tracking.enabled:
        tags = {"ladder.sha256": ladder.sha256, "mlflow.note.content": "\n".join(ladder.recipe.hypotheses)}
        parent = open_parent(folder, tracking.experiment, ladder.recipe.name, tags)
    if only and len(only) == 1 and minutes is None:
        from launch.scaling.execute import PreemptedError, execute, stop_between_trainings

        stop_between_trainings()
        try:
            execute(folder, ladder, chosen[0], parent, typer.echo)
        except PreemptedError as stopped:
            typer.echo(str(stopped))
            raise typer.Exit(PREEMPTED_EXIT) from None
        return
    from launch.scaling.pool import Pool

    todo = [one for one in chosen if state_of(folder, ladder, one).state != "complete"]
    typer.echo(f"{len(chosen) - len(todo)} of {len(chosen)} runs are complete; {jobs} side by side, logs in {folder / 'logs'}")
    outcome = Pool(folder, ladder, jobs, minutes, typer.echo).run(todo)
    if parent is not None and all(state_of(folder, ladder, one).state == "complete" for one in ladder.runs):
        close_parent(folder)
    typer.echo(f"{outcome.done} runs brought to their end, {len(outcome.failed)} failed, {outcome.left} left")
    if outcome.failed:
        raise ValueError(f"failed: {', '.join(outcome.failed)}. Mend the cause and give the same command again")
    if outcome.left:
        raise typer.Exit(PREEMPTED_EXIT)


def measure(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS…", help="Run folders that no ladder planned.")],
    prefix: Annotated[int, typer.Option(help="Tokens given: at most the encoders' length.", min=1)],
    suffix: Annotated[int, typer.Option(help="Tokens to be written.", min=1)],
    rows: Annotated[int, typer.Option(help="Rows of each source.", min=1)] = 256,
) -> None:
    """Score runs on the yardstick, so that `scaling report` can compare other objectives and architectures by it."""
    from launch.scaling.execute import measure as measure_run

    for folder in runs:
        typer.echo(f"{folder}: {measure_run(folder, prefix, suffix, rows):.4f} bits per byte")


def status(folder: Folder) -> None:
    """How far every run of a ladder is."""
    from launch.cli.scaling.views import show_states
    from pipeline.scaling.ladder.ladder import read_ladder
    from pipeline.scaling.ladder.states import state_of

    ladder: Ladder = read_ladder(folder)
    show_states(folder, [state_of(folder, ladder, one) for one in ladder.runs])


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS…", help="Ladders, or run folders that no ladder planned.")],
    output: Annotated[Path, typer.Option(help="Folder for index.html, report.md, runs.csv and fits.json.")],
    baseline: Annotated[str | None, typer.Option(help="Arm to compare with. Default: the ladder's, or t5.")] = None,
    inference: Annotated[Path | None, typer.Option(help="JSON of `fnet-t5 bench inference`, to show beside quality.")] = None,
) -> None:
    """Fit, compare and write the page: the answer in words with its uncertainty, then everything that it rests on.

    Runs that are not finished, diverged, repeated their data too often or are copies are named and left out; mixed tokenizers,
    data or measures are refused.
    """
    import shlex

    from launch.scaling.report import log_to_mlflow, make_report

    words = [*map(str, runs), "--output", str(output), *(["--baseline", baseline] if baseline else [])]
    command = "fnet-t5 scaling report " + shlex.join([*words, *(["--inference", str(inference)] if inference else [])])
    made = make_report(runs, output, baseline, inference, command)
    for sentence in made.answer:
        typer.echo(sentence)
    for excluded in made.excluded:
        typer.echo(f"left out: {excluded.run}: {excluded.reason}")
    log_to_mlflow(runs, made.files)
    typer.echo(f"Written: {', '.join(map(str, made.files))}")
