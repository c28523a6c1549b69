"""A run that is killed at twenty random points ends with exactly the losses and files of a run that nothing disturbs."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launch.worker import LAUNCHER_PID
from pipeline.checkpoint.checkpoint import verify
from pipeline.checkpoint.load_check import LOAD_CHECK_FILE
from pipeline.checkpoint.optimizer_state import rank_file
from pipeline.run_folder import checkpoints_of, checksums, find, read_status
from pipeline.tracking.metrics import read_metrics
from tests.helpers.processes import HELPERS, REPOSITORY
from tests.helpers.recipes import nano_recipe, write_run

STEPS, NUM_RANKS = 44, 4
BATCH_FAULTS = [
    {"step": 15, "kind": "nan", "rank": 3},
    {"step": 22, "kind": "spike", "rank": 2},
    {"step": 31, "kind": "nan", "rank": 2},
]
# How many kills each phase gets, which beats are possible there, and how many seconds after a beat at most.
PHASES = {
    "step": (7, 2, 0.1),
    "save": (5, 12, 0.03),
    "load": (4, 12, 0.03),
    "validation": (2, 3, 0.02),
    "finish": (2, 6, 0.003),
}
TARGETS = ["rank"] * 10 + ["launcher"] * 4 + ["stop"] * 6
STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]


def random_kills(seed: int) -> list[dict[str, Any]]:
    """Twenty kills in the form of `chaos_worker.py`. The first one is a stop after some steps: there is then a checkpoint."""
    draw = random.Random(seed)
    phases = [phase for phase, (number, _, _) in PHASES.items() for _ in range(number)]
    targets = list(TARGETS)
    draw.shuffle(phases)
    draw.shuffle(targets)
    for names, first in ((phases, "step"), (targets, "stop")):
        names.remove(first)
        names.insert(0, first)
    kills = []
    for number, (phase, target) in enumerate(zip(phases, targets, strict=True)):
        _, beats, seconds = PHASES[phase]
        kills.append(
            {
                "number": number,
                "phase": phase,
                "beat": draw.randint(1, beats),
                "delay": draw.uniform(0, seconds),
                "rank": 0 if phase == "finish" else draw.randrange(NUM_RANKS),  # rank 0 completes checkpoints
                "target": "rank" if target == "rank" else "launcher",
                "signal": draw.choice(STOPS) if target == "stop" else signal.SIGKILL,
            }
        )
    return kills


@contextmanager
def started_launcher(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """`chaos_launcher.py`, which starts a run for each line of its stdin."""
    process = subprocess.Popen(
        [sys.executable, str(HELPERS / "chaos_launcher.py")],
        env={**environment, LAUNCHER_PID: str(os.getpid())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def start(launcher: subprocess.Popen[str], run: Path, kill: dict[str, Any] | None = None, batches: Any = ()) -> int:
    """Start a run with faults; returns the exit code of its launcher (-N if signal N killed that)."""
    assert launcher.stdin is not None
    assert launcher.stdout is not None
    (run / "faults.json").write_text(json.dumps({"batches": list(batches), "kill": kill}))
    launcher.stdin.write(f"{run} {NUM_RANKS}\n")
    launcher.stdin.flush()
    return int(launcher.stdout.readline())


def without_times(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl but what depends on clock and machine, and what a skipped step would have been."""
    measured = re.compile("seconds|tokens_per_second|tflops_per_device|data_wait_seconds|memory_gb|system_.*")
    rows = [
        {name: value for name, value in row.items() if not measured.fullmatch(name)}
        for row in read_metrics(run / "metrics.jsonl")
    ]
    return [{"step": row["step"]} if "skipped" in row else row for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_change_no_loss_and_no_file(tmp_path: Path, dataset: Path) -> None:
    """Ranks and launchers are killed or asked to stop while they load, train, validate, save, rename and remove checkpoints."""
    recipe = nano_recipe(
        dataset,
        mesh={"pipeline_parallel": 2},
        train={"steps": STEPS, "checkpoint_every": 3, "validate_every": 4, "keep_last": 2, "spike_window": 16},
        optimizer={"learning_rate": 0.002, "warmup_steps": 3, "decay_steps": STEPS},
    )
    faulty, undisturbed = write_run(tmp_path / "faulty", recipe), tmp_path / "undisturbed"
    asked = {"skip_steps": [fault["step"] for fault in BATCH_FAULTS], "spike_sigma": 0}
    write_run(undisturbed, {**recipe, "train": {**recipe["train"], **asked}})
    kills, marks = random_kills(seed=17), faulty / "kills"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY)}
    codes: list[int] = []
    with started_launcher(environment) as launcher:
        while read_status(faulty) != "finished":
            assert len(codes) < len(kills) + 5, codes
            num_killed = len(list(marks.iterdir())) if marks.is_dir() else 0
            codes.append(start(launcher, faulty, kills[num_killed] if num_killed < len(kills) else None, BATCH_FAULTS))
        assert start(launcher, undisturbed) == 0
    assert codes[-1] == 0
    assert sorted(int(mark.name) for mark in marks.iterdir()) == list(range(20))
    assert Counter(kill["target"] for kill in kills) == {"rank": 10, "launcher": 10}
    assert codes.count(-signal.SIGKILL) == 4  # launchers

    rows = read_metrics(faulty / "metrics.jsonl")
    skipped = {row["step"]: row["skipped"] for row in rows if "skipped" in row}
    assert skipped == {15: "not finite", 22: "spike", 31: "not finite"}
    assert [row["step"] for row in rows if "tokens_per_second" in row] == list(range(1, STEPS + 1))
    assert without_times(faulty) == without_times(undisturbed)  # losses, gradient norms, validations, counted tokens
    last = find(faulty, STEPS)
    verify(last)
    other = find(undisturbed, STEPS)
    same = [name for name in checksums(last) if name.startswith("weights/") or name.endswith(LOAD_CHECK_FILE)]
    assert len(same) == 2 + 2  # two stages, the index and the stored logits
    assert [checksums(last)[name] for name in same] == [checksums(other)[name] for name in same]
    for rank in range(NUM_RANKS):  # safetensors writes metadata in any order, so these files have different hashes
        ours, theirs = (load_file(path / "state" / "engine" / rank_file(rank)) for path in (last, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert sorted(path.name for path in checkpoints_of(faulty).iterdir()) == ["latest", "step_00000042", "step_00000044"]
