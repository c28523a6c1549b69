"""`fnet-t5 scaling battery`: train small models on tasks that need the order of the input, and report what they solve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.arguments import Overrides

if TYPE_CHECKING:
    from pipeline.scaling.battery.settings import BatteryRecipe, BatteryRun


def register(group: typer.Typer) -> None:
    """Add the command to `fnet-t5 scaling`."""
    group.command(
        epilog="Example: fnet-t5 scaling battery configs/battery/first.yaml --output runs/battery --jobs 2",
        no_args_is_help=True,
    )(battery)


def battery(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.yaml", help="A recipe: a path, or the name of a shipped one.")],
    output: Annotated[Path, typer.Option(help="Folder of the results, one file a run. Runs that are there are skipped.")],
    overrides: Overrides = None,
    jobs: Annotated[int, typer.Option(help="Runs at the same time, one process and one thread each.", min=1)] = 1,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after this many minutes, 0: train nothing; rerun the command to go on.", min=0)
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for README.md, runs.csv, curves.csv and solved.svg of all results so far.")
    ] = None,
) -> None:
    """Train every arm on every synthetic task, and write which share of held-out rows it solves.

    A run that is stopped is made again from its beginning; each takes a minute or two.
    """
    from launch.config import load_config
    from launch.local import PREEMPTED_EXIT
    from pipeline.scaling.battery.outcomes import check_outcomes
    from pipeline.scaling.battery.settings import BatteryRecipe

    config = load_config(BatteryRecipe, recipe, overrides or [], kind="battery")
    output.mkdir(parents=True, exist_ok=True)
    runs = list(config.runs())
    for run in runs:
        run.model()  # an impossible model is an error before anything starts
    there = check_outcomes(output, runs)
    todo = [run for run in runs if run.name not in there]
    typer.echo(f"{len(there)} of {len(runs)} runs are in {output}")
    left = _run(output, todo, jobs, minutes)
    if report is not None:
        _report(config, output, report, recipe, overrides or [])
    if left:
        typer.echo(f"{left} runs left: rerun the same command to go on")
        raise typer.Exit(PREEMPTED_EXIT)


def _run(output: Path, todo: list[BatteryRun], jobs: int, minutes: float | None) -> int:
    """The number of runs that are left."""
    if not todo or minutes == 0:
        return len(todo)
    from pipeline.scaling.battery.parallel import run_battery

    return run_battery(output, todo, jobs=jobs, minutes=minutes, log=typer.echo).left


def _report(config: BatteryRecipe, output: Path, folder: Path, recipe: str, overrides: list[str]) -> None:
    import shlex

    from launch.bench.machine import machine
    from pipeline.scaling.battery.battery_page import write_battery_report

    command = "fnet-t5 scaling battery " + shlex.join([recipe, *overrides, "--output", str(output), "--report", str(folder)])
    files = write_battery_report(folder, config, output, command=command, machine=machine())
    typer.echo(f"Written: {', '.join(map(str, files))}")
