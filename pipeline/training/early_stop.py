"""A signal that reaches a rank of torchrun or srun before its first step: the rank ends, and STATUS says `preempted`.

Nothing slow is imported here, so that the signals are watched while torch is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_prep.files import FolderInUseError, atomic_write, only_writer
from pipeline.training.hooks.preemption import StopSignal

_STATUS = "STATUS"  # as in pipeline/run_folder.py, which imports torch


@contextmanager
def stops_at_signal(folder: Path, exit_code: int) -> Iterator[StopSignal]:
    """Until its run is ready for the first step, a signal ends a rank of an outer launcher's job with `exit_code`.

    STATUS is not written where there is none: until the run is checked, the folder may not be its own. Local processes have no
    need of this: what starts them settles STATUS.
    """
    stop = StopSignal()
    if "RANK" not in os.environ:
        yield stop
        return

    def settle(reason: str) -> None:
        if os.environ["RANK"] == "0" and (folder / _STATUS).is_file():
            with suppress(FolderInUseError), only_writer(folder), atomic_write(folder / _STATUS) as file:
                file.write(b"preempted\n")

    stop.at_start = settle
    with stop.watched(exit_code):
        yield stop
