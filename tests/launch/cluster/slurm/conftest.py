"""A real SLURM of two nodes on this machine, its cluster files and recipes, and helpers that wait for jobs."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.helpers.recipes import nano_recipe

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("FNET_T5_SLURM", "/tmp/fnet-t5-slurm"))
PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged")
# A job's processes must not compete with those of the test: each has one thread on the CPU, and no tracking.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    """The cluster, started if it does not run yet; skips if SLURM is not installed or the user is not root.

    Files of tests take turns: the jobs of two would wait for each other's nodes.
    """
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        pytest.skip(f"no SLURM here ({', '.join(missing)} missing): apt-get install slurmctld slurmd slurm-client munge")
    if os.geteuid() != 0:
        pytest.skip("only root can start a SLURM of two nodes on one machine")
    with pytest.MonkeyPatch.context() as patch, open(f"{FOLDER}.tests", "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        patch.setenv("PATH", path)
        patch.setenv("SLURM_CONF", str(FOLDER / "slurm.conf"))
        patch.delenv("RANK", raising=False)
        was_up = b" UP" in subprocess.run(["scontrol", "ping"], capture_output=True, check=False).stdout
        subprocess.run([str(HERE / "start_cluster.sh"), str(FOLDER)], check=True, timeout=120)
        yield
        if not was_up:
            subprocess.run([str(HERE / "stop_cluster.sh"), str(FOLDER)], check=True, timeout=60)


@pytest.fixture
def cluster(tmp_path: Path) -> Callable[..., str]:
    """Write a cluster file of two nodes, one process each."""

    def write(**changes: object) -> str:
        path = tmp_path / "cluster.yaml"
        values = {
            "nodes": 2,
            "cpus_per_node": 2,
            "preemption_grace_seconds": 60,
            "environment": ENVIRONMENT,
            "slurm": {"exclusive": False},
        }
        path.write_text(yaml.safe_dump({**values, **changes}))
        return str(path)

    return write


@pytest.fixture
def recipe(dataset: Path, tmp_path: Path) -> Path:
    """A nano model on two pipeline stages."""
    path = tmp_path / "nano.yaml"
    path.write_text(
        yaml.safe_dump(
            nano_recipe(
                dataset,
                mesh={"pipeline_parallel": 2},
                train={"steps": 60, "checkpoint_every": 1000, "validate_every": 1000},
                optimizer={"learning_rate": 0.002, "warmup_steps": 3},
            )
        )
    )
    return path


class Jobs:
    """Jobs of the cluster: their states, and waits, which fail with the job's log after a timeout."""

    environment = ENVIRONMENT

    def state(self, job_id: str) -> str:
        """PENDING, RUNNING, COMPLETED, …, as reported by the controller."""
        program = ["scontrol", "--oneliner", "show", "job", job_id]
        shown = subprocess.run(program, capture_output=True, text=True, check=True).stdout
        return next(word for word in shown.split() if word.startswith("JobState=")).removeprefix("JobState=")

    def ended(self, job_id: str, log: Path, timeout: float = 300) -> str:
        """Wait until the job ends and return its final state."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        self.wait(lambda: self.state(job_id) in ends, log, timeout)
        return self.state(job_id)

    def logged(self, file: Path, num_lines: int, log: Path, timeout: float = 120) -> None:
        """Return when a file of the job has at least `num_lines` lines."""
        self.wait(lambda: file.exists() and len(file.read_bytes().splitlines()) >= num_lines, log, timeout)

    def appeared(self, folder: Path, pattern: str, number: int, log: Path, timeout: float = 120) -> None:
        """Return when a folder has at least `number` files that match."""
        self.wait(lambda: len(list(folder.glob(pattern))) >= number, log, timeout)

    def wait(self, is_so: Callable[[], bool], log: Path, timeout: float) -> None:
        """Return when `is_so()` is true."""
        deadline = time.monotonic() + timeout
        while not is_so():
            assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
            time.sleep(0.05)


@pytest.fixture
def jobs(slurm: None) -> Jobs:
    return Jobs()
