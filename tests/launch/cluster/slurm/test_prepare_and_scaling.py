"""Data preparation and ladders as jobs of a real SLURM."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from data_prep.dataset.manifest import load_manifest
from data_prep.files import sha256_file
from launch.cluster.record import read_record
from launch.recipes import find_recipe
from pipeline.scaling.ladder.ladder import read_ladder


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.name != "manifest.json"}


def _processes_of(job_id: str) -> list[str]:
    """The processes of a job that still run on this machine, which hosts both nodes."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("SLURM_JOB_ID") == job_id:
                found.append(process.name())
    return found


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for part in range(4):
        lines = [json.dumps({"text": f"document {part}.{i}: " + "words and words " * (i % 40)}) for i in range(600)]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("time_is_up", [False, True])
def test_ray_inside_a_job_prepares_the_same_bytes_and_leaves_nothing(
    time_is_up: bool, command: Callable[..., int], cluster: Callable[..., str], corpus: Path, jobs: Any, tmp_path: Path
) -> None:
    settings = ["--input", f"{corpus}/*", "unit_bytes=4000", "vocab_size=420"]
    assert command("prepare", *settings, "--output", tmp_path / "local", "--workers", "1") == 0
    output = tmp_path / "slurm"
    file = cluster(cpus_per_node=1)
    assert command("launch", "slurm", "prepare", "--cluster", file, *settings, "--output", output) == 0
    record = read_record(output)
    log = Path(record.logs)
    if time_is_up:
        jobs.appeared(output / ".work" / "units", "*.json", 3, log)
        subprocess.run(["scancel", "--batch", "--signal=USR1", record.job_id], check=True)
    assert jobs.ended(record.job_id, log) == "COMPLETED", log.read_text()
    assert ("Time is up; requeued" in log.read_text()) == time_is_up
    assert _hashes(output) == _hashes(tmp_path / "local")
    assert load_manifest(output).units > 20
    assert "Ray on 2 nodes x 1 CPUs" in log.read_text()
    assert len(list(record.file.parent.glob(f"ray_{record.job_id}_n[12].log"))) == 2
    assert not _processes_of(record.job_id)
    logs = "".join(path.read_text() for path in record.file.parent.glob("ray_*.log"))
    assert "forcing job termination" not in logs  # Ray was shut down in an orderly way


def test_a_ladder_is_an_array_of_sweeps_followed_by_an_array_of_runs(
    command: Callable[..., int], cluster: Callable[..., str], jobs: Any, tmp_path: Path
) -> None:
    ladder = tmp_path / "ladder"
    recipe = tmp_path / "recipe.yaml"
    shipped = yaml.safe_load(find_recipe("scaling/cpu-smoke", "scaling").read_text())
    recipe.write_text(yaml.safe_dump({**shipped, "arms": {"t5": {"sizes": ["d32", "d64"]}}, "seeds": None}))
    assert command("scaling", "plan", recipe, "--output", ladder, "vocab_size=1024", "train_tokens=6e7") == 0
    names = [run.name for run in read_ladder(ladder).runs]
    assert names == ["sweep-t5-d32", "sweep-t5-d64", "t5-d32-seed0", "t5-d64-seed0"]
    # A fake `fnet-t5 scaling run`: the first start of the sweep saves and exits; no run may start before the sweep ends.
    stand_in = tmp_path / "fnet-t5"
    stand_in.write_text(
        f"#!{sys.executable}\n"
        "import sys; from pathlib import Path\n"
        "group, verb, ladder, only, name = sys.argv[1:]\n"
        "assert (group, verb, only) == ('scaling', 'run', '--only')\n"
        "mark = Path(ladder) / f'{name}.begun'\n"
        "if name == 'sweep-t5-d32' and not mark.exists():\n"
        "    mark.touch(); sys.exit(75)\n"
        "assert name.startswith('sweep') or len(list(Path(ladder).glob('sweep*.done'))) == 2\n"
        "(Path(ladder) / f'{name}.done').touch()\n"
    )
    stand_in.chmod(0o755)
    file = cluster(nodes=1, python=str(tmp_path / "python"))
    assert command("launch", "slurm", "scaling", ladder, "--cluster", file, "--max-concurrent", "2") == 0
    record = read_record(ladder)
    sweeps, mains = record.job_id.split(",")
    assert "--array=0-1%2" in record.file.read_text()
    for job, task in ((sweeps, 0), (sweeps, 1), (mains, 0), (mains, 1)):
        log = ladder / "logs" / f"slurm-{job}_{task}.out"
        assert jobs.ended(f"{job}_{task}", log) == "COMPLETED", log.read_text()
    assert sorted(path.stem for path in ladder.glob("*.done")) == sorted(names)
    assert "Saved; requeued to resume (restart 1" in (ladder / "logs" / f"slurm-{sweeps}_0.out").read_text()
    assert command("launch", "status", ladder) == 0
    assert command("launch", "cancel", ladder) == 0
