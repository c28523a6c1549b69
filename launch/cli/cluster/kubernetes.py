"""`fnet-t5 launch kubernetes`: training as a JobSet or TrainJob, data preparation as a RayJob."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from launch.cli.arguments import ManyValuesCommand, Overrides
from launch.cli.cluster.launching import launch_job, record_folder
from launch.cli.cluster.options import Cluster, Config, DryRun, Keep, PodFolder, Set
from launch.cli.cluster.prepare_options import PrepareOptions, takes_prepare_options

if TYPE_CHECKING:
    from launch.cluster.spec.launch_spec import LaunchSpec

_TRAIN = "Example: fnet-t5 launch kubernetes train train/base --cluster cluster.yaml --output /runs/base data.path=/data/pile"
_PREPARE = "Example: fnet-t5 launch kubernetes prepare --cluster cluster.yaml --input '/data/raw/*' --output /data/pile"
_RUNTIME = "Example: fnet-t5 launch kubernetes runtime --cluster cluster.yaml | kubectl apply -f -"


def register(app: typer.Typer) -> None:
    """Add the commands to `fnet-t5 launch`."""
    group = typer.Typer(help="Jobs of Kubernetes, submitted with kubectl.", no_args_is_help=True)
    group.command(epilog=_TRAIN, no_args_is_help=True)(train)
    group.command(cls=ManyValuesCommand, epilog=_PREPARE, no_args_is_help=True)(takes_prepare_options(prepare))
    group.command(epilog=_RUNTIME, no_args_is_help=True)(runtime)
    app.add_typer(group, name="kubernetes")


def train(
    config: Config,
    cluster: Cluster,
    overrides: Overrides = None,
    output: PodFolder = None,
    keep: Keep = None,
    set_: Set = None,
    dry_run: DryRun = False,
) -> None:
    """Train in one pod per node, with one rank per GPU. Give paths as the pods see them, on persistent volume claims."""
    from launch.cluster.checks import check_mesh, check_on_volumes, training_inputs
    from launch.cluster.platform import TrainJob
    from launch.cluster.spec.load import load_cluster
    from launch.config import load_run_config
    from launch.recipes import find_recipe

    spec = load_cluster(cluster, set_ or [], "kubernetes")
    run_config = load_run_config(config, overrides or [])
    check_mesh(spec, cluster, run_config, config)
    run = output or _first_writable(spec, cluster) / Path(config).stem
    check_on_volumes(spec, cluster, {**training_inputs(run_config), "--output": run}, frozenset({"--output"}))
    job = TrainJob(
        cluster=spec,
        folder=run,
        record_folder=record_folder(keep, run),
        recipe=find_recipe(config, "train").read_text(encoding="utf-8"),
        overrides=tuple(overrides or ()),
    )
    launch_job(job, dry_run=dry_run)


def prepare(cluster: Cluster, options: PrepareOptions, keep: Keep = None, set_: Set = None, dry_run: DryRun = False) -> None:
    """Prepare data on a Ray cluster that KubeRay creates for the job. Quote globs: they match paths in the pods."""
    from launch.cluster.checks import check_no_gpus, check_on_volumes, preparation_inputs
    from launch.cluster.platform import PrepareJob
    from launch.cluster.spec.load import load_cluster

    spec = load_cluster(cluster, set_ or [], "kubernetes")
    check_no_gpus(spec, cluster)
    resolved, recipe = options.resolve(spec)
    folder = resolved.output
    check_on_volumes(spec, cluster, {**preparation_inputs(resolved), "--output": folder}, frozenset({"--output"}))
    job = PrepareJob(
        cluster=spec, folder=folder, record_folder=record_folder(keep, folder), recipe=recipe, workers=resolved.workers
    )
    launch_job(job, dry_run=dry_run)


def runtime(cluster: Cluster, set_: Set = None) -> None:
    """Print the runtime that TrainJobs need once in their namespace; it sets how they restart. Nothing is submitted."""
    from launch.cluster import kubernetes
    from launch.cluster.spec.load import load_cluster

    typer.echo(kubernetes.runtime_manifest(load_cluster(cluster, set_ or [], "kubernetes")), nl=False)


def _first_writable(spec: LaunchSpec, cluster: str) -> Path:
    from launch.cluster.spec.kubernetes_section import KubernetesSection

    volume = next((volume for volume in spec.section(KubernetesSection).volumes if not volume.read_only), None)
    if volume is None:
        raise ValueError(
            f"{cluster}: kubernetes.volumes has no writable persistent volume claim: a run would be lost with its pods; add "
            "`{claim: NAME, path: /runs}`"
        )
    return Path(volume.path)
