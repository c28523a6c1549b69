"""`fnet-t5 launch`: jobs on clusters. Each launch is rendered, shown and then submitted; script and record are kept."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from launch.cluster.record import LaunchRecord

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A run, ladder or dataset folder that was launched.")]


def register(app: typer.Typer) -> None:
    """Add the group to the command line: the commands of each platform, and those that work for every launch."""
    from launch.cluster.registry import PLATFORMS

    group = typer.Typer(help="Start and follow jobs on SLURM, Kubernetes and Ray clusters.", no_args_is_help=True)
    for modules in PLATFORMS.values():
        importlib.import_module(modules.commands).register(group)
    group.command(epilog="Example: fnet-t5 launch status runs/base", no_args_is_help=True)(status)
    group.command(epilog="Example: fnet-t5 launch cancel runs/base", no_args_is_help=True)(cancel)
    group.command(epilog="Example: fnet-t5 launch logs runs/base --follow", no_args_is_help=True)(logs)
    app.add_typer(group, name="launch")


def status(folder: Folder) -> None:
    """Show the job's state on the platform, and the progress of the run."""
    from launch.cluster.record import read_record
    from launch.cluster.registry import find_platform

    record = read_record(folder)
    typer.echo(f"{record.what} on {record.platform}, job {record.job_id}, submitted {record.submitted}")
    typer.echo(find_platform(record.platform).state(record))
    for line in _progress(record):
        typer.echo(line)


def cancel(folder: Folder) -> None:
    """End the job. A training run saves if the platform gives it time; prepared data is kept."""
    from launch.cluster.record import read_record
    from launch.cluster.registry import find_platform

    record = read_record(folder)
    find_platform(record.platform).cancel(record)
    typer.echo(f"Asked {record.platform} to end job {record.job_id}; launch it again to resume from what it has saved")


def logs(
    folder: Folder,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the last lines to show.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing new lines, until Ctrl-C.")] = False,
) -> None:
    """Show the end of the job's log."""
    from launch.cluster.record import read_record
    from launch.cluster.registry import find_platform

    record = read_record(folder)
    sys.exit(find_platform(record.platform).logs(record, lines=lines, follow=follow))


def _progress(record: LaunchRecord) -> list[str]:
    """STATUS and the latest checkpoint of a training run, if its folder can be read from here."""
    from pipeline.run_folder import latest, read_status

    if record.what != "train" or not record.folder.is_dir():
        return []
    checkpoint = latest(record.folder)
    return [f"STATUS {read_status(record.folder) or 'none yet'}, latest checkpoint {checkpoint.name if checkpoint else 'none'}"]
