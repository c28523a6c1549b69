"""`fnet-t5 launch ray`: data preparation as a job of a Ray cluster that is already there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.arguments import ManyValuesCommand, Overrides
from launch.cli.cluster.options import (
    DryRun,
    Keep,
    PrepareConfigFile,
    PrepareInput,
    PrepareOutput,
    PrepareSeed,
    PrepareTest,
    PrepareTokenizer,
    PrepareVal,
    PrepareWorkers,
    Set,
    preparation,
    show,
)

_PREPARE = (
    "Example: fnet-t5 launch ray prepare --ray-address http://head:8265 --workers 64 --input '/shared/raw/*.jsonl.zst' "
    "--output /shared/data/pile"
)

_EXAMPLE = "configs/cluster/ray.yaml"


def register(app: typer.Typer) -> None:
    """Add the commands to `fnet-t5 launch`."""
    group = typer.Typer(help="Jobs of a running Ray cluster, by Ray Jobs.", no_args_is_help=True)
    group.callback()(lambda: None)  # a group even while it has one command
    group.command(cls=ManyValuesCommand, epilog=_PREPARE, no_args_is_help=True)(prepare)
    app.add_typer(group, name="ray")


def prepare(
    input: PrepareInput = None,
    val: PrepareVal = None,
    test: PrepareTest = None,
    output: PrepareOutput = None,
    tokenizer: PrepareTokenizer = None,
    workers: PrepareWorkers = None,
    seed: PrepareSeed = None,
    config: PrepareConfigFile = None,
    overrides: Overrides = None,
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
    """Prepare data on a running Ray cluster. Quote globs, and give absolute paths: they are of the cluster's nodes."""
    from launch.cluster import ray_jobs
    from launch.cluster.checks import load_cluster, preparation_inputs
    from launch.cluster.record import LaunchRecord, launch_folder, now, write_record
    from launch.cluster.record import keep as keep_files

    spec = load_cluster(cluster or _EXAMPLE, set_ or [], "ray")
    assert spec.ray is not None
    address = ray_address or (spec.ray.address if cluster else None)  # the example's is nobody's
    if address is None:
        raise ValueError("no Ray cluster is named: give --ray-address http://HEAD:8265, or ray.address in a --cluster file")
    ray_jobs.check_address(address)
    given = (input, val, test, output, tokenizer, workers, seed)
    resolved, recipe = preparation(spec, config, overrides, *given)
    paths = {f"--output {resolved.output}": resolved.output, **preparation_inputs(resolved)}
    if relative := next((key for key, path in paths.items() if not path.is_absolute()), None):
        raise ValueError(f"{relative} is a relative path, and the job starts in a folder of Ray's: give absolute ones")
    text = ray_jobs.job_file(recipe, spec.ray.auth_mode, spec.environment)
    show(text, resolved.output, f"{resolved.workers} workers on {address}")
    if dry_run:
        return
    here = keep or Path("runs") / resolved.output.name
    kept = launch_folder(here, "prepare")
    keep_files(kept, {ray_jobs.JOB: text})
    record = LaunchRecord(
        platform="ray",
        what="prepare",
        name=resolved.output.name,
        file=(kept / ray_jobs.JOB).absolute(),
        folder=resolved.output,
        job_id=ray_jobs.submit(address, spec.ray.auth_mode, kept / ray_jobs.JOB),
        address=address,
        auth_mode=spec.ray.auth_mode,
        submitted=now(),
    )
    write_record(kept, record)
    typer.echo(f"Submitted as job {record.job_id}. Follow it: fnet-t5 launch logs {here} --follow")
