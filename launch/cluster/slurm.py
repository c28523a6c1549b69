"""SLURM: scripts for sbatch, and what sbatch, squeue, scancel and sacct say about a job."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.cluster.rendering import render
from launch.cluster.spec import LaunchSpec

TRAIN, PREPARE, SCALING = "train.sbatch", "prepare.sbatch", "scaling.sbatch"
MAX_ARRAY_SIZE = 1001  # SLURM's default: indices below it


class SlurmError(ValueError):
    """SLURM is not here, or refused what it was asked."""


def train_script(spec: LaunchSpec, run: Path, recipe: Path, overrides: Sequence[str], folder: Path) -> str:
    """The script of a training run that starts in `folder`; `recipe` must be there when the job starts."""
    return render(
        "slurm_train.sh.j2",
        **_common(spec, run.name, folder, run / "logs" / "slurm-%j.out"),
        run=run,
        script=run / "launch" / TRAIN,
        train=[_command(spec), "train", recipe, "--output", run, *overrides],
    )


def prepare_script(spec: LaunchSpec, output: Path, kept: Path, recipe: Path, folder: Path) -> str:
    """The script of a preparation of `output` by a recipe; what it keeps, logs among them, lies in `kept`."""
    return render(
        "slurm_prepare.sh.j2",
        **_common(spec, output.name, folder, kept / "slurm-%j.out"),
        logs=kept,
        output=output,
        script=kept / PREPARE,
        prepare=[_command(spec), "prepare", "--config", recipe],
    )


def scaling_script(spec: LaunchSpec, ladder: Path, num_runs: int, at_once: int, plan: Path, script: Path, folder: Path) -> str:
    """The script of a ladder: an array of `num_runs` jobs, one a line of `plan`, `at_once` of them together, on one node each.

    Raises ValueError where the array would be larger than SLURM takes.
    """
    if num_runs > MAX_ARRAY_SIZE - 1:
        raise ValueError(
            f"{ladder} has {num_runs} runs, and SLURM takes arrays of {MAX_ARRAY_SIZE - 1} (MaxArraySize): plan several ladders"
        )
    return render(
        "slurm_scaling.sh.j2",
        **_common(spec, ladder.name, folder, ladder / "logs" / "slurm-%A_%a.out"),
        num_runs=num_runs,
        at_once=at_once,
        plan=plan,
        script=script,
        run_one=[_command(spec), "scaling", "run", ladder],
    )


def _common(spec: LaunchSpec, name: str, folder: Path, log: Path) -> dict[str, object]:
    return {
        "spec": spec,
        "name": name,
        "folder": folder,
        "log": log,
        "python": _python(spec),
        "container": _container(spec),
    }


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


def submit(script: Path, after: str | None = None) -> str:
    """The job's number; it starts once all of job `after` has ended well. Raises SlurmError with sbatch's own words."""
    waiting = [] if after is None else [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    # --parsable: NUMBER or NUMBER;CLUSTER
    return _ask("sbatch", "--parsable", *waiting, str(script)).strip().partition(";")[0]


def state(job_id: str) -> str:
    """One line a job or array task, of one job or several with commas between: number, state, time, nodes, reason.

    From squeue, or sacct once that has forgotten it.
    """
    try:
        queued = _ask("squeue", "--noheader", "--jobs", job_id, "--format", "%i  %T  %M of %l  %D nodes  %R")
    except SlurmError as error:
        if "Invalid job id" not in str(error):
            raise
        queued = ""
    if queued.strip():
        return queued.rstrip()
    try:
        past = _ask("sacct", "--noheader", "--jobs", job_id, "--allocations", "--format", "JobID%20,State%20,Elapsed,ExitCode")
    except SlurmError:  # no accounting on this cluster
        past = ""
    return past.rstrip() or f"{job_id}  no longer queued"


def is_active(job_id: str) -> bool:
    """Whether a job, or one of several with commas between, still waits or runs. Raises SlurmError where SLURM cannot say."""
    try:
        return bool(_ask("squeue", "--noheader", "--jobs", job_id).strip())
    except SlurmError as error:
        if "Invalid job id" in str(error):  # so old that SLURM has forgotten it
            return False
        raise


def cancel(job_id: str) -> None:
    """End a job and all tasks of an array; several have commas between."""
    _ask("scancel", *job_id.split(","))


def _ask(program: str, *arguments: str) -> str:
    if shutil.which(program) is None:
        raise SlurmError(
            f"{program} is not on the PATH: run this on a login node of the cluster, or see the script with --dry-run"
        )
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SlurmError(f"{program} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout
