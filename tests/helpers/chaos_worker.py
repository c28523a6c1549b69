"""One rank of a run with injected faults: `launch/worker.py`, with faults planted at given points.

    chaos_worker.py RUN       faults: RUN/faults.json: {"batches": [{"step", "kind", "rank"}, …], "kill": {…} or null}

Batch faults, "nan" and "spike", change one rank's batch every time the step is reached. A kill happens once in a start:
{"number", "phase", "beat", "rank", "delay", "target", "signal"}. The rank `rank` sends `signal` to `target`, which is itself
("rank") or its launcher, `delay` seconds after it has announced an activity of the phase for the `beat`-th time. The file
RUN/kills/<number> records that this happened.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from launch.worker import die_with_launcher
from pipeline.checkpoint import checkpoint  # the module, in which `fsync_folder` is replaced
from pipeline.data.prefetch import Prefetch
from pipeline.distributed.watchdog import Watchdog
from pipeline.engine.engine import Engine
from pipeline.tracking.logs import configure_logging
from pipeline.training.hooks import checkpointing  # the module, in which `prune` is replaced
from pipeline.training.trainer import train

PHASES = {
    "load": "verifying|waiting for the other ranks to verify|building|opening|loading|comparing",
    "step": "training step",
    "save": "saving step|gathering|copying|writing|syncing|waiting for the other ranks to write",
    "finish": "completing the checkpoint|removing old checkpoints",
    "validation": "validating",
}
"""The activities of each phase, by the beginning of what is announced."""


class Kill:
    """The kill of this start, if it is this rank's."""

    def __init__(self, run: Path, **kill: Any) -> None:
        self._mark, self._kill, self._seen = run / "kills" / str(kill["number"]), kill, 0

    def see(self, activity: str) -> None:
        """Count an announced activity."""
        if re.match(PHASES[self._kill["phase"]], activity):
            self._seen += 1
            if self._seen == self._kill["beat"]:
                threading.Timer(self._kill["delay"], self._execute, [activity]).start()

    def _execute(self, activity: str) -> None:
        print(f"kill {self._kill} after {activity!r}", file=sys.stderr, flush=True)
        self._mark.parent.mkdir(exist_ok=True)
        self._mark.write_text(activity)
        os.kill(os.getpid() if self._kill["target"] == "rank" else os.getppid(), self._kill["signal"])


def plant_kill(kill: Kill) -> None:
    """Let the kill see what this rank announces to the watchdog, and the steps of completing a checkpoint."""
    beat, fsync_folder, prune = Watchdog.beat, checkpoint.fsync_folder, checkpointing.prune

    def seen_beat(self: Watchdog, activity: str) -> None:
        beat(self, activity)
        kill.see(activity)

    def seen_fsync(folder: Path) -> None:
        fsync_folder(folder)
        kill.see("completing the checkpoint")  # before it has its final name, and between that and `latest`

    def seen_prune(*arguments: Any) -> list[Path]:
        kill.see("removing old checkpoints")
        return prune(*arguments)

    Watchdog.beat = seen_beat  # type: ignore[method-assign]
    checkpoint.fsync_folder = seen_fsync
    checkpointing.prune = seen_prune


def plant_batch_faults(faults: list[dict[str, Any]], rank: int) -> None:
    """Change batches of this rank."""
    current = {"step": 0}
    original_step, original_batches = Engine.train_step, Prefetch.__call__

    def batches(self: Any, step: int) -> Any:  # the step's batches, which were made some steps earlier
        current["step"] = step
        return original_batches(self, step)

    def train_step(self: Engine, micro_batches: Any, rate: float, skip: bool = False) -> Any:
        for fault in faults:
            if (fault["step"], fault["rank"]) == (current["step"], rank):
                micro_batches[0][1][1].mul_(math.nan if fault["kind"] == "nan" else 50.0)
        return original_step(self, micro_batches, rate, skip)

    Prefetch.__call__ = batches  # type: ignore[method-assign]
    Engine.train_step = train_step  # type: ignore[method-assign]


def main(run: Path) -> int:
    """Train the run; returns the exit code."""
    die_with_launcher()
    configure_logging()
    torch.set_num_threads(1)
    rank, faults = int(os.environ["RANK"]), json.loads((run / "faults.json").read_bytes())
    plant_batch_faults(faults["batches"], rank)
    if faults["kill"] is not None and faults["kill"]["rank"] == rank:
        plant_kill(Kill(run, **faults["kill"]))
    try:
        train(run)
    except BaseException as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    os._exit(main(Path(sys.argv[1])))
