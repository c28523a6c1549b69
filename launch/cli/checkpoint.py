"""`fnet-t5 checkpoint`: list and verify a run's checkpoints, and rewrite one for another mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.arguments import CheckpointStep, Run


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    group = typer.Typer(
        help="List and verify checkpoints; rewrite one for another mesh.",
        no_args_is_help=True,
        epilog="Example: fnet-t5 checkpoint list runs/mine",
    )
    group.command("list", epilog="Example: fnet-t5 checkpoint list runs/mine", no_args_is_help=True)(list_checkpoints)
    group.command(epilog="Example: fnet-t5 checkpoint verify runs/mine", no_args_is_help=True)(verify)
    group.command(
        epilog="Example: fnet-t5 checkpoint reshard runs/mine --output runs/moved --tensor 4 --pipeline 1 --data 2",
        no_args_is_help=True,
    )(reshard)
    app.add_typer(group, name="checkpoint")


def list_checkpoints(run: Run) -> None:
    """List the checkpoints of a run: step, mesh that wrote it, size, and whether all its files are there.

    `checkpoint verify` also reads the files.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pipeline.run_folder import checkpoints_of, describe, latest

    paths = sorted(checkpoints_of(run).glob("step_*[0-9]"))
    if not paths:
        raise ValueError(f"{run} has no checkpoint: train it first, or give another run folder")
    newest = latest(run)
    table = Table(box=box.SIMPLE_HEAD, title=str(run), title_justify="left")
    for column in ("step", "tensor × pipeline × data", "MB", "target tokens", ""):
        table.add_column(column, justify="right")
    for path in paths:
        found = describe(path)
        state = "latest" if path == newest else "" if found.problem is None else f"will not be loaded: {found.problem}"
        table.add_row(f"{found.step:,}", found.mesh, f"{found.num_bytes / 1e6:,.1f}", f"{found.target_tokens:,}", state)
    Console().print(table)


def verify(
    run: Run,
    step: Annotated[int | None, typer.Option(help="Step of the checkpoint to verify. Default: all checkpoints.")] = None,
) -> None:
    """Read every file of the checkpoints and compare it with its checksum; exit code 1 if one differs."""
    from pipeline.checkpoint.checkpoint import verify as verify_one
    from pipeline.run_folder import checkpoints_of, find

    paths = [find(run, step)] if step is not None else sorted(checkpoints_of(run).glob("step_*[0-9]"))
    if not paths:
        raise ValueError(f"{run} has no checkpoint: train it first, or give another run folder")
    is_damaged = False
    for path in paths:
        try:
            verify_one(path)
            typer.echo(f"{path.name}: all checksums match")
        except ValueError as error:
            is_damaged = True
            typer.echo(f"error: {error}", err=True)
    if is_damaged:
        raise typer.Exit(1)


def reshard(
    run: Run,
    output: Annotated[Path, typer.Option(help="Run folder to write.")],
    tensor: Annotated[int, typer.Option(min=1, help="Tensor-parallel degree.")] = 1,
    pipeline: Annotated[int, typer.Option(min=1, help="Pipeline-parallel degree.")] = 1,
    data: Annotated[int, typer.Option(min=1, help="Data-parallel degree.")] = 1,
    step: CheckpointStep = None,
) -> None:
    """Rewrite weights and optimizer state for another mesh, without changing a bit.

    Training resumes on any mesh without this; a checkpoint of the same mesh only loads faster.
    """
    from pipeline.checkpoint.reshard import reshard as rewrite
    from pipeline.config import MeshConfig

    path = rewrite(run, output, MeshConfig(tensor_parallel=tensor, pipeline_parallel=pipeline), data, step)
    typer.echo(f"{path}: tensor {tensor} × pipeline {pipeline} × data {data}; to resume it, train with --output {output}")
