"""The worker in a small copy of the project with a stub trainer: errors in the log, and no worker without a launcher."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

LAUNCH = Path(__file__).parents[2] / "launch"

LAUNCHER = """
import sys
from pathlib import Path
from launch.local import run_local
sys.exit(run_local(Path(sys.argv[1]), 2))
"""

TRAIN = """
import os, sys, time
from pathlib import Path

def train(run: Path) -> None:
    rank = os.environ["RANK"]
    (run / f".pid_{rank}").write_text(str(os.getpid()))
    (run / f".pid_{rank}").rename(run / f"pid_{rank}")
"""


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Callable[[str], "subprocess.Popen[str]"]:
    """Start two real workers whose `pipeline.training.trainer.train` ends with the given statement."""
    for name in ("models", "pipeline", "pipeline/training", "pipeline/tracking", "data_prep", "launch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    for name in ("worker.py", "local.py", "identity.py"):
        shutil.copy(LAUNCH / name, tmp_path / "launch" / name)
    shutil.copy(LAUNCH.parent / "pipeline" / "tracking" / "logs.py", tmp_path / "pipeline" / "tracking" / "logs.py")
    (tmp_path / "run").mkdir()
    environment["PYTHONPATH"] = str(tmp_path)

    def run(statement: str) -> "subprocess.Popen[str]":
        (tmp_path / "pipeline" / "training" / "trainer.py").write_text(f"{TRAIN}    {statement}\n")
        arguments = [sys.executable, "-c", LAUNCHER, str(tmp_path / "run")]
        return subprocess.Popen(arguments, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    return run


def test_a_successful_run_exits_with_0(start: Callable[[str], "subprocess.Popen[str]"]) -> None:
    process = start("print('trained')")
    _, message = process.communicate(timeout=20)
    assert (process.returncode, message) == (0, "")


def test_an_error_is_one_line_on_the_terminal_and_a_traceback_in_the_log(
    start: Callable[[str], "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    # Rank 1 waits, because the order of two failures would be random.
    process = start("time.sleep(60 * int(rank))\n    raise ValueError('data/pile holds no rows: prepare it again')")
    _, message = process.communicate(timeout=20)
    assert process.returncode == 1
    assert message.endswith("  | error: data/pile holds no rows: prepare it again\n")
    log = (tmp_path / "run" / "logs" / "rank_0.log").read_text()
    assert "Traceback" in log
    assert "in train" in log


@pytest.mark.parametrize(
    ("level", "shown"), [(None, {"info", "error"}), ("debug", {"debug", "info", "error"}), ("error", {"error"})]
)
def test_log_records_have_level_rank_and_step(
    start: Callable[[str], "subprocess.Popen[str]"],
    tmp_path: Path,
    environment: dict[str, str],
    level: str | None,
    shown: set[str],
) -> None:
    environment.pop("FNET_T5_LOG_LEVEL", None)
    if level is not None:
        environment["FNET_T5_LOG_LEVEL"] = level
    statement = (
        "import logging\n    from pipeline.tracking.logs import set_step\n    log = logging.getLogger(__name__)\n"
        "    log.info('before the first step')\n    set_step(7)\n"
        "    for each in ('debug', 'info', 'error'): getattr(log, each)('an %s', each)"
    )
    process = start(statement)
    _, message = process.communicate(timeout=20)
    assert (process.returncode, message) == (0, "")  # nothing of this is on the terminal
    for rank in range(2):
        lines = (tmp_path / "run" / "logs" / f"rank_{rank}.log").read_text().splitlines()
        pattern = r"(\w+): \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \[(.*)\] (.*)"
        records = [match.groups() for line in lines if (match := re.fullmatch(pattern, line))]
        expected = {(each, f"rank {rank}, step 7", f"an {each}") for each in shown}
        if "info" in shown:
            expected.add(("info", f"rank {rank}", "before the first step"))
        assert set(records) == expected
        assert len(records) == len(lines)


def test_an_unknown_log_level_is_refused(start: Callable[[str], "subprocess.Popen[str]"], environment: dict[str, str]) -> None:
    environment["FNET_T5_LOG_LEVEL"] = "loud"
    process = start("print('trained')")
    _, message = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "log level 'loud' is unknown: --log-level and FNET_T5_LOG_LEVEL take debug, info, warning, error" in message


def test_kill_9_of_the_launcher_leaves_no_worker(start: Callable[[str], "subprocess.Popen[str]"], tmp_path: Path) -> None:
    process = start("time.sleep(60)")
    files = [tmp_path / "run" / f"pid_{rank}" for rank in range(2)]
    deadline = time.monotonic() + 20
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = [psutil.Process(int(file.read_text())) for file in files]
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    _, alive = psutil.wait_procs(workers, timeout=5)
    # Without a process that reaps orphans, a killed orphan stays as a zombie.
    assert all(worker.status() == psutil.STATUS_ZOMBIE for worker in alive)


def test_a_worker_without_its_launcher_exits_immediately(tmp_path: Path, environment: dict[str, str]) -> None:
    environment["FNET_T5_LAUNCHER_PID"] = "1" if os.getpid() != 1 else "2"
    done = subprocess.run([sys.executable, LAUNCH / "worker.py", tmp_path], env=environment, capture_output=True, timeout=20)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_worker_of_another_installation_is_refused(
    start: Callable[[str], "subprocess.Popen[str]"], tmp_path: Path, environment: dict[str, str]
) -> None:
    environment["PYTHONPATH"] = str(LAUNCH.parent)
    worker = [sys.executable, tmp_path / "launch" / "worker.py", tmp_path / "run"]
    done = subprocess.run(worker, env=environment, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert f"would import `launch` from {LAUNCH}" in done.stderr.splitlines()[-1]
