"""`fnet-t5 train`: one training run, as local processes started here or as a rank of an outer launcher's job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.arguments import Overrides, Recipe

if TYPE_CHECKING:
    from launch.start import PreparedRun, Processes
    from pipeline.config import RunConfig
    from pipeline.training.hooks.preemption import StopSignal

EXAMPLE = (
    "Example: fnet-t5 train configs/train/demo.yaml --nproc 4 --output runs/mine train.steps=500\n\n"
    "Under torchrun: torchrun --nproc-per-node 8 --no-python fnet-t5 train configs/train/demo.yaml --output runs/mine"
)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EXAMPLE, no_args_is_help=True)(train)


def train(
    config: Recipe,
    overrides: Overrides = None,
    nproc: Annotated[
        int | None, typer.Option(help="Local processes. Default: mesh.tensor_parallel × mesh.pipeline_parallel.", min=1)
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<name of the recipe>.")] = None,
    branch: Annotated[
        Path | None, typer.Option(help="Start a new run from a checkpoint of this run: on its data, after its steps.")
    ] = None,
    branch_step: Annotated[int | None, typer.Option(help="Step of the checkpoint of --branch. Default: its latest.")] = None,
) -> None:
    """Train a model. Rerun the same command to resume from the latest checkpoint of its run folder.

    Under torchrun (RANK in the environment) this process joins that job; otherwise it starts --nproc local ones. SIGTERM,
    SIGUSR1, SIGHUP or Ctrl-C ends the run after the current step: it saves a checkpoint and writes `preempted` to STATUS.
    The exit code is 75 after SIGTERM and SIGUSR1 (0 under torchrun), 129 after SIGHUP, 130 after Ctrl-C.
    """
    from launch.local import preempted_exit
    from pipeline.training.early_stop import stops_at_signal

    folder = output or Path("runs") / Path(config).stem
    with stops_at_signal(folder, preempted_exit()) as stop:
        code = _train(config, overrides or [], nproc, folder, branch, branch_step, stop)
    if code:
        raise typer.Exit(code)


def _train(
    recipe: str,
    overrides: list[str],
    nproc: int | None,
    folder: Path,
    branch: Path | None,
    branch_step: int | None,
    stop: StopSignal,
) -> int:
    """Check, write and start the run; returns the exit code."""
    from launch.config import load_run_config
    from launch.start import BranchPoint, Processes, begin_branch, check_run, send_pending, start_run, write_config

    run_config = load_run_config(recipe, overrides)
    processes = Processes.from_environment(run_config, nproc)
    start_point = None if branch is None else BranchPoint(branch, branch_step)
    run = check_run(run_config, folder, processes=processes, branch=start_point)
    if processes.rank is None and run.is_finished:
        typer.echo(
            f"{run.folder} is finished at step {run.config.train.steps:,}: raise "
            f"train.{run.config.train.length_key} to train on, or evaluate it"
        )
        for line in send_pending(run):
            typer.echo(line)
        return 0
    if processes.is_first:
        for line in (*run.notes, *describe(run, processes)):
            typer.echo(line)
    write_config(run)
    if branch is not None and processes.is_first:
        typer.echo(f"Branched from {branch} at step {begin_branch(run):,}")
    code = start_run(run, stop=stop)
    if processes.rank is None:
        _say_how_to_resume(run, code)
    return code


def describe(run: PreparedRun, processes: Processes) -> list[str]:
    """What a start of this run will do, in a few lines."""
    from pipeline.run_folder import step_of

    config, folder = run.config, run.folder
    model, mesh, data = config.model, config.mesh, config.data
    noun = "process" if processes.number == 1 else "processes"
    verb, begin = "Training", ""
    if run.checkpoint is not None:
        verb, begin = "Resuming", f"from step {step_of(run.checkpoint):,} "
    start = config.train.initial_weights
    is_new = run.checkpoint is None and run.branch is None
    what = "weights and moments" if config.train.initial_moments else "weights"
    begins = [f"Begins with the {what} of {start}; data, steps, schedule and seed begin anew"] if start and is_new else []
    return [
        f"{verb} {model.architecture} {model.size} on {data.path}: {data.objective.name}, {_lengths(config)}, {begin}to "
        f"step {config.train.steps:,} of {config.train.global_batch_size} rows each",
        run.length,
        *begins,
        f"{processes.number} {noun} (tensor {mesh.tensor_parallel} × pipeline {mesh.pipeline_parallel} × data "
        f"{mesh.data_parallel(processes.number)}); run folder {folder}, logs in {folder / 'logs'}",
    ]


def _lengths(config: RunConfig) -> str:
    lengths = config.data.lengths
    if config.model.is_encoder_only:
        return f"{lengths.encoder} tokens with {lengths.decoder} to predict"
    if config.model.is_decoder_only:
        return f"{lengths.encoder + lengths.decoder} tokens"
    return f"{lengths.encoder} tokens in and {lengths.decoder} out"


def _say_how_to_resume(run: PreparedRun, code: int) -> None:
    """After a stop by a signal."""
    from launch.local import PREEMPTED_EXIT, SIGNAL_EXIT
    from pipeline.run_folder import latest

    was_stopped = code == PREEMPTED_EXIT or code > SIGNAL_EXIT
    if not was_stopped:
        return
    if checkpoint := latest(run.folder):
        typer.echo(f"Stopped; {checkpoint.name} is saved. Rerun the same command to resume.")
    else:
        typer.echo("Stopped; no checkpoint was saved yet. Rerun the same command to start.")
