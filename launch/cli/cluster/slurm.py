"""`fnet-t5 launch slurm`: training, data preparation and ladders as jobs of SLURM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.arguments import ManyValuesCommand, Overrides
from launch.cli.cluster.launching import errors_as_notes, launch_job
from launch.cli.cluster.options import Cluster, Config, DryRun, RunFolder, Set
from launch.cli.cluster.prepare_options import PrepareOptions, takes_prepare_options

_TRAIN = "Example: fnet-t5 launch slurm train configs/train/base.yaml --cluster cluster.yaml --output runs/base train.steps=500"
_PREPARE = "Example: fnet-t5 launch slurm prepare --cluster cluster.yaml --input raw/*.jsonl.zst --output data/pile --dry-run"
_SCALING = "Example: fnet-t5 launch slurm scaling ladders/small --cluster cluster.yaml --max-concurrent 8"


def register(app: typer.Typer) -> None:
    """Add the commands to `fnet-t5 launch`."""
    group = typer.Typer(help="Jobs of SLURM, submitted with sbatch.", no_args_is_help=True)
    group.command(epilog=_TRAIN, no_args_is_help=True)(train)
    group.command(cls=ManyValuesCommand, epilog=_PREPARE, no_args_is_help=True)(takes_prepare_options(prepare))
    group.command(epilog=_SCALING, no_args_is_help=True)(scaling)
    app.add_typer(group, name="slurm")


def train(
    config: Config,
    cluster: Cluster,
    overrides: Overrides = None,
    output: RunFolder = None,
    set_: Set = None,
    dry_run: DryRun = False,
) -> None:
    """Train on the cluster's nodes: srun starts torchrun on each node, which starts one rank per GPU.

    When SLURM signals the end, the run saves and is requeued. Launched again, it resumes from its latest checkpoint.
    """
    from launch.cluster.checks import check_in_container, check_mesh, check_plain, training_inputs
    from launch.cluster.platform import TrainJob
    from launch.cluster.spec.load import load_cluster
    from launch.config import load_run_config
    from launch.recipes import find_recipe
    from launch.start import check_run

    spec = load_cluster(cluster, set_ or [], "slurm")
    run_config = load_run_config(config, overrides or [])
    check_mesh(spec, cluster, run_config, config)
    run = check_plain(output or Path("runs") / Path(config).stem, "--output")
    check_in_container(spec, cluster, {**training_inputs(run_config), "--output": run}, frozenset({"--output"}))
    with errors_as_notes(dry_run):  # a login node sees the files that the nodes will see
        check_run(run_config, run)
    recipe = find_recipe(config, "train").read_bytes().decode()
    job = TrainJob(cluster=spec, folder=run, record_folder=run, recipe=recipe, overrides=tuple(overrides or ()))
    launch_job(job, dry_run=dry_run)


def prepare(cluster: Cluster, options: PrepareOptions, set_: Set = None, dry_run: DryRun = False) -> None:
    """Prepare data on the cluster's nodes, with a Ray cluster that ends with the job. Run again, it resumes."""
    from launch.cluster.checks import check_in_container, check_plain, preparation_inputs
    from launch.cluster.platform import PrepareJob
    from launch.cluster.spec.load import load_cluster

    spec = load_cluster(cluster, set_ or [], "slurm")
    resolved, recipe = options.resolve(spec)
    folder = check_plain(resolved.output, "--output")
    job = PrepareJob(cluster=spec, folder=folder, record_folder=folder, recipe=recipe, workers=resolved.workers)
    written = {"--output": resolved.output, "the launch folder": job.launch_folder}
    check_in_container(spec, cluster, {**preparation_inputs(resolved), **written}, frozenset(written))
    launch_job(job, dry_run=dry_run)


def scaling(
    ladder: Annotated[Path, typer.Argument(metavar="LADDER", help="Folder made by `fnet-t5 scaling plan`.")],
    cluster: Cluster,
    max_concurrent: Annotated[
        int | None,
        typer.Option(
            "--max-concurrent", "--at-once", min=1, help="Runs at the same time, at most. Default: the cluster file's value."
        ),
    ] = None,
    set_: Set = None,
    dry_run: DryRun = False,
) -> None:
    """Run a ladder as arrays of jobs, one node per run. Run again, it skips the completed runs."""
    from launch.cluster.checks import check_in_container, check_ladder, check_plain
    from launch.cluster.platform import ScalingJob
    from launch.cluster.spec.load import load_cluster
    from launch.cluster.spec.slurm_section import SlurmSection
    from pipeline.scaling.ladder.ladder import read_ladder

    spec = load_cluster(cluster, set_ or [], "slurm")
    folder = check_plain(ladder, "LADDER")
    planned = read_ladder(folder)
    note = check_ladder(spec, cluster, planned)
    paths = {"LADDER": folder, "data.path of the ladder": planned.data_path}
    check_in_container(spec, cluster, paths, frozenset({"LADDER"}))
    phases = {
        "sweep": tuple(run.name for run in planned.runs if run.phase == "sweep"),
        "main": tuple(run.name for run in planned.runs if run.phase == "main"),
        "check": tuple(run.name for run in planned.runs if run.phase == "check"),
    }
    job = ScalingJob(
        cluster=spec,
        folder=folder,
        record_folder=folder,
        phases={phase: names for phase, names in phases.items() if names},
        max_concurrent=max_concurrent or spec.section(SlurmSection).max_concurrent,
    )
    launch_job(job, dry_run=dry_run, note=note)
