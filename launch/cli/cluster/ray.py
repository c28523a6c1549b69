"""`fnet-t5 launch ray`: data preparation as a job of a Ray cluster that is already running."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.arguments import ManyValuesCommand
from launch.cli.cluster.launching import launch_job, record_folder
from launch.cli.cluster.options import DryRun, Keep, Set
from launch.cli.cluster.prepare_options import PrepareOptions, takes_prepare_options

if TYPE_CHECKING:
    from launch.cluster.spec.launch_spec import LaunchSpec

_PREPARE = (
    "Example: fnet-t5 launch ray prepare --ray-address http://head:8265 --workers 64 --input '/shared/raw/*.jsonl.zst' "
    "--output /shared/data/pile"
)

_EXAMPLE = "configs/cluster/ray.yaml"


def register(app: typer.Typer) -> None:
    """Add the commands to `fnet-t5 launch`."""
    group = typer.Typer(help="Jobs of a running Ray cluster, submitted with Ray Jobs.", no_args_is_help=True)
    group.callback()(lambda: None)  # a group even while it has one command
    group.command(cls=ManyValuesCommand, epilog=_PREPARE, no_args_is_help=True)(takes_prepare_options(prepare))
    app.add_typer(group, name="ray")


def prepare(
    options: PrepareOptions,
    ray_address: Annotated[
        str | None, typer.Option(help="The cluster's dashboard, http://HEAD:8265. Default: the cluster file's.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="YAML", help="Its size, environment and access. Default: as configs/cluster/ray.yaml.")
    ] = None,
    keep: Keep = None,
    set_: Set = None,
    dry_run: DryRun = False,
) -> None:
    """Prepare data on a running Ray cluster. Quote globs, and give absolute paths: they are paths on the cluster's nodes."""
    from launch.cluster.checks import preparation_inputs
    from launch.cluster.platform import PrepareJob
    from launch.cluster.spec.load import load_cluster

    spec = load_cluster(cluster or _EXAMPLE, set_ or [], "ray")
    spec = _with_address(spec, ray_address, cluster)
    resolved, recipe = options.resolve(spec)
    folder = resolved.output
    paths = {f"--output {folder}": folder, **preparation_inputs(resolved)}
    if relative := next((key for key, path in paths.items() if not path.is_absolute()), None):
        raise ValueError(f"{relative} is a relative path, and the job starts in a folder of Ray's: give an absolute path")
    job = PrepareJob(
        cluster=spec, folder=folder, record_folder=record_folder(keep, folder), recipe=recipe, workers=resolved.workers
    )
    launch_job(job, dry_run=dry_run)


def _with_address(spec: LaunchSpec, ray_address: str | None, cluster: str | None) -> LaunchSpec:
    """The cluster with the address of the option, or of the user's own cluster file."""
    from launch.cluster.ray_jobs import check_address
    from launch.cluster.spec.ray_section import RaySection

    section = spec.section(RaySection)
    address = ray_address or (section.address if cluster else None)  # the address in the example file does not exist
    if address is None:
        raise ValueError("no Ray cluster is named: give --ray-address http://HEAD:8265, or ray.address in a --cluster file")
    check_address(address)
    return spec.model_copy(update={"ray": section.model_copy(update={"address": address})})
