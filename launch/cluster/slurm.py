"""SLURM: scripts for sbatch, and what sbatch, squeue, scancel and sacct report about a job."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from launch.cluster.checks import check_plain
from launch.cluster.platform import ClusterJob, Platform, PrepareJob, RenderedScript, ScalingJob, Submission, TrainJob
from launch.cluster.record import LaunchRecord
from launch.cluster.rendering import render
from launch.cluster.spec.launch_spec import LaunchSpec
from launch.cluster.spec.slurm_section import SlurmSection

TRAIN, PREPARE, SCALING = "train.sbatch", "prepare.sbatch", "scaling.sbatch"
RECIPE = "recipe.yaml"
MAX_ARRAY_SIZE = 1001  # SLURM's default: indices below it

_POLL_SECONDS = 1.0


class SlurmError(ValueError):
    """SLURM is not installed here, or a command of SLURM failed."""


class SlurmPlatform(Platform):
    """Jobs of sbatch: a training run, a data preparation with its own Ray cluster, a ladder as arrays of jobs."""

    section = SlurmSection

    def render(self, job: ClusterJob) -> tuple[RenderedScript, ...]:
        if isinstance(job, TrainJob):
            return (_train_script(job),)
        if isinstance(job, PrepareJob):
            return (_prepare_script(job),)
        assert isinstance(job, ScalingJob)
        return _scaling_scripts(job)

    def check_earlier(self, earlier: LaunchRecord) -> None:
        if is_active(earlier.job_id):
            raise ValueError(
                f"{earlier.folder} has job {earlier.job_id}, which waits or runs: end it with `fnet-t5 launch cancel "
                f"{earlier.folder}` first"
            )

    def submit(self, job: ClusterJob, scripts: tuple[RenderedScript, ...]) -> Submission:
        """One job for each script; a job starts after all tasks of the one before it have succeeded."""
        log = _log_pattern(job)
        log.parent.mkdir(parents=True, exist_ok=True)
        ids: list[str] = []
        for script in scripts:
            ids.append(_sbatch(job.launch_folder / script.name, ids[-1] if ids else None))
        job_id = ",".join(ids)
        logs = str(log).replace("%A_%a", "*_*").replace("%j", job_id)
        return Submission(job_id=job_id, title=f"job {job_id}", logs=logs)

    def state(self, record: LaunchRecord) -> str:
        """A line for each job or array task: number, state, time, nodes, reason. From squeue, or from sacct for old jobs."""
        queued = _squeue(record.job_id, "--format", "%i  %T  %M of %l  %D nodes  %R")
        if queued.strip():
            return queued.rstrip()
        columns = "JobID%20,State%20,Elapsed,ExitCode"
        try:
            past = _ask("sacct", "--noheader", "--jobs", record.job_id, "--allocations", "--format", columns)
        except SlurmError:  # no accounting on this cluster
            past = ""
        return past.rstrip() or f"{record.job_id}  no longer queued"

    def cancel(self, record: LaunchRecord) -> None:
        _ask("scancel", *record.job_id.split(","))

    def logs(self, record: LaunchRecord, *, lines: int, follow: bool) -> int:
        paths = _log_files(record)
        while follow and not paths:
            time.sleep(_POLL_SECONDS)
            paths = _log_files(record)
        if not paths:
            print(f"Job {record.job_id} has not written to {record.logs} yet; it may be waiting: fnet-t5 launch status")
            return 0
        options = ["--retry", "--follow=name"] if follow else []
        try:
            subprocess.run(["tail", f"--lines={lines}", *options, *paths], check=False)
        except KeyboardInterrupt:  # the way to stop following
            return 0
        return 0


PLATFORM = SlurmPlatform()


def _train_script(job: TrainJob) -> RenderedScript:
    spec, recipe = job.cluster, job.launch_folder / RECIPE
    text = render(
        "slurm_train.sh.j2",
        **_common_values(job),
        run=job.folder,
        script=job.launch_folder / TRAIN,
        train=[_command(spec), "train", recipe, "--output", job.folder, *job.overrides],
    )
    size = f"{spec.nodes} nodes x {spec.ranks_per_node} ranks"
    return RenderedScript(name=TRAIN, text=text, size=size, companions={RECIPE: job.recipe})


def _prepare_script(job: PrepareJob) -> RenderedScript:
    spec, recipe = job.cluster, job.launch_folder / RECIPE
    text = render(
        "slurm_prepare.sh.j2",
        **_common_values(job),
        logs=job.launch_folder,
        output=job.folder,
        script=job.launch_folder / PREPARE,
        prepare=[_command(spec), "prepare", "--config", recipe],
    )
    return RenderedScript(
        name=PREPARE,
        text=text,
        size=f"{spec.nodes} Ray nodes x {spec.cpus_per_node} CPUs",
        companions={RECIPE: job.recipe},
        companion_text=f"{recipe}:\n{job.recipe}",
    )


def _scaling_scripts(job: ScalingJob) -> tuple[RenderedScript, ...]:
    """One array of jobs for each phase, with one run per line of its plan, each run on one node."""
    scripts: list[RenderedScript] = []
    for phase, names in job.phases.items():
        if len(names) > MAX_ARRAY_SIZE - 1:
            raise ValueError(
                f"{job.folder} has {len(names)} runs, and SLURM's arrays hold {MAX_ARRAY_SIZE - 1} (MaxArraySize): plan "
                "several ladders"
            )
        script, plan = (SCALING, "plan.txt") if phase == "main" else (f"{phase}-{SCALING}", f"{phase}.txt")
        text = render(
            "slurm_scaling.sh.j2",
            **_common_values(job),
            num_runs=len(names),
            max_concurrent=job.max_concurrent,
            plan=job.launch_folder / plan,
            script=job.launch_folder / script,
            run_one=[_command(job.cluster), "scaling", "run", job.folder],
        )
        size = f"{len(names)} {phase} runs, a node each, {job.max_concurrent} at a time"
        scripts.append(
            RenderedScript(
                name=script,
                text=text,
                size=size + (f", after all {'sweeps' if phase == 'main' else 'main runs'}" if scripts else ""),
                companions={plan: "".join(f"{name}\n" for name in names)},
                companion_text=f"{job.launch_folder / plan}: {' '.join(names)}\n",
            )
        )
    return tuple(scripts)


def _common_values(job: ClusterJob) -> dict[str, Any]:
    return {
        "spec": job.cluster,
        "name": job.folder.name,
        "folder": check_plain(job.working_folder, "the current folder"),
        "log": _log_pattern(job),
        "python": _python(job.cluster),
        "container": _container(job.cluster),
    }


def _log_pattern(job: ClusterJob) -> Path:
    """The log in sbatch's notation: %j is the job's number, %A_%a those of an array and its task."""
    if isinstance(job, PrepareJob):
        return job.launch_folder / "slurm-%j.out"
    return job.folder / "logs" / ("slurm-%A_%a.out" if isinstance(job, ScalingJob) else "slurm-%j.out")


def _python(spec: LaunchSpec) -> str:
    return spec.python or ("python3" if spec.image else sys.executable)


def _command(spec: LaunchSpec) -> str:
    """`fnet-t5` of the same environment."""
    python = Path(_python(spec))
    return str(python.with_name("fnet-t5")) if python.is_absolute() else "fnet-t5"


def _container(spec: LaunchSpec) -> list[str]:
    if spec.image is None:
        return []
    options = [f"--container-image={spec.image}"]
    if spec.mounts:
        mounts = ",".join(f"{mount.source}:{mount.target}{':ro' if mount.read_only else ''}" for mount in spec.mounts)
        options.append(f"--container-mounts={mounts}")
    return options


def is_active(job_id: str) -> bool:
    """Whether a job, or one of several separated by commas, waits or runs. Raises SlurmError if squeue fails."""
    return bool(_squeue(job_id).strip())


def _sbatch(script: Path, after: str | None) -> str:
    """The number of the submitted job, which starts once all tasks of job `after` have succeeded."""
    waiting = [] if after is None else [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    # --parsable: NUMBER or NUMBER;CLUSTER
    return _ask("sbatch", "--parsable", *waiting, str(script)).strip().partition(";")[0]


def _squeue(job_id: str, *options: str) -> str:
    """squeue's lines about jobs that wait or run; empty for jobs that it no longer knows."""
    try:
        return _ask("squeue", "--noheader", "--jobs", job_id, *options)
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return ""
        raise


def _log_files(record: LaunchRecord) -> list[str]:
    return sorted(glob.glob(record.logs), key=os.path.getmtime)


def _ask(program: str, *arguments: str) -> str:
    if shutil.which(program) is None:
        raise SlurmError(
            f"{program} is not on the PATH: run this on a login node of the cluster, or see the script with --dry-run"
        )
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SlurmError(f"{program} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout
