"""Several ranks on this machine: started together, ended together, each with its log, none left running."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launch.worker import LAUNCHER_PID, PROGRESS_PIPE

WORKER = Path(__file__).with_name("worker.py")

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # SIGUSR1: how a scheduler warns of its limit
STOP_GRACE_SECONDS = 1200.0
"""The default of `train.hang_minutes`: the watchdog of a rank that makes no progress ends it by then."""
_POLL_SECONDS = 0.05
_SHOWN_LINES = 20
_SHOW_CURSOR = "\x1b[?25h"


@dataclass(kw_only=True)
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    """Bytes in the log from earlier starts of this run."""

    def has_exited(self) -> bool:
        # WNOWAIT keeps the zombie, and with it the process group's number, until `reap`: killpg cannot hit another process.
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def terminate(self) -> None:
        """Signal the rank itself, not its child processes: it may need them to shut down."""
        os.kill(self.process.pid, signal.SIGTERM)

    def reap(self) -> int:
        """Kill what remains of the rank and of the processes it started, and return its exit code (-N for signal N)."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()


class _StopRequest:
    """The first SIGINT, SIGTERM, SIGHUP or SIGUSR1 asks for a clean shutdown, the second one for an immediate end."""

    def __init__(self) -> None:
        self.signal = 0
        self.is_immediate = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.is_immediate = self.signal != 0
        self.signal = self.signal or number

    @contextmanager
    def installed(self) -> Iterator[None]:
        earlier = {number: signal.getsignal(number) for number in _STOPPING}
        for number, handler in earlier.items():
            if handler != signal.SIG_IGN:  # nohup and background jobs ignore some of them on purpose
                signal.signal(number, self)
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)


def run_local(
    run_dir: Path,
    num_processes: int,
    *,
    then: Sequence[Path] = (),
    worker: Path = WORKER,
    stop_grace: float = STOP_GRACE_SECONDS,
    failure_grace: float = 10.0,
) -> int:
    """Run `worker RUN_DIR` as ranks 0 … num_processes - 1 and return an exit code: 0 when all of them end with 0.

    `then` are further run folders for the same processes: their start takes longer than a small run. All logs go to the first
    run's folder.

    Rank 0's stdout stays on the terminal; everything else is appended to `run_dir/logs/rank_<r>.log`. When a rank fails,
    the others get SIGTERM and, `failure_grace` seconds later, SIGKILL; its last lines are shown on stderr and its exit
    code is returned. Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 become SIGTERM for every rank, SIGKILL at the second Ctrl-C or after
    `stop_grace` seconds in which no rank reported progress (`failure_grace` if a rank fails meanwhile), and the exit code
    128 + signal. A save may take as long as it needs. If this process is killed, the kernel kills the ranks.

    Must be called from the main thread: only it may set signal handlers, and the kernel kills a rank when the thread that
    started it ends. Raises ValueError for fewer than one process.
    """
    if num_processes < 1:
        raise ValueError(f"{num_processes} processes: start at least one")
    logs = run_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    stop = _StopRequest()
    ranks: list[_Rank] = []
    with stop.installed(), ProgressPipe() as progress:
        try:
            port = _free_port()
            for number in range(num_processes):
                environment = {**rank_environment(number, num_processes, port), PROGRESS_PIPE: str(progress.write_end)}
                ranks.append(_start(number, environment, worker, [run_dir, *then], logs / f"rank_{number}.log", progress))
            failed = _wait(ranks, stop, progress)
            if failed:
                _end(ranks, failure_grace, stop)
            elif stop.signal:
                print(
                    "stopping: waiting for the ranks to end their step and save while they report progress (limit without "
                    f"it: {stop_grace:.0f} s); Ctrl-C again kills",
                    file=sys.stderr,
                )
                _end(ranks, stop_grace, stop, failure_grace, progress)
        finally:
            codes = [rank.reap() for rank in ranks]
            if sys.stdout.isatty():  # a rank that is killed inside its progress bar leaves the cursor hidden
                print(_SHOW_CURSOR, end="", flush=True)
    if failed:
        code = codes[failed.number]
        _report(failed, num_processes, code)
        return code if code > 0 else 128 - code
    return 128 + stop.signal if stop.signal else 0


def rank_environment(number: int, num_processes: int, port: int) -> dict[str, str]:
    """The environment of a rank: torchrun's variables, and ours."""
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "RANK": str(number),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_RANK": str(number),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        LAUNCHER_PID: str(os.getpid()),
    }


