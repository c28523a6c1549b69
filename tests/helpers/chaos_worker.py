"""One rank of a run with injected faults: `launch/worker.py`, with faults planted at given steps.

    chaos_worker.py RUN       faults: RUN/faults.json: [{"step", "kind", "rank", "once"}, …]

Kinds: "nan" and "spike" change one rank's batch every time the step is reached. "kill", "term" and "kill_in_save" happen once;
a file in RUN/faults records that they happened.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint import checkpoint  # the module, in which `finish` is replaced
from pipeline.data.prefetch import Prefetch
from pipeline.engine.engine import Engine
from pipeline.training.trainer import train

RUN = Path(sys.argv[1])
RANK = int(os.environ["RANK"])
FAULTS = json.loads((RUN / "faults.json").read_text())


def first_time(fault: dict[str, Any]) -> bool:
    mark = RUN / "faults" / f"{fault['kind']}_{fault['step']}"
    if mark.exists():
        return False
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
    return True


def at(step: int, *kinds: str) -> list[dict[str, Any]]:
    return [fault for fault in FAULTS if fault["step"] == step and fault["kind"] in kinds and fault["rank"] == RANK]


def plant() -> None:
    original_step, original_finish = Engine.train_step, checkpoint.finish
    current = {"step": 0}
    original_batches = Prefetch.__call__

    def batches(self: Any, step: int) -> Any:  # the step's batches, which were made some steps earlier
        current["step"] = step
        return original_batches(self, step)

    def train_step(self: Engine, micro_batches: Any, rate: float, skip: bool = False) -> Any:
        step = current["step"]
        for fault in at(step, "nan", "spike"):
            micro_batches[0][1][1].mul_(math.nan if fault["kind"] == "nan" else 50.0)
        result = original_step(self, micro_batches, rate, skip)
        for fault in at(step, "kill", "term"):
            if first_time(fault):
                if fault["kind"] == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                os.kill(os.getppid(), signal.SIGUSR1 if step % 2 else signal.SIGTERM)  # the launcher forwards it
        return result

    def finish(partial: Path, final: Path, position: Any, sums: Any = None) -> None:
        for fault in at(position.step, "kill_in_save"):
            if first_time(fault):
                os.kill(os.getpid(), signal.SIGKILL)
        original_finish(partial, final, position, sums)

    Prefetch.__call__ = batches  # type: ignore[method-assign]
    Engine.train_step = train_step  # type: ignore[method-assign]
    checkpoint.finish = finish


if __name__ == "__main__":
    from launch.worker import die_with_launcher

    die_with_launcher()
    torch.set_num_threads(1)
    plant()
    try:
        train(RUN)
    except BaseException as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
