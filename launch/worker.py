"""One rank of a local training run, started by path from `launch/local.py`: bound to its parent's life, then the trainer.

Usage: worker.py RUN_FOLDER…, one after another, with torchrun's variables (RANK, WORLD_SIZE, …) in the environment.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

LAUNCHER_PID = "FNET_T5_LAUNCHER_PID"
_HERE = Path(__file__).resolve().parent
_PR_SET_PDEATHSIG = 1


def die_with_launcher() -> None:
    """Have the kernel kill this process when its launcher ends, even by kill -9 (Linux only).

    Leaves at once if the launcher, whose pid is in FNET_T5_LAUNCHER_PID, has already gone.
    """
    launcher = os.environ.get(LAUNCHER_PID)
    if launcher is None or sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed: this worker would outlive its launcher")
    # The signal is sent on the parent's death, not on its being dead: close the window before prctl.
    if os.getppid() != int(launcher):
        os._exit(1)


def main() -> None:
    """Train the run folders of the command line; exit code 1, with the traceback on stderr, if that raises."""
    die_with_launcher()
    # Started by path, Python 3.10 puts this folder first (PYTHONSAFEPATH came with 3.11): our `config` would hide others'.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]
    try:
        _refuse_other_launch()
        from launch.identity import check_identity

        check_identity()
        with redirect_stdout(sys.stderr):  # rank 0's stdout is the terminal: what libraries say at import goes to the log
            from pipeline.training.trainer import train

        train(*map(Path, sys.argv[1:]))
    except ValueError as error:
        traceback.print_exc()
        _leave(f"error: {error}")
    except Exception as error:
        traceback.print_exc()
        _leave(f"error: {type(error).__name__}: {error}")


def _refuse_other_launch() -> None:
    spec = find_spec("launch")
    folder = Path(next(iter(spec.submodule_search_locations))).resolve() if spec and spec.submodule_search_locations else None
    if folder != _HERE:
        raise ValueError(
            f"a worker of {_HERE} would import `launch` from {folder or 'nowhere'}: "
            "install the project with `pip install -e .`, and take other folders off PYTHONPATH"
        )


def _leave(message: str) -> NoReturn:
    """End without Python's teardown: destructors of process groups wait for peers, and the launcher waits for this exit."""
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
