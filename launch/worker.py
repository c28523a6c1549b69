"""One rank of a local training run, started by path from `launch/local.py`. It ends when its launcher ends.

Usage: worker.py RUN_FOLDER…, trained one after another. The environment holds torchrun's variables (RANK, WORLD_SIZE, …), and
FNET_T5_LOG_LEVEL (debug, info, warning, error; default info) for the log records on stderr.
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
PROGRESS_PIPE = "FNET_T5_PROGRESS_PIPE"
"""The file descriptor to which a rank writes a byte when it makes progress (`pipeline/distributed/watchdog.py`)."""
_HERE = Path(__file__).resolve().parent
_PR_SET_PDEATHSIG = 1


def die_with_launcher(by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its launcher ends, even by kill -9 (Linux only).

    Exits immediately if the launcher, whose pid is in FNET_T5_LAUNCHER_PID, has already ended.
    """
    launcher = os.environ.get(LAUNCHER_PID)
    if launcher is None or sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, by, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed: this worker would outlive its launcher")
    # The kernel sends the signal when the parent dies; one that died before prctl must be found by its pid.
    if os.getppid() != int(launcher):
        os._exit(1)


def main() -> None:
    """Train the run folders of the command line; exit code 1, with the traceback on stderr, if that raises."""
    die_with_launcher()
    # Python 3.10 puts the folder of a script first (PYTHONSAFEPATH came with 3.11): our `config` would hide other modules.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]
    try:
        _validate_launch_package()
        from launch.identity import check_identity

        check_identity()
        from pipeline.tracking.logs import configure_logging

        configure_logging()
        with redirect_stdout(sys.stderr):  # rank 0's stdout is the terminal: output of libraries at import goes to the log
            from pipeline.training.trainer import train

        train(*map(Path, sys.argv[1:]))
    except ValueError as error:
        traceback.print_exc()
        _leave(f"error: {error}")
    except Exception as error:
        traceback.print_exc()
        _leave(f"error: {type(error).__name__}: {error}")


def _validate_launch_package() -> None:
    spec = find_spec("launch")
    folder = Path(next(iter(spec.submodule_search_locations))).resolve() if spec and spec.submodule_search_locations else None
    if folder != _HERE:
        raise ValueError(
            f"a worker of {_HERE} would import `launch` from {folder or 'nowhere'}: "
            "install the project with `pip install -e .`, and remove other folders from PYTHONPATH"
        )


def _leave(message: str) -> NoReturn:
    """Exit without Python's teardown, in which process groups wait for other ranks: the launcher waits for this exit."""
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
