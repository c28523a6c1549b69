"""Starts runs as `fnet-t5 train` does, again and again, without importing everything each time, which takes seconds a rank.

    chaos_launcher.py     stdin: a run folder and a number of ranks, one start a line; stdout: the exit code of each

Launcher and ranks are forked from this process after the imports. All else is `launch.local.run_local`, and the ranks are
those of `chaos_worker.py`. What the launcher prints goes to RUN/terminal.log.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from launch import local
from launch.worker import die_with_launcher
from tests.helpers import chaos_worker

_PR_SET_CHILD_SUBREAPER = 36


class Forked:
    """A rank, in place of a `subprocess.Popen` of the worker."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdout: Any,
        stderr: Any,
        env: Mapping[str, str],
        start_new_session: bool,
        **ignored: Any,
    ) -> None:
        assert start_new_session
        self.pid = os.fork()
        if self.pid == 0:
            self._run(Path(command[-1]), stdout, stderr, env)

    def _run(self, run: Path, stdout: Any, stderr: Any, env: Mapping[str, str]) -> NoReturn:
        code = 1
        try:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            if stdout is not None:
                os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            os.environ.clear()
            os.environ.update(env)
            code = chaos_worker.main(run)
        finally:
            sys.stdout.flush()
            os._exit(code)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def launch(run: Path, num_ranks: int) -> NoReturn:
    """Be the launcher of one start."""
    code = 1
    try:
        terminal = os.open(run / "terminal.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(terminal, stream)
        code = local.run_local(run, num_ranks)
    finally:
        sys.stdout.flush()
        os._exit(code)


def main() -> None:
    """Serve starts until stdin is closed."""
    die_with_launcher()
    for number in (signal.SIGINT, signal.SIGHUP):  # shells start background jobs with SIGINT ignored, and nohup with SIGHUP
        signal.signal(number, signal.SIG_DFL)
    # ranks whose launcher is killed become children of this process
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    local.subprocess = SimpleNamespace(Popen=Forked, DEVNULL=None)  # type: ignore[assignment]
    for line in sys.stdin:
        run, num_ranks = line.rsplit(maxsplit=1)
        launcher = os.fork()
        if launcher == 0:
            launch(Path(run), int(num_ranks))
        code = os.waitstatus_to_exitcode(os.waitpid(launcher, 0)[1])
        while True:  # the next start must not meet ranks of this one
            try:
                os.wait()
            except ChildProcessError:
                break
        print(code, flush=True)


if __name__ == "__main__":
    main()
