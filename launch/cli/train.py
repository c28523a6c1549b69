"""`fnet-t5 train`: one training run, as local processes started here or as a rank of an outer launcher's job."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.arguments import Overrides
from launch.local import PREEMPTED_EXIT, SIGNAL_EXIT

if TYPE_CHECKING:
    from pipeline.config import RunConfig

EXAMPLE = (
    "Example: fnet-t5 train configs/train/demo.yaml --nproc 4 --output runs/mine train.steps=500\n\n"
    "Under torchrun: torchrun --nproc-per-node 8 --no-python fnet-t5 train configs/train/demo.yaml --output runs/mine"
)
_PREEMPTING = (0, SIGNAL_EXIT + signal.SIGTERM, SIGNAL_EXIT + signal.SIGUSR1)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EXAMPLE, no_args_is_help=True)(train)


def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="A recipe: a path, or the name of a shipped one.")],
    overrides: Overrides = None,
    nproc: Annotated[
        int | None, typer.Option(help="Local processes. Default: mesh.tensor_parallel × mesh.pipeline_parallel.", min=1)
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<name of the recipe>.")] = None,
    branch: Annotated[Path | None, typer.Option(help="Begin at a checkpoint of this run, in a run folder of its own.")] = None,
    branch_step: Annotated[int | None, typer.Option(help="Which checkpoint of --branch. Default: its latest.")] = None,
) -> None:
    """Train a model. Run again with the same settings, it goes on from the latest checkpoint of its run folder.

    Under torchrun (RANK in the environment) this process joins that job; otherwise it starts --nproc local ones. SIGTERM or
    SIGUSR1 saves a checkpoint, writes `preempted` to STATUS and ends with exit code 75 (0 under torchrun): start it again.
    """
    from data_prep.dataset.manifest import load_manifest
    from launch.config import check_same_run, load_run_config, write_resolved
    from launch.preflight import check_data, check_folder, check_initial_weights, check_weights
    from pipeline.run_folder import find

    run_config = load_run_config(config, overrides or [])
    load_manifest(run_config.data.path)
    run_config = run_config.resolved()
    run_dir = output or Path("runs") / Path(config).stem
    rank = _outer_rank(nproc)
    if not rank:  # of a job's ranks the first one speaks for all
        check_folder(run_dir)
        check_data(run_config)
        check_initial_weights(run_config)
        if branch is not None:
            begun = find(branch, branch_step)
            check_weights(run_config, begun, f"--branch {begun} does not fit the recipe's model section")
    num_processes = int(os.environ["WORLD_SIZE"]) if rank is not None else nproc or _model_parallel(run_config)
    run_config.train.accumulation_steps(run_config.mesh.data_parallel(num_processes))
    started_before = check_same_run(run_config, run_dir)
    if rank is None and started_before and _is_finished(run_config, run_dir):
        typer.echo(f"{run_dir} is finished at step {run_config.train.steps:,}: raise train.steps to go on, or evaluate it")
        return
    if not rank:
        for line in describe(run_config, run_dir, num_processes, started_before):
            typer.echo(line)
    write_resolved(run_config, run_dir)
    if branch is not None and not rank:
        from pipeline.checkpoint.branch import branch as begin_at

        typer.echo(f"Branched from {branch} at step {begin_at(branch, run_dir, branch_step):,}")
    if rank is not None:
        from pipeline.training.trainer import train as train_here

        # torchrun would take any other code for a failure and start the job again: there STATUS decides
        if train_here(run_dir) == "preempted" and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise typer.Exit(PREEMPTED_EXIT)
        return
    from launch.local import run_local
    from pipeline.run_folder import latest, read_status, settle_status
    from pipeline.tracking.mlflow_tracker import settle_run

    code = run_local(run_dir, num_processes)
    settle_status(run_dir)
    if run_config.tracking.enabled and read_status(run_dir) == "failed":
        settle_run(run_dir)
    if code > SIGNAL_EXIT and (checkpoint := latest(run_dir)):
        typer.echo(f"Stopped; {checkpoint.name} is kept. The same command goes on from there.")
    if code in _PREEMPTING and read_status(run_dir) == "preempted":
        code = PREEMPTED_EXIT
    if code:
        raise typer.Exit(code)


def describe(config: RunConfig, run_dir: Path, num_processes: int, started_before: bool) -> list[str]:
    """What a start of this run will do, in two lines."""
    model, mesh, data = config.model, config.mesh, config.data
    processes = "process" if num_processes == 1 else "processes"
    begin = "Going on with" if started_before and (run_dir / "checkpoints" / "latest").exists() else "Training"
    return [
        f"{begin} {model.architecture} {model.size} on {data.path}: {data.objective.name}, {_lengths(config)}, to "
        f"step {config.train.steps:,} of {config.train.global_batch_size} rows each",
        f"{num_processes} {processes} (tensor {mesh.tensor_parallel} × pipeline {mesh.pipeline_parallel} × data "
        f"{mesh.data_parallel(num_processes)}); run folder {run_dir}, logs in {run_dir / 'logs'}",
    ]


def _lengths(config: RunConfig) -> str:
    lengths = config.data.lengths
    if config.model.is_encoder_only:
        return f"{lengths.encoder} tokens with {lengths.decoder} to predict"
    if config.model.is_decoder_only:
        return f"{lengths.encoder + lengths.decoder} tokens"
    return f"{lengths.encoder} tokens in and {lengths.decoder} out"


def _is_finished(config: RunConfig, run_dir: Path) -> bool:
    from pipeline.run_folder import STATUS, latest, step_name

    checkpoint, status = latest(run_dir), run_dir / STATUS
    return (
        checkpoint is not None
        and checkpoint.name == step_name(config.train.steps)
        and status.is_file()
        and status.read_text().strip() == "finished"
    )


def _outer_rank(nproc: int | None) -> int | None:
    """This process's rank in the job of an outer launcher, None where there is none."""
    if "RANK" not in os.environ:
        return None
    if "WORLD_SIZE" not in os.environ:
        raise ValueError("RANK is set but WORLD_SIZE is not: start with torchrun, or unset RANK to start local processes")
    if nproc is not None:
        raise ValueError(f"--nproc {nproc} inside a job (RANK is set): the outer launcher starts the processes, leave it out")
    return int(os.environ["RANK"])


def _model_parallel(config: RunConfig) -> int:
    return config.mesh.tensor_parallel * config.mesh.pipeline_parallel
