"""Ranks as real processes: their environment, their logs, and that none is left after any kind of exit."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from launch.local import ProgressPipe, run_local
from pipeline.distributed.watchdog import Watchdog

# A rank writes its pid, then runs its part of the script.
WORKER = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
run, rank = Path(sys.argv[1]), int(os.environ["RANK"])

def note(name, text):
    (run / f".{name}_{rank}").write_text(text)
    (run / f".{name}_{rank}").rename(run / f"{name}_{rank}")

def record(number, frame):
    with open(run / f"signals_{rank}", "a") as file:
        file.write(signal.Signals(number).name + "\\n")

def stop(number, frame):
    record(number, frame)
    sys.exit(0)

signal.signal(signal.SIGINT, record)
signal.signal(signal.SIGTERM, stop)
{script}
"""

READY = 'note("pid", str(os.getpid()))\n'
SLEEP = READY + "time.sleep(60)\n"


def gone(pid: int) -> bool:
    """Whether a process has ended. A zombie counts as ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def pids(run: Path, name: str = "pid") -> list[int]:
    return [int(path.read_text()) for path in sorted(run.glob(f"{name}_*"))]


@pytest.fixture
def worker(tmp_path: Path) -> Callable[[str], Path]:
    def write(script: str) -> Path:
        path = tmp_path / "worker.py"
        path.write_text(WORKER.replace("{script}", script))
        return path

    return write


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "run"
    folder.mkdir()
    yield folder
    for pid in pids(folder) + pids(folder, "child"):
        assert eventually(lambda pid=pid: gone(pid), 5.0), f"process {pid} was left behind"


@pytest.fixture
def launcher(environment: dict[str, str], run: Path) -> Callable[..., list[str]]:
    """The command line of a process that calls run_local."""

    def line(worker: Path, processes: int = 2, **options: float) -> list[str]:
        program = (
            "import signal, sys; from pathlib import Path; from launch.local import run_local\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells start background jobs with SIGINT ignored
            "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # nohup starts processes with SIGHUP ignored
            f"sys.exit(run_local(Path({str(run)!r}), {processes}, worker=Path({str(worker)!r}), **{options!r}))"
        )
        return [sys.executable, "-c", program]

    return line


def test_ranks_get_the_environment_of_torchrun(
    run: Path, worker: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    script = worker('note("env", json.dumps(dict(os.environ)))')
    assert run_local(run, 3, worker=script) == 0
    environments = [json.loads((run / f"env_{rank}").read_text()) for rank in range(3)]
    for rank, environment in enumerate(environments):
        assert environment["RANK"] == environment["LOCAL_RANK"] == str(rank)
        assert environment["WORLD_SIZE"] == environment["LOCAL_WORLD_SIZE"] == "3"
        assert environment["MASTER_ADDR"] == "127.0.0.1"
        assert environment["OMP_NUM_THREADS"] == str(max(1, (os.cpu_count() or 1) // 3))
        assert environment["PYTHONSAFEPATH"] == environment["PYTHONUNBUFFERED"] == "1"
    assert len({environment["MASTER_PORT"] for environment in environments}) == 1


def test_a_chosen_number_of_threads_is_kept(run: Path, worker: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert run_local(run, 1, worker=worker('note("threads", os.environ["OMP_NUM_THREADS"])')) == 0
    assert (run / "threads_0").read_text() == "7"


def test_the_terminal_shows_only_the_output_of_rank_0(
    run: Path, worker: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_local(run, 2, worker=worker('print(f"out {rank}"); print(f"noise {rank}", file=sys.stderr)')) == 0
    captured = capfd.readouterr()
    assert captured.out == "out 0\n"
    assert captured.err == ""
    assert (run / "logs" / "rank_0.log").read_text() == "noise 0\n"
    assert sorted((run / "logs" / "rank_1.log").read_text().splitlines()) == ["noise 1", "out 1"]


def test_a_failed_rank_ends_the_others_and_its_log_is_shown(
    run: Path, worker: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    script = worker(
        READY + 'if rank != 1: time.sleep(60)\nwhile len(list(run.glob("pid_*"))) < 3: time.sleep(0.01)\n'
        'print("line 1\\nboom", file=sys.stderr); sys.exit(3)'
    )
    assert run_local(run, 3, worker=script) == 3
    message = capfd.readouterr().err
    assert f"error: rank 1 of 3 ended with exit code 3; its last lines ({run / 'logs' / 'rank_1.log'}):" in message
    assert message.endswith("  | line 1\n  | boom\n")
    assert (run / "signals_0").read_text() == (run / "signals_2").read_text() == "SIGTERM\n"
    assert len(pids(run)) == 3


def test_a_rank_that_ignores_sigterm_is_killed(run: Path, worker: Callable[[str], Path]) -> None:
    script = worker(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + "if rank == 0: time.sleep(60)\n"
        'while not (run / "pid_0").exists(): time.sleep(0.01)\nsys.exit(1)'
    )
    begin = time.monotonic()
    assert run_local(run, 2, worker=script, failure_grace=0.3) == 1
    assert time.monotonic() - begin < 10


def test_a_killed_rank_is_named_with_its_signal(
    run: Path, worker: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    script = worker(READY + "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)")
    assert run_local(run, 2, worker=script) == 128 + signal.SIGKILL
    assert "rank 1 of 2 ended with signal 9 (SIGKILL); it wrote nothing to" in capfd.readouterr().err


def test_child_processes_of_a_rank_end_with_it(run: Path, worker: Callable[[str], Path]) -> None:
    script = worker('note("child", str(subprocess.Popen(["sleep", "60"]).pid))')
    assert run_local(run, 2, worker=script) == 0
    assert len(pids(run, "child")) == 2


def test_logs_are_appended_and_only_the_new_lines_are_shown(
    run: Path, worker: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_local(run, 1, worker=worker('print("first start", file=sys.stderr)')) == 0
    assert run_local(run, 1, worker=worker('print("second start", file=sys.stderr); sys.exit(1)')) == 1
    assert "first start" not in capfd.readouterr().err
    assert (run / "logs" / "rank_0.log").read_text() == "first start\nsecond start\n"


def test_zero_processes_are_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        run_local(run, 0)


def test_signal_handlers_are_restored(run: Path, worker: Callable[[str], Path]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    run_local(run, 1, worker=worker(""))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_ctrl_c_on_a_terminal_sends_one_sigterm_to_each_rank(
    run: Path, worker: Callable[[str], Path], launcher: Callable[..., list[str]], environment: dict[str, str]
) -> None:
    arguments = launcher(worker(SLEEP))
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(arguments[0], arguments, environment)
    assert eventually(lambda: len(pids(run)) == 2)
    os.write(terminal, b"\x03")
    shown = b""
    while b"stopping" not in shown:
        shown += os.read(terminal, 1024)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130
    assert [(run / f"signals_{rank}").read_text() for rank in range(2)] == ["SIGTERM\n"] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_ending_the_launcher_ends_the_ranks_in_order(
    number: signal.Signals,
    run: Path,
    worker: Callable[[str], Path],
    launcher: Callable[..., list[str]],
    environment: dict[str, str],
) -> None:
    process = subprocess.Popen(launcher(worker(SLEEP)), env=environment, stderr=subprocess.DEVNULL)
    assert eventually(lambda: len(pids(run)) == 2)
    process.send_signal(number)
    assert process.wait(timeout=10) == 128 + number
    assert [(run / f"signals_{rank}").read_text() for rank in range(2)] == ["SIGTERM\n"] * 2


@pytest.mark.parametrize("how", ["grace", "second signal", "a peer died of it"])
def test_ranks_that_do_not_stop_are_killed(
    how: str, run: Path, worker: Callable[[str], Path], launcher: Callable[..., list[str]], environment: dict[str, str]
) -> None:
    last_rank = "signal.SIG_DFL" if how == "a peer died of it" else "signal.SIG_IGN"
    script = worker(f"signal.signal(signal.SIGTERM, {last_rank} if rank == 1 else signal.SIG_IGN)\n" + SLEEP)
    options = {"stop_grace": 0.2 if how == "grace" else 60.0, "failure_grace": 0.2}
    process = subprocess.Popen(launcher(script, **options), env=environment, stderr=subprocess.PIPE)
    assert eventually(lambda: len(pids(run)) == 2)
    process.send_signal(signal.SIGINT)
    if how == "second signal":
        assert process.stderr is not None
        process.stderr.readline()  # the first signal has been handled
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130


def test_a_save_that_reports_progress_is_not_killed_and_one_that_does_not_is(
    run: Path, worker: Callable[[str], Path], launcher: Callable[..., list[str]], environment: dict[str, str]
) -> None:
    """After SIGTERM rank 0 works ten times as long as the grace, with reports; then rank 1 hangs."""
    body = """
