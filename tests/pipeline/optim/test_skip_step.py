"""Spike detection, the watchdog, pruning of checkpoints, the choice of the checkpoint to resume, and signals."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.files import write_json_atomically
from pipeline.checkpoint.retention import prune
from pipeline.optim.skip_step import ASKED, NOT_FINITE, SPIKE, TAKEN, SkipStepGuard, SpikeDetector
from pipeline.run_folder import LATEST, STATE, checkpoints_of, latest, step_name
from tests.helpers.processes import free_port


def test_spikes_are_six_deviations_above_recent_steps() -> None:
    rng = np.random.default_rng(0)
    losses = 3 + 0.1 * rng.standard_normal(400)
    detector = SpikeDetector()
    for loss in losses:
        assert not detector.is_spike(float(loss), 1.0)
        detector.record(float(loss), 1.0 + 1e-3 * float(loss))
    mean, deviation = np.mean(losses[-128:]), np.std(losses[-128:], ddof=1)
    assert not detector.is_spike(float(mean + 5.9 * deviation), 1.0)
    assert detector.is_spike(float(mean + 6.1 * deviation), 1.0)
    assert detector.is_spike(3.0, 2.0)  # only the gradient norm
    assert not detector.is_spike(0.1, 0.1)  # a lower value is no spike
    restored = SpikeDetector()
    restored.restore(json.loads(json.dumps(detector.state())))
    assert restored.is_spike(float(mean + 6.1 * deviation), 1.0)
    assert restored.is_spike(3.0, 2.0)
    assert restored.state() == detector.state()


def guard_of(optimizer: Any, parameters: Sequence[Any] = (), data_parallel: int = 1) -> SkipStepGuard:
    engine = SimpleNamespace(optimizer=optimizer)
    stages = SimpleNamespace(canonical_parameters=lambda: parameters)
    mesh = SimpleNamespace(tensor_rank=0, data_parallel=data_parallel, device="cpu")
    return SkipStepGuard(engine, stages, mesh, spikes=SpikeDetector(), clip=1.0, step=lambda engine: None)  # type: ignore[arg-type]


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[torch.Tensor], None]]:
    """Other ranks: what they do to the tensor of an all-reduce. None: this process is alone."""
    found: list[Callable[[torch.Tensor], None]] = []

    def all_reduce(tensor: torch.Tensor, op: Any = None) -> None:
        for add in found:
            add(tensor)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    return found


@pytest.mark.parametrize("norm", [-1.0, math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_never_taken(norm: float, others: list[Any]) -> None:
    """DeepSpeed reports -1 for it, while the loss may be finite: only the gradient is bad."""
    guard = guard_of(SimpleNamespace(scaled_global_norm=lambda: torch.tensor(norm)))
    assert not math.isfinite(guard._norm())
    assert guard._verdict(3.0, guard._norm()) == NOT_FINITE
    assert guard._verdict(3.0, 1.0) == TAKEN
    assert guard._verdict(math.nan, 1.0) == NOT_FINITE


@pytest.mark.parametrize("verdict", [ASKED, SPIKE, NOT_FINITE])
def test_the_worst_verdict_of_any_rank_is_that_of_all(verdict: int, others: list[Any]) -> None:
    others.append(lambda tensor: tensor.clamp_(min=verdict))
    assert guard_of(None)._verdict(3.0, 1.0) == verdict


@pytest.mark.parametrize("data_parallel", [1, 2, 4])
def test_the_norm_without_zero_counts_every_parameter_once(data_parallel: int, others: list[Any]) -> None:
    """The sum over all ranks holds the gradients of every replica, which are equal."""
    others.append(lambda tensor: tensor.mul_(data_parallel))
    gradients = [torch.randn(5, 3), torch.randn(7)]

    def entry(gradient: torch.Tensor | None, is_copy: bool = False) -> Any:
        parameter = SimpleNamespace(grad=gradient)
        return SimpleNamespace(parameter=parameter, is_copy=is_copy, shard_dim=None)

    entries = [*map(entry, gradients), entry(torch.ones(9), is_copy=True), entry(None)]
    expected = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
    assert guard_of(SimpleNamespace(), entries, data_parallel)._norm() == pytest.approx(expected, rel=1e-6)


def test_a_lasting_new_level_is_accepted_and_a_huge_value_does_not_hide_the_next() -> None:
    """Without this, a norm that rises for good would be skipped until `train.max_skips` fails a healthy run."""
    generator = np.random.default_rng(0)
    detector = SpikeDetector()
    for norm in 1 + 0.02 * generator.standard_normal(128):
        detector.record(2.0, float(norm))
    detector.record(2.0, 1e9)
    assert detector.is_spike(2.0, 1.3)
    skipped = 0
    for norm in 1.5 + 0.02 * generator.standard_normal(20):
        skipped += detector.is_spike(2.0, float(norm))
        detector.record(2.0, float(norm))
    assert 0 < skipped < 15
    assert not detector.is_spike(2.0, 1.5)
    assert detector.is_spike(2.0, 1e9)


def test_no_spike_is_reported_before_half_a_window() -> None:
    detector = SpikeDetector(window=8)
    for _ in range(3):
        detector.record(1.0, 1.0)
    assert not detector.is_spike(100.0, 100.0)
    detector.record(1.0, 1.0)
    assert detector.is_spike(100.0, 100.0)


def checkpoint(run: Path, step: int, whole: bool = True) -> Path:
    path = checkpoints_of(run) / step_name(step)
    (path / STATE).mkdir(parents=True)
    if whole:
        (path / "weights.bin").write_bytes(b"w")
    write_json_atomically(path / STATE / "manifest.json", {"step": step, "sha256": {"weights.bin": "?"}})
    return path


def test_the_newest_complete_checkpoint_is_resumed(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    for step in (5, 10):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 15, whole=False)
    (checkpoints_of(tmp_path) / f".{step_name(20)}.partial").mkdir()
    pointer = checkpoints_of(tmp_path) / LATEST
    for content, expected in (("step_00000005", 5), ("step_00000015", 10), ("step_00000099", 10), (None, 10)):
        pointer.unlink(missing_ok=True)
        if content is not None:
            pointer.write_text(content + "\n")
        found = latest(tmp_path)
        assert found is not None
        assert found.name == step_name(expected)


def test_old_checkpoints_are_removed_and_permanent_ones_kept(tmp_path: Path) -> None:
    for step in range(5, 45, 5):
        checkpoint(tmp_path, step)
    assert prune(tmp_path, None, None) == []
    prune(tmp_path, keep_last=2, keep_every=20, keep=(10, 15))
    left = sorted(int(path.name[5:]) for path in checkpoints_of(tmp_path).iterdir())
    assert left == [10, 15, 20, 35, 40]
    prune(tmp_path, keep_last=1, keep_every=None)
    assert [path.name for path in checkpoints_of(tmp_path).iterdir()] == ["step_00000040"]


_RANKS = """
import os, sys, time
sys.path.insert(0, {root!r})
import torch
from datetime import timedelta
from pipeline.distributed.watchdog import Watchdog
torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
rank = torch.distributed.get_rank()
watchdog = Watchdog(rank, 2, hang_seconds={hang}, peer_seconds=4)
watchdog.start()
watchdog.beat("training step 7")
def waits_for_nothing():
    {body}