class ProgressPipe:
    """A pipe into which ranks write a byte when they make progress."""

    def __enter__(self) -> ProgressPipe:
        self._read_end, self.write_end = os.pipe()
        for end in (self._read_end, self.write_end):
            os.set_blocking(end, False)
        return self

    def __exit__(self, *ignored: object) -> None:
        os.close(self._read_end)
        os.close(self.write_end)

    def has_news(self) -> bool:
        """Whether a rank has made progress since the last call."""
        with suppress(BlockingIOError):
            return bool(os.read(self._read_end, 1 << 16))
        return False


def _start(
    number: int, environment: dict[str, str], worker: Path, run_dirs: Sequence[Path], log: Path, progress: ProgressPipe
) -> _Rank:
    with open(log, "ab") as file:
        log_start = file.tell()
        process = subprocess.Popen(
            [sys.executable, str(worker), *map(str, run_dirs)],
            stdin=subprocess.DEVNULL,
            stdout=None if number == 0 else file,
            stderr=file,
            env=environment,
            pass_fds=[progress.write_end],
            start_new_session=True,  # Ctrl-C in the terminal then reaches only this process, which passes it on once
        )
        return _Rank(number=number, process=process, log=log, log_start=log_start)


def _wait(ranks: list[_Rank], stop: _StopRequest, progress: ProgressPipe) -> _Rank | None:
    """Wait until a stop is asked for or all ranks succeeded (None), or until one fails; returns the first that failed."""
    running = list(ranks)
    while running and not stop.signal:
        progress.has_news()  # empties the pipe
        ended = [rank for rank in running if rank.has_exited()]
        failures = {rank.number: code for rank in ended if (code := _peek(rank)) != 0}
        if failures:
            # Peers of a killed rank fail within milliseconds of it: of failures found together, a signal is the likelier cause.
            first = min(failures, key=lambda number: (failures[number] > 0, number))
            return ranks[first]
        running = [rank for rank in running if rank not in ended]
        time.sleep(_POLL_SECONDS)
    return None


def _peek(rank: _Rank) -> int:
    """Exit code of a rank that has exited, -N for signal N; the rank stays unreaped."""
    result = os.waitid(os.P_PID, rank.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    assert result is not None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def _end(
    ranks: list[_Rank],
    grace: float,
    stop: _StopRequest,
    grace_after_failure: float = math.inf,
    progress: ProgressPipe | None = None,
) -> None:
    """SIGTERM to every rank, then wait until all have exited, `grace` seconds have passed or a second Ctrl-C comes.

    With `progress`, the `grace` begins again whenever a rank reports some. Once a rank has failed, the others, which may wait
    for it in a collective, get `grace_after_failure` seconds more.
    """
    for rank in ranks:
        rank.terminate()
    deadline = time.monotonic() + grace
    has_failure = False
    while time.monotonic() < deadline and not stop.is_immediate and not all(rank.has_exited() for rank in ranks):
        if progress is not None and progress.has_news() and not has_failure:
            deadline = time.monotonic() + grace
        if not has_failure and any(rank.has_exited() and _peek(rank) != 0 for rank in ranks):
            has_failure = True
            deadline = min(deadline, time.monotonic() + grace_after_failure)
        time.sleep(_POLL_SECONDS)


def _report(failed: _Rank, num_processes: int, code: int) -> None:
    with open(failed.log, "rb") as file:
        file.seek(failed.log_start)
        lines = file.read().decode("utf-8", "replace").splitlines()
    how = f"exit code {code}" if code > 0 else f"signal {-code} ({signal.Signals(-code).name})"
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    shown = lines[errors[-1] :] if errors and code > 0 else lines[-_SHOWN_LINES:]  # the traceback above it stays in the log
    introduction = f"its last lines ({failed.log}):" if shown else f"it wrote nothing to {failed.log}"
    print(f"error: rank {failed.number} of {num_processes} ended with {how}; {introduction}", file=sys.stderr)
    for line in shown:
        print(f"  | {line}", file=sys.stderr)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


SIGNAL_EXIT = 128
"""Exit codes above this one mean a signal, as in a shell."""
STOPPED_EXITS = frozenset(SIGNAL_EXIT + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1))
"""Exit codes after a request to stop."""
PREEMPTED_EXIT = 75
"""EX_TEMPFAIL of sysexits.h, "try again": a run that saved itself when it was asked to stop, and can be started again."""


def preempted_exit() -> int:
    """The exit code of a preempted rank of an outer launcher's job: torchrun takes any other than 0 for a failure."""
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else PREEMPTED_EXIT
