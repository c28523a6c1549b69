"""Runs at the same time: their devices and priorities, and that none is left when the pool is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.scaling.pool import JobSlots

POOL = """
import sys
from pathlib import Path
from types import SimpleNamespace as Record
import launch.scaling.pool as pool

pool._CHILD = '''
import json, os, signal, sys, time
from pathlib import Path
from launch.worker import die_with_launcher
_, group, verb, folder, only, name = ["", *sys.argv[1:]]
def stop(number, frame):
    Path(folder, f"{name}.stopped").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
die_with_launcher(signal.SIGTERM)
names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
state = {"nice": os.nice(0), **{key: os.environ.get(key) for key in names}}
Path(folder, f"{name}.part").write_text(json.dumps(state))
Path(folder, f"{name}.part").rename(Path(folder, f"{name}.started"))
time.sleep(60)
'''
folder = Path(sys.argv[1])
runs = [Record(name=name, phase="sweep", size=size) for name, size in (("a", "s"), ("wide", "m"), ("b", "s"))]
ladder = Record(recipe=Record(sizes={"s": Record(num_processes=1), "m": Record(num_processes=2)}))
slots = pool.JobSlots(jobs=3, devices=("4", "5"), threads=2, niceness=3)
pool.Pool(folder, ladder, slots=slots, minutes=None, log=print).run(runs)
"""


def appeared(*paths: Path) -> bool:
    deadline = time.monotonic() + 60
    while not all(path.is_file() for path in paths) and time.monotonic() < deadline:
        time.sleep(0.05)
    return all(path.is_file() for path in paths)


def test_runs_have_devices_of_their_own_and_end_with_a_killed_pool(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    pool = subprocess.Popen([sys.executable, "-c", POOL, str(tmp_path)], env=environment)
    try:
        assert appeared(tmp_path / "a.started", tmp_path / "b.started")
        states = {name: json.loads((tmp_path / f"{name}.started").read_text()) for name in ("a", "b")}
    finally:
        os.kill(pool.pid, signal.SIGKILL)
        pool.wait()
    assert [states[name]["CUDA_VISIBLE_DEVICES"] for name in ("a", "b")] == ["4", "5"]
    assert not (tmp_path / "wide.started").exists()  # it needs both
    assert {state["OMP_NUM_THREADS"] for state in states.values()} == {"2"}
    assert {state["nice"] for state in states.values()} == {os.nice(0) + 3}
    assert appeared(tmp_path / "a.stopped", tmp_path / "b.stopped")  # both were asked to save


def test_jobs_follow_the_cores_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert JobSlots.automatic() == JobSlots(jobs=2, threads=3)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert JobSlots.automatic(niceness=5) == JobSlots(jobs=8, threads=1, niceness=5)


def test_one_job_has_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert JobSlots.automatic() == JobSlots(jobs=3, devices=("0", "1", "2"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,7")
    assert JobSlots.automatic() == JobSlots(jobs=2, devices=("2", "7"))
