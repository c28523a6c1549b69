"""The last lines and exit codes of programs that are interrupted or killed, or whose output nobody reads."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.prepare.ending import DIED, INTERRUPTED

_START = """
import os, signal, sys, time, typer
from launch.prepare.ending import *
def program():
    {body}
typer.run(program)
"""


def _start(body: str, **kwargs: object) -> "subprocess.Popen[str]":
    program = [sys.executable, "-c", _START.format(body=body)]
    return subprocess.Popen(program, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **kwargs)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_with_one_line_and_its_exit_code(number: int, code: int) -> None:
    process = _start("with one_line_when_killed(), one_line_when_interrupted(): print('ready', flush=True); time.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, f"{INTERRUPTED}\n")


@pytest.mark.parametrize("death", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(1)"])
def test_a_sudden_death_leaves_one_line(death: str) -> None:
    """As when the kernel kills the process for memory, or Ray ends it because its raylet was killed."""
    process = _start(f"with one_line_when_killed(): {death}")
    assert process.communicate(timeout=60)[1] == f"{DIED}\n"
    process = _start(f"with one_line_when_killed(): print('done')\n    {death}")
    assert process.communicate(timeout=60)[1] == ""


def test_an_output_that_nobody_reads_is_no_error(tmp_path: Path) -> None:
    body = "with output_may_be_closed(): [typer.echo('line', nl=True) or sys.stdout.flush() for _ in range(99999)]"
    process = _start(body + f"\n    open({str(tmp_path / 'done')!r}, 'w').close()")
    assert process.stdout is not None
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "done").exists()
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_a_deleted_current_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    program = "import os; os.chdir('gone'); os.rmdir('../gone'); from launch.cli import main; import sys; "
    program += "sys.argv = ['fnet-t5', 'data', 'verify', 'x']; main()"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: the current folder was deleted: change to another folder and rerun the command\n"
