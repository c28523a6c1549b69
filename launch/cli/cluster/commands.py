"""`fnet-t5 launch`: jobs on clusters. Every launch is rendered, shown, and only then submitted; file and record are kept."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.cluster import kubernetes, ray, slurm

if TYPE_CHECKING:
    from launch.cluster.record import LaunchRecord

_POLL_SECONDS = 1.0

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A run, ladder or dataset folder that was launched.")]


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    group = typer.Typer(help="Start and follow jobs on SLURM, Kubernetes and Ray clusters.", no_args_is_help=True)
    for file in (slurm, kubernetes, ray):
        file.register(group)
    group.command(epilog="Example: fnet-t5 launch status runs/base", no_args_is_help=True)(status)
    group.command(epilog="Example: fnet-t5 launch cancel runs/base", no_args_is_help=True)(cancel)
    group.command(epilog="Example: fnet-t5 launch logs runs/base --follow", no_args_is_help=True)(logs)
    app.add_typer(group, name="launch")


def status(folder: Folder) -> None:
    """What the platform says of the job, and how far the run has come."""
    from launch.cluster import kubernetes, ray_jobs, slurm
    from launch.cluster.record import read_record

    record = read_record(folder)
    typer.echo(f"{record.what} on {record.platform}, job {record.job_id}, submitted {record.submitted}")
    if record.platform == "slurm":
        typer.echo(slurm.state(record.job_id))
    elif record.platform == "kubernetes":
        typer.echo(kubernetes.state(record))
    else:
        typer.echo(ray_jobs.state(record))
    for line in _progress(record):
        typer.echo(line)


def cancel(folder: Folder) -> None:
    """End the job. Training saves itself if the platform leaves it the time; what is prepared is kept."""
    from launch.cluster import kubernetes, ray_jobs, slurm
    from launch.cluster.record import read_record

    record = read_record(folder)
    if record.platform == "slurm":
        slurm.cancel(record.job_id)
    elif record.platform == "kubernetes":
        kubernetes.cancel(record)
    else:
        ray_jobs.cancel(record)
    typer.echo(f"Asked {record.platform} to end job {record.job_id}; launched again, it goes on from what it has saved")


def logs(
    folder: Folder,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the last lines.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on showing what is written, until Ctrl-C.")] = False,
) -> None:
    """The end of the job's log."""
    from launch.cluster import kubernetes, ray_jobs
    from launch.cluster.record import read_record

    record = read_record(folder)
    if record.platform == "slurm":
        _tail(record, lines, follow)
    elif record.platform == "kubernetes":
        sys.exit(subprocess.run(kubernetes.logs(record, lines, follow), check=False).returncode)
    else:
        written = ray_jobs.logs(record)
        typer.echo("\n".join(written.splitlines()[-lines:]))
        while follow:
            time.sleep(_POLL_SECONDS)
            now = ray_jobs.logs(record)
            typer.echo(now.removeprefix(written), nl=False)
            written = now
            if not any(word in ray_jobs.state(record) for word in ("RUNNING", "PENDING")):
                break


def _progress(record: LaunchRecord) -> list[str]:
    """STATUS and the latest checkpoint, where the run folder can be seen from here."""
    from pipeline.run_folder import latest, read_status

    if record.what != "train" or not record.folder.is_dir():
        return []
    checkpoint = latest(record.folder)
    return [f"STATUS {read_status(record.folder) or 'none yet'}, latest checkpoint {checkpoint.name if checkpoint else 'none'}"]


def _tail(record: LaunchRecord, lines: int, follow: bool) -> None:
    paths = sorted(glob.glob(record.logs), key=os.path.getmtime)
    while follow and not paths:
        time.sleep(_POLL_SECONDS)
        paths = sorted(glob.glob(record.logs), key=os.path.getmtime)
    if not paths:
        typer.echo(f"Job {record.job_id} has written nothing to {record.logs} yet; does it wait? fnet-t5 launch status")
        return
    options = ["--retry", "--follow=name"] if follow else []
    try:
        subprocess.run(["tail", f"--lines={lines}", *options, *paths], check=False)
    except KeyboardInterrupt:  # how following ends
        return
