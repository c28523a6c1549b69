"""`fnet-t5 launch slurm`: training, data preparation and ladders as jobs of SLURM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from launch.cli.arguments import ManyValuesCommand, Overrides
from launch.cli.cluster.options import (
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
    refusing,
    show,
)

_TRAIN = "Example: fnet-t5 launch slurm train configs/train/base.yaml --cluster cluster.yaml --output runs/base train.steps=500"
_PREPARE = "Example: fnet-t5 launch slurm prepare --cluster cluster.yaml --input raw/*.jsonl.zst --output data/pile --dry-run"
_SCALING = "Example: fnet-t5 launch slurm scaling ladders/small --cluster cluster.yaml --at-once 8"


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
    from launch.cluster import slurm
    from launch.cluster.checks import check_in_container, check_mesh, check_plain, load_cluster, training_inputs
    from launch.cluster.record import launch_folder
    from launch.config import load_run_config
    from launch.recipes import find_recipe
    from launch.start import check_run

    spec = load_cluster(cluster, set_ or [], "slurm")
    run_config = load_run_config(config, overrides or [])
    check_mesh(spec, cluster, run_config, config)
    run = check_plain(output or Path("runs") / Path(config).stem, "--output")
    check_in_container(spec, cluster, {**training_inputs(run_config), "--output": run}, frozenset({"--output"}))
    with refusing(dry_run):  # a login node sees what the nodes will see
        check_run(run_config, run)
    kept = launch_folder(run, "train")
    recipe = kept / "recipe.yaml"
    text = slurm.train_script(spec, run, recipe, overrides or [], check_plain(Path.cwd(), "the current folder"))
    show(text, run, f"{spec.nodes} nodes x {spec.ranks_per_node} ranks")
    if not dry_run:
        (run / "logs").mkdir(parents=True, exist_ok=True)
        files: dict[str, str | bytes] = {slurm.TRAIN: text, recipe.name: find_recipe(config, "train").read_bytes()}
        _submit(kept, [slurm.TRAIN], files, "train", run, str(run / "logs" / "slurm-{job_id}.out"))


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
    from launch.cluster import slurm
    from launch.cluster.checks import check_in_container, check_plain, load_cluster, preparation_inputs
    from launch.cluster.record import launch_folder

    spec = load_cluster(cluster, set_ or [], "slurm")
    given = (input, val, test, output, tokenizer, workers, seed)
    resolved, recipe_text = preparation(spec, config, overrides, *given)
    folder = check_plain(resolved.output, "--output")
    kept = launch_folder(folder, "prepare")
    paths = {**preparation_inputs(resolved), "--output": resolved.output, "the launch's folder": kept}
    check_in_container(spec, cluster, paths, frozenset({"--output", "the launch's folder"}))
    recipe = kept / "recipe.yaml"
    text = slurm.prepare_script(spec, folder, kept, recipe, check_plain(Path.cwd(), "the current folder"))
    show(text, folder, f"{spec.nodes} Ray nodes x {spec.cpus_per_node} CPUs", f"{recipe}:\n{recipe_text}")
    if not dry_run:
        files = {slurm.PREPARE: text, recipe.name: recipe_text}
        _submit(kept, [slurm.PREPARE], files, "prepare", folder, str(kept / "slurm-{job_id}.out"))


def scaling(
    ladder: Annotated[Path, typer.Argument(metavar="LADDER", help="Folder made by `fnet-t5 scaling plan`.")],
    cluster: Cluster,
    at_once: Annotated[int | None, typer.Option(min=1, help="Most runs at a time. Default: the cluster file's.")] = None,
    set_: Set = None,
    dry_run: DryRun = False,
) -> None:
    """Do the runs of a ladder as an array of jobs, each on one node. Again, it does those that are not finished."""
    from launch.cluster import slurm
    from launch.cluster.checks import check_in_container, check_ladder, check_plain, load_cluster
    from launch.cluster.record import launch_folder
    from pipeline.scaling.ladder.ladder import read_ladder

    spec = load_cluster(cluster, set_ or [], "slurm")
    assert spec.slurm is not None
    ladder = check_plain(ladder, "LADDER")
    planned = read_ladder(ladder)
    note = check_ladder(spec, cluster, planned)
    paths = {"LADDER": ladder, "data.path of the ladder": planned.recipe.data.path}
    check_in_container(spec, cluster, paths, frozenset({"LADDER"}))
    kept = launch_folder(ladder, "scaling")
    folder = check_plain(Path.cwd(), "the current folder")
    together = at_once or spec.slurm.at_once
    files: dict[str, str | bytes] = {}
    scripts: list[str] = []
    for phase in ("sweep", "main"):
        names = [run.name for run in planned.runs if run.phase == phase]
        script, plan = (slurm.SCALING, "plan.txt") if phase == "main" else (f"{phase}-{slurm.SCALING}", f"{phase}.txt")
        text = slurm.scaling_script(spec, ladder, len(names), together, kept / plan, kept / script, folder)
        size = f"{len(names)} {phase} runs, a node each, {together} at a time" + (", after all sweeps" if scripts else "")
        show(text, ladder, size, f"{kept / plan}: {' '.join(names)}\n")
        files |= {script: text, plan: "".join(f"{name}\n" for name in names)}
        scripts.append(script)
    if note:
        typer.echo(f"Note: {note}", err=True)
    if not dry_run:
        (ladder / "logs").mkdir(exist_ok=True)
        _submit(kept, scripts, files, "scaling", ladder, str(ladder / "logs" / "slurm-*_*.out"))


def _submit(kept: Path, scripts: Sequence[str], files: Mapping[str, str | bytes], what: str, folder: Path, logs: str) -> None:
    """Submit scripts, each to start after the one before it."""
    from launch.cluster import slurm
    from launch.cluster.record import RECORD, LaunchRecord, keep, now, read_record, write_record

    if (kept / RECORD).is_file() and slurm.is_active(earlier := read_record(folder).job_id):
        raise ValueError(f"{folder} has job {earlier}, which waits or runs: end it by `fnet-t5 launch cancel {folder}` first")
    keep(kept, files)
    jobs: list[str] = []
    for script in scripts:
        jobs.append(slurm.submit(kept / script, jobs[-1] if jobs else None))
    job_id = ",".join(jobs)
    record = LaunchRecord.model_validate(
        {
            "platform": "slurm",
            "what": what,
            "name": folder.name,
            "file": kept / scripts[-1],
            "folder": folder,
            "job_id": job_id,
            "logs": logs.format(job_id=job_id),
            "submitted": now(),
        }
    )
    write_record(kept, record)
    typer.echo(f"Submitted as job {job_id}. Follow it: fnet-t5 launch logs {folder} --follow")
