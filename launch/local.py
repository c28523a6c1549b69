"""Several ranks on this machine: started together, ended together, each with its log, none left behind."""

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

from launch.worker import LAUNCHER_PID

WORKER = Path(__file__).with_name("worker.py")

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # SIGUSR1: how a scheduler warns of its limit
_POLL_SECONDS = 0.05
_SHOWN_LINES = 20
_SHOW_CURSOR = "\x1b[?25h"


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    """Bytes that earlier starts of this run left in the log."""

    def has_exited(self) -> bool:
        # WNOWAIT leaves the zombie, and with it the process group's number, until `reap`: killpg cannot hit a stranger.
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def terminate(self) -> None:
        """Ask the rank itself, not what it started: its own children may be needed for an orderly end."""
        os.kill(self.process.pid, signal.SIGTERM)

    def reap(self) -> int:
        """Kill whatever is left of the rank and of the processes it started, and return its exit code (-N for signal N)."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()


class _StopRequest:
    """The first SIGINT, SIGTERM, SIGHUP or SIGUSR1 asks for an orderly stop, the second one for an immediate one."""

    def __init__(self) -> None:
        self.signal = 0
        self.at_once = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.at_once = self.signal != 0
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
    stop_grace: float = 60.0,
    failure_grace: float = 10.0,
) -> int:
    """Run `worker RUN_DIR` as ranks 0 … num_processes - 1 and return an exit code: 0 when all of them end with 0.

    `then` are further run folders for the same processes, whose start takes longer than a small run; logs are the first one's.

    Rank 0's stdout stays on the terminal; everything else is appended to `run_dir/logs/rank_<r>.log`. When a rank fails
    the others get SIGTERM and, `failure_grace` seconds later, SIGKILL; its last lines are shown on stderr and its exit
    code is returned. Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 become SIGTERM for every rank, SIGKILL after `stop_grace` seconds
    (`failure_grace` where a rank ends badly meanwhile) or at the second Ctrl-C, and the exit code 128 + signal. If this
    process is killed, the kernel kills the ranks.

    Must be called from the main thread: only it may set signal handlers, and the kernel takes the end of the thread
    that started a rank for its launcher's. Raises ValueError for fewer than one process.
    """
    if num_processes < 1:
        raise ValueError(f"{num_processes} processes: start at least one")
    logs = run_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    stop = _StopRequest()
    ranks: list[_Rank] = []
    with stop.installed():
        try:
            port = _free_port()
            for number in range(num_processes):
                ranks.append(_start(number, num_processes, port, worker, [run_dir, *then], logs / f"rank_{number}.log"))
            failed = _wait(ranks, stop)
            if failed:
                _end(ranks, failure_grace, stop)
            elif stop.signal:
                print(f"stopping: up to {stop_grace:.0f} s for an orderly end, Ctrl-C again to kill", file=sys.stderr)
                _end(ranks, stop_grace, stop, failure_grace)
        finally:
            codes = [rank.reap() for rank in ranks]
            if sys.stdout.isatty():  # a rank that was killed inside its progress bar left the cursor hidden
                print(_SHOW_CURSOR, end="", flush=True)
    if failed:
        code = codes[failed.number]
        _report(failed, num_processes, code)
        return code if code > 0 else 128 - code
    return 128 + stop.signal if stop.signal else 0


def _start(number: int, num_processes: int, port: int, worker: Path, run_dirs: Sequence[Path], log: Path) -> _Rank:
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    environment = {
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
    with open(log, "ab") as file:
        log_start = file.tell()
        process = subprocess.Popen(
            [sys.executable, str(worker), *map(str, run_dirs)],
            stdin=subprocess.DEVNULL,
            stdout=None if number == 0 else file,
            stderr=file,
            env=environment,
            start_new_session=True,  # the terminal's Ctrl-C reaches this process alone, which passes it on once
        )
        return _Rank(number, process, log, log_start)


def _wait(ranks: list[_Rank], stop: _StopRequest) -> _Rank | None:
    """Return when a stop is asked for or all ranks ended well (None), or else the rank that failed first."""
    running = list(ranks)
    while running and not stop.signal:
        ended = [rank for rank in running if rank.has_exited()]
        failures = {rank.number: code for rank in ended if (code := _peek(rank)) != 0}
        if failures:
            # Peers of a killed rank fail within milliseconds of it: of those found together, a signal is the likelier cause.
            first = min(failures, key=lambda number: (failures[number] > 0, number))
            return ranks[first]
        running = [rank for rank in running if rank not in ended]
        time.sleep(_POLL_SECONDS)
    return None


def _peek(rank: _Rank) -> int:
    """Exit code of a rank that has exited, which stays unreaped; -N for signal N."""
    result = os.waitid(os.P_PID, rank.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    assert result is not None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def _end(ranks: list[_Rank], grace: float, stop: _StopRequest, grace_after_failure: float = math.inf) -> None:
    """SIGTERM to every rank, then wait until all have exited, `grace` seconds have passed or a second Ctrl-C comes.

    Once a rank has ended badly the others, which may wait for it in a collective, get `grace_after_failure` seconds more.
    """
    for rank in ranks:
        rank.terminate()
    deadline = time.monotonic() + grace
    someone_failed = False
    while time.monotonic() < deadline and not stop.at_once and not all(rank.has_exited() for rank in ranks):
        if not someone_failed and any(rank.has_exited() and _peek(rank) != 0 for rank in ranks):
            someone_failed = True
            deadline = min(deadline, time.monotonic() + grace_after_failure)
        time.sleep(_POLL_SECONDS)


def _report(failed: _Rank, num_processes: int, code: int) -> None:
    with open(failed.log, "rb") as file:
        file.seek(failed.log_start)
        lines = file.read().decode("utf-8", "replace").splitlines()
    how = f"exit code {code}" if code > 0 else f"signal {-code} ({signal.Signals(-code).name})"
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    shown = lines[errors[-1] :] if errors and code > 0 else lines[-_SHOWN_LINES:]  # the traceback before it stays in the log
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
"""Exit codes above this one stand for a signal, as in a shell."""
STOPPED_EXITS = frozenset(SIGNAL_EXIT + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1))
"""Somebody asked for the end."""
PREEMPTED_EXIT = 75
"""sysexits.h's "temporary failure, try again": what saved itself when it was asked to stop, and waits to be started again."""
