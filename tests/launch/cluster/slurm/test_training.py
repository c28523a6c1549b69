"""Training as jobs of a real SLURM: the losses equal those of a local run, even if SLURM interrupts the job."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.cluster.record import read_record
from pipeline.run_folder import find, latest, load_weights, read_status
from pipeline.tracking.metrics import read_metrics

STEPS = 60


@pytest.fixture
def submit(command: Callable[..., int], cluster: Callable[..., str], recipe: Path, tmp_path: Path) -> Callable[..., Any]:
    """Submit a training job and return its run folder, number and log."""

    def launch(*overrides: str, **changes: object) -> tuple[Path, str, Path]:
        run = tmp_path / "slurm"
        arguments = ("--cluster", cluster(**changes), "--output", run, f"train.steps={STEPS}", *overrides)
        assert command("launch", "slurm", "train", recipe, *arguments) == 0
        job_id = read_record(run).job_id
        return run, job_id, run / "logs" / f"slurm-{job_id}.out"

    return launch


@pytest.fixture
def assert_equals_a_local_run(recipe: Path, tmp_path: Path, environment: dict[str, str], jobs: Any) -> Callable[[Path], None]:
    """Train the same run as two processes of this machine, and compare losses and final weights, bit by bit."""

    def compare(run: Path, *overrides: str) -> None:
        local = tmp_path / "local"
        program = [sys.executable, "-c", "from launch.cli import main; main()"]
        arguments = ["train", recipe, "--nproc", "2", "--output", local, f"train.steps={STEPS}", *overrides]
        environ = {**environment, **jobs.environment}
        subprocess.run([*program, *arguments], env=environ, check=True, timeout=400, capture_output=True)
        ours, theirs = (
            {row["step"]: row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row}
            for folder in (run, local)
        )
        assert ours == theirs
        first, second = load_weights(find(run)), load_weights(find(local))
        assert first.keys() == second.keys()
        assert all(first[name].equal(value) for name, value in second.items())

    return compare


def test_a_job_requeued_after_sigusr1_equals_a_local_run(
    submit: Callable[..., Any],
    assert_equals_a_local_run: Callable[[Path], None],
    jobs: Any,
    command: Callable[..., int],
    cluster: Callable[..., str],
    recipe: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, job_id, log = submit()
    again = ["launch", "slurm", "train", recipe, "--cluster", cluster(), "--output", run, f"train.steps={STEPS}"]
    assert command(*again) == 1
    assert f"{run} has job {job_id}, which waits or runs" in capsys.readouterr().err
    jobs.logged(run / "metrics.jsonl", 3, log)
    # The signal that --signal sends before the time limit, to the same processes.
    subprocess.run(["scancel", "--signal=USR1", job_id], check=True)
    assert jobs.ended(job_id, log) == "COMPLETED", log.read_text()
    assert read_status(run) == "finished"
    written = log.read_text()
    assert "Saved; requeued to resume (restart 1 of at most 20)." in written
    assert f"Job {job_id}, start 2: 2 nodes x 1 ranks" in written  # appended to the first start's log
    assert_equals_a_local_run(run)


def test_a_failing_job_ends_its_log_with_the_ranks_error(
    submit: Callable[..., Any], jobs: Any, command: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    run, job_id, log = submit("optimizer.learning_rate=1e30", "train.max_skips=2")
    assert jobs.ended(job_id, log) == "FAILED", log.read_text()
    assert read_status(run) == "failed"
    last = log.read_text().splitlines()[-4:]
    assert any(line.startswith("error: rank ") and "the run has diverged" in line for line in last), last
    assert command("launch", "logs", run, "-n", "4") == 0
    assert capfd.readouterr().out.splitlines()[-4:] == last
    assert command("launch", "status", run) == 0
    shown = capfd.readouterr().out
    assert f"train on slurm, job {job_id}" in shown
    assert "STATUS failed, latest checkpoint none" in shown


@pytest.mark.slow
def test_a_job_requeued_by_scontrol_equals_a_local_run(
    submit: Callable[..., Any], assert_equals_a_local_run: Callable[[Path], None], jobs: Any
) -> None:
    run, job_id, log = submit()
    jobs.logged(run / "metrics.jsonl", 3, log)
    subprocess.run(["scontrol", "requeue", job_id], check=True)
    assert jobs.ended(job_id, log) == "COMPLETED", log.read_text()
    assert f"Job {job_id}, start 2" in log.read_text()
    assert_equals_a_local_run(run)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_saves_before_its_time_limit_and_equals_a_local_run(
    submit: Callable[..., Any], assert_equals_a_local_run: Callable[..., None], jobs: Any
) -> None:
    # SLURM may signal up to a minute early, 60 to 120 s after the start. The run is long enough not to finish before that.
    endless = ("train.steps=1000000", "optimizer.decay_steps=1000000")
    run, job_id, log = submit(*endless, time_limit="00:03:00", preemption_grace_seconds=60)
    jobs.wait(lambda: log.exists() and "Saved; requeued to resume" in log.read_text(), log, timeout=500)
    subprocess.run(["scancel", job_id], check=True)
    assert jobs.ended(job_id, log) == "CANCELLED"
    saved = latest(run)
    assert saved is not None
    end = (f"train.steps={int(saved.name.removeprefix('step_')) + 20}", endless[1])
    run, job_id, log = submit(*end)
    assert jobs.ended(job_id, log) == "COMPLETED", log.read_text()
    assert_equals_a_local_run(run, *end)


@pytest.mark.slow
def test_srun_starts_the_ranks_if_torchrun_cannot_forward_signals(
    submit: Callable[..., Any], assert_equals_a_local_run: Callable[[Path], None], jobs: Any, tmp_path: Path
) -> None:
    # A Python whose torchrun lacks the two options, as in older versions; `fnet-t5` is in the same folder.
    folder = tmp_path / "bin"
    folder.mkdir()
    python = folder / "python"
    python.write_text(f'#!/bin/bash\n[[ "$*" == *run*--help ]] && echo "usage: torchrun" && exit\nexec {sys.executable} "$@"\n')
    (folder / "fnet-t5").write_text(f'#!/bin/bash\nexec {sys.executable} -c "from launch.cli import main; main()" "$@"\n')
    for file in folder.iterdir():
        file.chmod(0o755)
    run, job_id, log = submit(python=str(python))
    jobs.logged(run / "metrics.jsonl", 3, log)
    subprocess.run(["scancel", "--signal=USR1", job_id], check=True)
    assert jobs.ended(job_id, log) == "COMPLETED", log.read_text()
    assert "srun starts them itself" in log.read_text()
    assert "Saved; requeued" in log.read_text()
    assert_equals_a_local_run(run)


@pytest.mark.slow
def test_after_max_restarts_a_job_is_not_requeued(submit: Callable[..., Any], jobs: Any) -> None:
    run, job_id, log = submit(max_restarts=0)
    jobs.logged(run / "metrics.jsonl", 3, log)
    subprocess.run(["scancel", "--signal=USR1", job_id], check=True)
    assert jobs.ended(job_id, log) == "FAILED"
    assert read_status(run) == "preempted"
    assert f"resume with sbatch {run}/launch/train.sbatch" in log.read_text().splitlines()[-1]


@pytest.mark.slow
def test_a_cancelled_job_saves_and_resumes_on_relaunch(
    submit: Callable[..., Any], assert_equals_a_local_run: Callable[[Path], None], jobs: Any, command: Callable[..., int]
) -> None:
    run, job_id, log = submit()
    jobs.logged(run / "metrics.jsonl", 3, log)
    assert command("launch", "cancel", run) == 0
    assert jobs.ended(job_id, log) == "CANCELLED"
    assert read_status(run) == "preempted"
    run, job_id, log = submit()
    assert jobs.ended(job_id, log) == "COMPLETED", log.read_text()
    assert_equals_a_local_run(run)
