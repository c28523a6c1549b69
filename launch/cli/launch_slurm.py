"""`fnet-t5 launch slurm`: training, data preparation and ladders as jobs of SLURM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from launch.cli.arguments import ManyValuesCommand, Overrides
from launch.cli.launch_options import (
    Cluster,
    Config,
    DryRun,
    PrepareConfigFile,
    PrepareInput,
    PrepareOutput,
    PrepareSeed,
    PrepareTest,
    PrepareTokenizer,
    PrepareVal,
    PrepareWorkers,
    RunFolder,
    Set,
    preparation,
    show,
)

_TRAIN = "Example: fnet-t5 launch slurm train configs/train/base.yaml --cluster cluster.yaml --output runs/base train.steps=500"
_PREPARE = "Example: fnet-t5 launch slurm prepare --cluster cluster.yaml --input raw/*.jsonl.zst --output data/pile --dry-run"
_SCALING = "Example: fnet-t5 launch slurm scaling ladders/small --cluster cluster.yaml --at-once 8"
LADDER = "ladder.json"


def register(app: typer.Typer) -> None:
    """Add the commands to `fnet-t5 launch`."""
    group = typer.Typer(help="Jobs of SLURM, by sbatch.", no_args_is_help=True)
    group.command(epilog=_TRAIN, no_args_is_help=True)(train)
    group.command(cls=ManyValuesCommand, epilog=_PREPARE, no_args_is_help=True)(prepare)
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
    """Train on the cluster's nodes: srun starts torchrun on each, which starts one rank a GPU.

    Told by SLURM to end, the run saves itself and is requeued. Launched again, it goes on from its latest checkpoint.
    """
    from data_prep.manifest import load_manifest
    from launch import slurm
    from launch.cluster_checks import check_mesh, check_plain, load_cluster
    from launch.config import check_same_run, load_run_config
    from launch.launch_record import launch_folder
    from launch.preflight import check_data, check_folder, check_initial_weights
    from launch.recipes import find_recipe

    spec = load_cluster(cluster, set_ or [], "slurm")
    run_config = load_run_config(config, overrides or [])
    check_mesh(spec, cluster, run_config, config)
    run = check_plain(output or Path("runs") / Path(config).stem, "--output")
    if not dry_run:  # a login node sees what the nodes will see
        load_manifest(run_config.data.path)
        run_config = run_config.resolved()
        check_folder(run)
        check_data(run_config)
        check_initial_weights(run_config)
        check_same_run(run_config, run)
    kept = launch_folder(run, "train")
    recipe = kept / "recipe.yaml"
    text = slurm.train_script(spec, run, recipe, overrides or [], check_plain(Path.cwd(), "the current folder"))
    show(text, run, f"{spec.nodes} nodes x {spec.ranks_per_node} ranks")
    if not dry_run:
        (run / "logs").mkdir(parents=True, exist_ok=True)
        files: dict[str, str | bytes] = {slurm.TRAIN: text, recipe.name: find_recipe(config, "train").read_bytes()}
        _submit(kept, slurm.TRAIN, files, "train", run, str(run / "logs" / "slurm-{job_id}.out"))


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
    set_: Set = None,
    dry_run: DryRun = False,
) -> None:
    """Prepare data on the cluster's nodes: a Ray cluster inside the job, gone with it. Again, it goes on with what is done."""
    from launch import slurm
    from launch.cluster_checks import check_plain, load_cluster
    from launch.launch_record import launch_folder

    spec = load_cluster(cluster, set_ or [], "slurm")
    given = (input, val, test, output, tokenizer, workers, seed)
    resolved, recipe_text = preparation(spec, config, overrides, *given)
    folder = check_plain(resolved.output, "--output")
    kept = launch_folder(folder, "prepare")
    recipe = kept / "recipe.yaml"
    text = slurm.prepare_script(spec, folder, kept, recipe, check_plain(Path.cwd(), "the current folder"))
    show(text, folder, f"{spec.nodes} Ray nodes x {spec.cpus_per_node} CPUs")
    if not dry_run:
        files = {slurm.PREPARE: text, recipe.name: recipe_text}
        _submit(kept, slurm.PREPARE, files, "prepare", folder, str(kept / "slurm-{job_id}.out"))


def scaling(
    ladder: Annotated[Path, typer.Argument(metavar="LADDER", help="Folder made by `fnet-t5 scaling plan`.")],
    cluster: Cluster,
    at_once: Annotated[int | None, typer.Option(min=1, help="Most runs at a time. Default: the cluster file's.")] = None,
    set_: Set = None,
    dry_run: DryRun = False,
) -> None:
    """Do the runs of a ladder as an array of jobs, each on one node. Again, it does those that are not finished."""
    from launch import slurm
    from launch.cluster_checks import check_plain, load_cluster
    from launch.launch_record import launch_folder

    spec = load_cluster(cluster, set_ or [], "slurm")
    assert spec.slurm is not None
    ladder = check_plain(ladder, "LADDER")
    names = run_names(ladder)
    kept = launch_folder(ladder, "scaling")
    plan = kept / "plan.txt"
    folder = check_plain(Path.cwd(), "the current folder")
    text = slurm.scaling_script(spec, ladder, len(names), at_once or spec.slurm.at_once, plan, folder)
    show(text, ladder, f"{len(names)} runs, {at_once or spec.slurm.at_once} at a time")
    if not dry_run:
        (ladder / "logs").mkdir(exist_ok=True)
        files = {slurm.SCALING: text, plan.name: "".join(f"{name}\n" for name in names)}
        _submit(kept, slurm.SCALING, files, "scaling", ladder, str(ladder / "logs" / "slurm-{job_id}_*.out"))


def run_names(ladder: Path) -> list[str]:
    """The runs of a ladder folder by name, in its order. Raises ValueError where it is none."""
    path = ladder / LADDER
    if not path.is_file():
        raise ValueError(f"{ladder} is no ladder: it has no {LADDER}; make one by `fnet-t5 scaling plan`")
    try:
        names = [str(run["name"]) for run in json.loads(path.read_bytes())["runs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} lists no runs ({type(error).__name__}: {error}): plan the ladder again") from error
    if not names:
        raise ValueError(f"{path} lists no runs: plan the ladder again")
    return names


def _submit(kept: Path, script: str, files: Mapping[str, str | bytes], what: str, folder: Path, logs: str) -> None:
    from launch import slurm
    from launch.launch_record import RECORD, LaunchRecord, keep, now, read_record, write_record

    if (kept / RECORD).is_file() and slurm.is_active(earlier := read_record(folder).job_id):
        raise ValueError(f"{folder} has job {earlier}, which waits or runs: end it by `fnet-t5 launch cancel {folder}` first")
    keep(kept, files)
    job_id = slurm.submit(kept / script)
    record = LaunchRecord.model_validate(
        {
            "platform": "slurm",
            "what": what,
            "name": folder.name,
            "file": kept / script,
            "folder": folder,
            "job_id": job_id,
            "logs": logs.format(job_id=job_id),
            "submitted": now(),
        }
    )
    write_record(kept, record)
    typer.echo(f"Submitted as job {job_id}. Follow it: fnet-t5 launch logs {folder} --follow")
