"""`fnet-t5 launch kubernetes`: training as a JobSet or TrainJob, data preparation as a RayJob."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from launch.cli.arguments import ManyValuesCommand, Overrides
from launch.cli.cluster.options import (
    Cluster,
    Config,
    DryRun,
    Keep,
    PodFolder,
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

if TYPE_CHECKING:
    from launch.cluster.spec import LaunchSpec

_TRAIN = "Example: fnet-t5 launch kubernetes train train/base --cluster cluster.yaml --output /runs/base data.path=/data/pile"
_PREPARE = "Example: fnet-t5 launch kubernetes prepare --cluster cluster.yaml --input '/data/raw/*' --output /data/pile"

_RUNTIME = "Example: fnet-t5 launch kubernetes runtime --cluster cluster.yaml | kubectl apply -f -"


def register(app: typer.Typer) -> None:
    """Add the commands to `fnet-t5 launch`."""
    group = typer.Typer(help="Objects of Kubernetes, by kubectl.", no_args_is_help=True)
    group.command(epilog=_TRAIN, no_args_is_help=True)(train)
    group.command(cls=ManyValuesCommand, epilog=_PREPARE, no_args_is_help=True)(prepare)
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
    """Train in one pod a node, which starts one rank a GPU. Paths are as the pods see them, on persistent volume claims."""
    from launch.cluster import kubernetes
    from launch.cluster.checks import check_mesh, check_on_volumes, load_cluster, training_inputs
    from launch.config import load_run_config
    from launch.recipes import find_recipe

    spec = load_cluster(cluster, set_ or [], "kubernetes")
    run_config = load_run_config(config, overrides or [])
    check_mesh(spec, cluster, run_config, config)
    run = output or _first_writable(spec, cluster) / Path(config).stem
    check_on_volumes(spec, cluster, {**training_inputs(run_config), "--output": run}, frozenset({"--output"}))
    recipe = find_recipe(config, "train").read_text(encoding="utf-8")
    text = kubernetes.train_manifest(spec, run, recipe, overrides or [])
    show(text, run, f"{spec.nodes} pods x {spec.ranks_per_node} ranks")
    if not dry_run:
        _submit(spec, text, "train", run, keep)


def prepare(
    cluster: Cluster,
    input: PrepareInput = None,
    val: PrepareVal = None,
    test: PrepareTest = None,
    output: PrepareOutput = None,
    tokenizer: PrepareTokenizer = None,
    workers: PrepareWorkers = None,
    seed: PrepareSeed = None,
    config: PrepareConfigFile = None,
    overrides: Overrides = None,
    keep: Keep = None,
    set_: Set = None,
    dry_run: DryRun = False,
) -> None:
    """Prepare data on a Ray cluster that KubeRay makes for the job. Quote globs: they are of the pods' paths."""
    from launch.cluster import kubernetes
    from launch.cluster.checks import check_no_gpus, check_on_volumes, load_cluster, preparation_inputs

    spec = load_cluster(cluster, set_ or [], "kubernetes")
    check_no_gpus(spec, cluster)
    given = (input, val, test, output, tokenizer, workers, seed)
    resolved, recipe = preparation(spec, config, overrides, *given)
    paths = {**preparation_inputs(resolved), "--output": resolved.output}
    check_on_volumes(spec, cluster, paths, frozenset({"--output"}))
    text = kubernetes.prepare_manifest(spec, resolved.output, recipe)
    show(text, resolved.output, f"{spec.nodes} Ray pods x {spec.cpus_per_node} CPUs")
    if not dry_run:
        _submit(spec, text, "prepare", resolved.output, keep)


def runtime(cluster: Cluster, set_: Set = None) -> None:
    """Print the runtime that TrainJobs need once in their namespace: how they start again. Nothing is submitted."""
    from launch.cluster import kubernetes
    from launch.cluster.checks import load_cluster

    typer.echo(kubernetes.runtime_manifest(load_cluster(cluster, set_ or [], "kubernetes")), nl=False)


def _first_writable(spec: LaunchSpec, cluster: str) -> Path:
    assert spec.kubernetes is not None
    volume = next((volume for volume in spec.kubernetes.volumes if not volume.read_only), None)
    if volume is None:
        raise ValueError(
            f"{cluster}: kubernetes.volumes has no persistent volume claim that can be written to: a run would be lost with "
            "its pods; add `{claim: NAME, path: /runs}`"
        )
    return Path(volume.path)


def _submit(spec: LaunchSpec, text: str, what: str, folder: Path, kept_for: Path | None) -> None:
    from launch.cluster import kubernetes
    from launch.cluster.record import LaunchRecord, keep, launch_folder, now, write_record

    assert spec.kubernetes is not None
    here = kept_for or Path("runs") / folder.name
    kept = launch_folder(here, what)
    keep(kept, {kubernetes.MANIFEST: text})
    kubernetes.submit(kept / kubernetes.MANIFEST, spec)
    record = LaunchRecord.model_validate(
        {
            "platform": "kubernetes",
            "what": what,
            "name": folder.name,
            "file": (kept / kubernetes.MANIFEST).absolute(),
            "folder": folder,
            "job_id": kubernetes.object_name(folder),
            "kind": kubernetes.kind_of(text),
            "namespace": spec.kubernetes.namespace,
            "context": spec.kubernetes.context,
            "submitted": now(),
        }
    )
    write_record(kept, record)
    typer.echo(f"Submitted as {record.kind} {record.job_id}. Follow it: fnet-t5 launch logs {here} --follow")