def save(number, frame):
    for _ in range(40 if rank == 0 else 0):
        os.write(int(os.environ["FNET_T5_PROGRESS_PIPE"]), b".")
        time.sleep(0.5)
    note("saved", "")
    if not (run / "hang").exists():
        sys.exit(0)
    time.sleep(1000)

signal.signal(signal.SIGTERM, save)
"""
    script = worker(body + READY + "time.sleep(1000)")
    for hangs in (False, True):
        for path in run.glob("*_[01]"):
            path.unlink()
        if hangs:
            (run / "hang").touch()
        process = subprocess.Popen(launcher(script, stop_grace=2.0), env=environment, stderr=subprocess.PIPE)
        assert eventually(lambda: len(pids(run)) == 2, 120)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 143
        assert (run / "saved_0").exists()
        assert b"while they report progress (limit without it: 2 s)" in errors


def test_a_full_pipe_does_not_block_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    with ProgressPipe() as pipe:
        monkeypatch.setenv("FNET_T5_PROGRESS_PIPE", str(pipe.write_end))
        monkeypatch.setattr("pipeline.distributed.watchdog._PIPE_SECONDS", -1.0)
        watchdog = Watchdog(0, 1, 10)
        assert not pipe.has_news()
        for _ in range(70_000):  # a pipe holds 65,536 bytes
            watchdog.beat("saving")
        assert pipe.has_news()


def test_a_variable_that_names_another_file_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "other").open("w") as file:
        monkeypatch.setenv("FNET_T5_PROGRESS_PIPE", str(file.fileno()))
        Watchdog(0, 1, 10).beat("saving")
    assert (tmp_path / "other").read_bytes() == b""