waits_for_nothing()
"""


def ranks(hang: float, body: str) -> list[subprocess.Popen[str]]:
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    code = _RANKS.format(root=str(Path(__file__).parents[3]), hang=hang, body=body)
    return [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**environment, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]


def test_a_hang_prints_every_ranks_stack_and_ends_them() -> None:
    processes = ranks(3, "time.sleep(1000)")
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 1
        assert "no progress for" in errors
        assert "training step 7" in errors
        assert "in waits_for_nothing" in errors


def test_a_silent_or_failed_rank_ends_the_other_with_the_reason() -> None:
    failing = ranks(500, "time.sleep(3)\n    if rank: watchdog.fail('ValueError: bad data'); os._exit(1)\n    time.sleep(1000)")
    _, errors = failing[0].communicate(timeout=200)
    assert "rank 1: ValueError: bad data" in errors
    failing[1].communicate(timeout=60)
    killed = ranks(500, "print('up', file=sys.stderr, flush=True); time.sleep(1000)")
    assert killed[1].stderr is not None
    while "up" not in killed[1].stderr.readline():
        pass
    time.sleep(3)  # a few heartbeats
    killed[1].send_signal(signal.SIGKILL)
    _, errors = killed[0].communicate(timeout=200)
    assert killed[0].returncode == 1
    assert "rank 1 has been silent" in errors
    killed[1].communicate(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_signals_are_remembered(number: signal.Signals) -> None:
    from pipeline.training.hooks.preemption import StopSignal

    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)}
    try:
        stop = StopSignal()
        stop.install()
        os.kill(os.getpid(), number)
        assert stop.received
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
