"""The last step of every launch: render the job, show it, submit it, and say how to follow it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from launch.cluster.platform import ClusterJob


def launch_job(job: ClusterJob, *, dry_run: bool, note: str | None = None) -> None:
    """Show the scripts of a job on stdout, and their sizes and the note on stderr; then submit it, unless it is a dry run."""
    from launch.cluster.registry import find_platform
    from launch.cluster.submit import submit_job

    scripts = find_platform(job.cluster.platform).render(job)
    for script in scripts:
        typer.echo(f"For {job.folder}: {script.size}", err=True)
        typer.echo(script.text, nl=False)
        typer.echo(script.companion_text, err=True, nl=False)
    if note:
        typer.echo(f"Note: {note}", err=True)
    if not dry_run:
        submission = submit_job(job, scripts)
        typer.echo(f"Submitted as {submission.title}. Follow it: fnet-t5 launch logs {job.record_folder} --follow")


def record_folder(keep: Path | None, folder: Path) -> Path:
    """The folder here that stands for a run or dataset folder which only the cluster's nodes see."""
    return keep or Path("runs") / folder.name


@contextmanager
def errors_as_notes(dry_run: bool) -> Iterator[None]:
    """Checks that only a login node can make: a dry run, which works on any machine, shows an error as a note and continues."""
    try:
        yield
    except ValueError as error:
        if not dry_run:
            raise
        typer.echo(f"Note: without --dry-run this is refused: {error}", err=True)
