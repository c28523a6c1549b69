"""Signals that reach the ranks of an outer launcher's job before their first step."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from pipeline.run_folder import read_status
from tests.helpers.processes import free_port
from tests.helpers.recipes import nano_recipe

# A rank whose main thread waits in a C library, where Python calls no signal handler.
BLOCKED = """
import ctypes, os, sys
from pathlib import Path
from pipeline.training.early_stop import stops_at_signal

with stops_at_signal(Path(sys.argv[1]), 75) as stop:
    if len(sys.argv) > 2:
        stop.install()
    mutex = ctypes.create_string_buffer(64)  # zeros: a pthread_mutex_t that is not locked
    library = ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    if len(sys.argv) > 2:
        while not stop.received:
            pass
    else:
        library.pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize(
    ("number", "rank", "before", "after"),
    [
        *((number, 0, "running", "preempted") for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)),
        (signal.SIGTERM, 0, None, None),
        (signal.SIGTERM, 1, "running", "running"),
    ],
)
def test_a_signal_ends_a_rank_that_waits_in_a_library(
    number: signal.Signals, rank: int, before: str | None, after: str | None, tmp_path: Path, environment: dict[str, str]
) -> None:
    if before is not None:
        (tmp_path / "STATUS").write_text(f"{before}\n")
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED, str(tmp_path)],
        env={**environment, "RANK": str(rank)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_handle_all_signals,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, message = process.communicate(timeout=300)
    assert process.returncode == 75
    assert message == f"stopped by {number.name} before the first step\n"
    assert read_status(tmp_path) == after


def test_a_signal_after_the_start_is_remembered(tmp_path: Path, environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED, str(tmp_path), "installed"],
        env={**environment, "RANK": "0"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 0


FORKING = """
import os, signal, sys
from pathlib import Path
from pipeline.training.early_stop import stops_at_signal

with stops_at_signal(Path(sys.argv[1]), 75):
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, b".")
        while True:
            signal.pause()
    os.read(read_end, 1)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
"""


def test_a_signal_to_a_forked_process_does_not_end_the_rank(tmp_path: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKING, str(tmp_path)], env={**environment, "RANK": "0"}, timeout=300, check=False
    )
    assert done.returncode == 0


def _handle_all_signals() -> None:
    """Shells start background jobs with SIGINT ignored, and nohup its processes with SIGHUP."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Job:
    """Two ranks of `fnet-t5 train` in a job of srun. They are forked, because everything is imported here already."""

    def __init__(self, recipe: Path, run: Path, waits_at: str) -> None:
        """Each rank waits when it announces the activity `waits_at`; "nothing": rank 1 never joins."""
        self._recipe, self._run, self._waits_at = recipe, run, waits_at
        self._port = free_port()
        self.ranks = [self._fork(rank) for rank in range(2)]

    def _fork(self, rank: int) -> int:
        process = os.fork()
        if process == 0:
            self._train(rank)
        return process

    def _train(self, rank: int) -> NoReturn:
        code = 70
        try:
            _handle_all_signals()
            log = os.open(self._run.with_name(f"rank_{rank}.log"), os.O_WRONLY | os.O_CREAT)
            for stream in (1, 2):
                os.dup2(log, stream)
            sys.stdout = sys.stderr = os.fdopen(log, "w", buffering=1)  # not those that pytest captures
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._port), "DS_ACCELERATOR": "cpu"}
            code = self._start(rank)
        finally:
            os._exit(code)

    def _start(self, rank: int) -> int:
        import torch

        from launch.cli import main
        from pipeline.distributed.watchdog import Watchdog

        torch.set_num_threads(1)
        beat = Watchdog.beat

        def waiting_beat(watchdog: Any, activity: str) -> None:
            beat(watchdog, activity)
            if activity.startswith(self._waits_at):
                self._wait(rank)

        Watchdog.beat = waiting_beat  # type: ignore[method-assign]
        if self._waits_at == "nothing" and rank == 1:
            self._wait(rank)
        sys.argv = ["fnet-t5", "train", str(self._recipe), "--output", str(self._run)]
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    def _wait(self, rank: int) -> None:
        self._run.with_name(f"rank_{rank}").touch()
        time.sleep(300)

    def _is_waiting(self, rank: int) -> bool:
        if self._waits_at == "nothing" and rank == 0:  # in a library, for rank 1: it has opened the store of the process group
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return True
            return False
        return self._run.with_name(f"rank_{rank}").exists()

    def stop(self, *signals: signal.Signals | None) -> list[int]:
        """Send each rank its signal when both wait; returns their exit codes (-N: signal N)."""
        deadline = time.monotonic() + 300
        while not all(self._is_waiting(rank) for rank in range(2)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for process, number in zip(self.ranks, signals, strict=True):
            if number is not None:
                os.kill(process, number)
        return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in self.ranks]


@pytest.fixture
def job(dataset: Path, tmp_path: Path) -> Callable[[str], Job]:
    recipe = tmp_path / "nano.yaml"
    recipe.write_text(yaml.safe_dump(nano_recipe(dataset, train={"steps": 3})))

    def start(waits_at: str) -> Job:
        import pipeline.training.trainer  # noqa: F401 - before the forks

        return Job(recipe, tmp_path / "run", waits_at)

    return start


@pytest.mark.parametrize(
    ("waits_at", "number"),
    [("nothing", signal.SIGTERM), ("building the optimizer", signal.SIGINT), ("opening the data", signal.SIGHUP)],
)
def test_a_job_that_is_stopped_during_its_start_is_preempted(
    waits_at: str, number: signal.Signals, job: Callable[[str], Job], tmp_path: Path
) -> None:
    codes = job(waits_at).stop(number, number)
    assert codes[0] == 75
    assert codes[1] in ((75,) if waits_at != "nothing" else (-number,))  # rank 1 has not come to `fnet-t5` yet
    assert read_status(tmp_path / "run") == "preempted"
    assert f"stopped by {number.name} before the first step" in (tmp_path / "rank_0.log").read_text()


def test_a_job_of_which_one_rank_is_stopped_during_its_start_is_preempted(job: Callable[[str], Job], tmp_path: Path) -> None:
    """A node is drained: the ranks of other nodes get no signal."""
    codes = job("opening the data").stop(None, signal.SIGTERM)
    assert codes == [1, 75]
    assert read_status(tmp_path / "run") == "preempted"
    assert "rank 1: stopped by SIGTERM before the first step" in (tmp_path / "rank_0.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_torchrun_that_is_stopped_during_the_start_leaves_the_run_preempted(
    number: signal.Signals, dataset: Path, tmp_path: Path, environment: dict[str, str], request: pytest.FixtureRequest
) -> None:
    """STATUS is `running` already, as the script of a SLURM job writes it. The ranks import DeepSpeed when the signal comes."""
    recipe, run, script = tmp_path / "nano.yaml", tmp_path / "run", tmp_path / "train.py"
    recipe.write_text(yaml.safe_dump(nano_recipe(dataset, train={"steps": 10**6, "checkpoint_every": 10**6})))
    script.write_text("from launch.cli import main\nmain()\n")
    run.mkdir()
    (run / "STATUS").write_text("running\n")
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    job = subprocess.Popen(
        [*program, str(script), "train", str(recipe), "--output", str(run)],
        env={**environment, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_handle_all_signals,
    )
    request.addfinalizer(job.kill)
    while not (run / "config.json").exists():
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.05)
    job.send_signal(number)
    printed, _ = job.communicate(timeout=600)
    assert read_status(run) == "preempted", printed
    assert printed.count(f"stopped by {number.name} before the first step") == 2
    assert not (run / "checkpoints").exists()
