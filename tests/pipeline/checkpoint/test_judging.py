"""Damaged, incomplete and diverged checkpoints, leftovers of interrupted saves, and saves that fail."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from launch.cli import _GlobalOptions, build_app
from pipeline.checkpoint import checkpoint as saving
from pipeline.checkpoint import resume as resuming
from pipeline.checkpoint.branch import branch
from pipeline.checkpoint.checkpoint import NotFiniteError, Position, finish, save, verify
from pipeline.checkpoint.resume import newest_intact
from pipeline.checkpoint.retention import prune, remove_leftovers
from pipeline.run_folder import by_preference, checkpoints_of, find, latest, problem
from pipeline.tracking.metrics import Counters


def position(step: int) -> Position:
    return Position(
        step=step, seed=0, dataset_fingerprint="f", counters=Counters(), mesh={"tensor": 1, "pipeline": 1, "data": 1}
    )


def make(run: Path, step: int, logits: float = 1.0) -> Path:
    """A checkpoint with real checksums."""
    final = checkpoints_of(run) / f"step_{step:08d}"
    partial = final.with_name(f".{final.name}.partial")
    for folder in ("weights", "state/engine"):
        (partial / folder).mkdir(parents=True)
    save_file({"w": torch.full((4,), float(step))}, partial / "weights" / "model-00001-of-00001.safetensors")
    save_file({"logits": torch.full((3, 5), logits)}, partial / "state" / "probe.safetensors")
    save_file({"m": torch.zeros(2)}, partial / "state" / "engine" / "rank_00000.safetensors")
    finish(partial, final, position(step))
    return final


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.fixture
def mesh() -> Iterator[Any]:
    """One process as the whole mesh."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield SimpleNamespace(
        is_main=True, rank=0, world_size=1, tensor_rank=0, data_rank=0, any=lambda *flags: tuple(map(bool, flags))
    )
    torch.distributed.destroy_process_group()


def command(*arguments: object) -> int:
    return int(build_app(_GlobalOptions())([str(one) for one in arguments], standalone_mode=False) or 0)


MANIFESTS = {
    "empty": b"",
    "cut": b'{"step": 4, "sha256": {"a',
    "other": b'["a"]',
    "no sums": b'{"sha256": {}}',
    "binary": b"\xff",
}


@pytest.mark.parametrize("content", MANIFESTS.values(), ids=MANIFESTS)
def test_a_damaged_manifest_is_named_by_every_command(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, 2)
    manifest = make(tmp_path, 4) / "state" / "manifest.json"
    manifest.write_bytes(content)
    found = problem(manifest.parents[1])
    assert found is not None
    assert found.startswith(f"{manifest} ({len(content)} bytes) is not a manifest of checksums: ")
    with pytest.raises(ValueError, match=r"manifest\.json .* is not a manifest"):
        verify(manifest.parents[1])
    with pytest.raises(ValueError, match=r"manifest\.json .* is not a manifest"):
        find(tmp_path, 4)
    with caplog.at_level(logging.WARNING):
        assert find(tmp_path).name == "step_00000002"
    assert found in caplog.text
    assert "using step_00000002" in caplog.text
    assert command("checkpoint", "list", tmp_path) == 0
    assert "will not be loaded" in capsys.readouterr().out
    assert command("checkpoint", "verify", tmp_path) == 1
    printed = capsys.readouterr()
    assert "step_00000002: all checksums match" in printed.out
    assert found in printed.err


def test_a_missing_shard_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, 2)
    shard = next((make(tmp_path, 4) / "weights").iterdir())
    shard.unlink()
    with caplog.at_level(logging.WARNING):
        assert find(tmp_path).name == "step_00000002"
    assert f"{shard} is missing" in caplog.text
    with pytest.raises(ValueError, match=f"{shard.name} is missing"):
        find(tmp_path, 4)


def test_a_branch_from_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    flip(make(tmp_path / "parent", 2) / "state" / "engine" / "rank_00000.safetensors")
    with pytest.raises(ValueError, match=r"rank_00000\.safetensors differs from its checksum"):
        branch(tmp_path / "parent", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_run_resumes_from_the_newest_checkpoint_that_can_be_used(tmp_path: Path, mesh: Any) -> None:
    for step in (2, 4, 6, 8, 10):
        make(tmp_path, step, logits=float("nan") if step == 8 else 1.0)
    folder = checkpoints_of(tmp_path)
    (folder / "step_00000010/state/probe.safetensors").unlink()  # missing
    flip(folder / "step_00000006/state/engine/rank_00000.safetensors")
    activities: list[str] = []
    found = newest_intact(tmp_path, mesh, activities.append)
    assert found.checkpoint == folder / "step_00000004"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        "step_00000002",
        "step_00000004",
        "step_00000006.damaged",
        "step_00000008.diverged",
        "step_00000010.damaged",
    ]
    texts = ["probe.safetensors is missing", "outputs are not finite", "rank_00000.safetensors differs from its checksum"]
    texts.append("resuming from step_00000004 instead")  # the start may have named a newer one
    assert all(text in note for text, note in zip(texts, found.notes, strict=True))
    # every file that is read counts as progress
    assert sum(activity.startswith("verifying step_00000004/") for activity in activities) == 4
    flip(folder / "step_00000002/weights/model-00001-of-00001.safetensors")
    flip(folder / "step_00000004/weights/model-00001-of-00001.safetensors")
    with pytest.raises(ValueError, match=r"has no intact checkpoint: .*differs from its checksum"):
        newest_intact(tmp_path, mesh, activities.append)
    with pytest.raises(ValueError, match=r"earlier starts have set aside step_00000002\.damaged, .*delete the folders"):
        newest_intact(tmp_path, mesh, activities.append)  # a second start does not begin at step 0
    assert newest_intact(tmp_path / "new", mesh, activities.append).checkpoint is None


def test_an_older_checkpoint_named_by_latest_is_resumed_and_the_newer_ones_stay(tmp_path: Path, mesh: Any) -> None:
    for step in (2, 4, 6):
        make(tmp_path, step)
    folder = checkpoints_of(tmp_path)
    (folder / "latest").write_text("step_00000004\n")
    (folder / "step_00000006/state/probe.safetensors").unlink()
    assert newest_intact(tmp_path, mesh, str).checkpoint == folder / "step_00000004"
    assert [path.name for path in by_preference(tmp_path)] == ["step_00000004", "step_00000002", "step_00000006"]


def test_a_damaged_checkpoint_does_not_push_out_a_good_one(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        make(tmp_path, step)
    (checkpoints_of(tmp_path) / "step_00000006/state/probe.safetensors").unlink()
    assert prune(tmp_path, 1, None) == [checkpoints_of(tmp_path) / "step_00000002"]
    assert latest(tmp_path) == checkpoints_of(tmp_path) / "step_00000004"


def test_only_leftovers_of_interrupted_saves_are_removed(tmp_path: Path) -> None:
    make(tmp_path, 2)
    folder = checkpoints_of(tmp_path)
    (folder / "step_00000002").rename(folder / ".step_00000002.replaced")  # killed between two renames
    ours = [".step_00000002.partial", ".step_00000004.removed", ".step_00000004.replaced"]
    theirs = [".step_2.partial", "step_00000009.damaged", ".mine", ".step_00000002.partial.copy"]
    for name in (*ours, *theirs):
        (folder / name).mkdir()
    (folder / "step_00000004").mkdir()
    (folder / ".latest.12.0123abcd.tmp").touch()
    (tmp_path / ".metrics.jsonl.12.0123abcd.tmp").touch()
    (tmp_path / ".notes.12.0123abcd.tmp").touch()
    removed = remove_leftovers(tmp_path)
    assert sorted(path.name for path in removed) == sorted([*ours, ".latest.12.0123abcd.tmp", ".metrics.jsonl.12.0123abcd.tmp"])
    assert all((folder / name).is_dir() for name in theirs)
    assert (tmp_path / ".notes.12.0123abcd.tmp").exists()
    assert latest(tmp_path) == folder / "step_00000002"  # restored, and its files still match
    verify(folder / "step_00000002")
    assert remove_leftovers(tmp_path) == []


@pytest.fixture
def engine(mesh: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `save` needs of an engine: weights, logits, and an optimizer state that can fail to be written."""
    fake = SimpleNamespace(
        mesh=mesh,
        stages=None,
        deepspeed=None,
        fragments=None,
        weights={"w": torch.ones(3)},
        logits=torch.ones(3, 5),
        error=None,
    )

    def write_state(folder: Path, deepspeed: Any, held: Any, mesh: Any, report: Any) -> Path:
        path = folder / "rank_00000.safetensors"
        save_file({"m": torch.zeros(2)}, path)
        if fake.error is not None:
            raise fake.error
        return path

    monkeypatch.setattr(
        saving, "gather_share", lambda stages, mesh, report: (dict(fake.weights), "model-00001-of-00001.safetensors")
    )
    monkeypatch.setattr(saving, "selected_logits", lambda engine, batch: fake.logits)
    monkeypatch.setattr(saving, "save_optimizer_state", write_state)
    return fake


def test_a_save_that_fails_leaves_nothing_and_the_earlier_checkpoint(tmp_path: Path, engine: Any) -> None:
    activities: list[str] = []
    batch: Any = None
    final = save(tmp_path, engine, position(2), batch, activities.append)
    verify(final)
    sums = json.loads((final / "state/manifest.json").read_bytes())["sha256"]
    written = {str(path.relative_to(final)) for path in final.rglob("*") if path.is_file()}
    assert set(sums) == written - {"state/manifest.json"}
    assert [text for text in activities if "hashing" in text] == [
        f"syncing and hashing {name}"
        for name in ("model-00001-of-00001.safetensors", "rank_00000.safetensors", "probe.safetensors")
    ]
    engine.error = OSError(28, "No space left on device")
    with pytest.raises(OSError, match=r"step_00000004 could not be written \(rank 0: .*No space left.*earlier ones are kept"):
        save(tmp_path, engine, position(4), batch)
    assert sorted(path.name for path in checkpoints_of(tmp_path).iterdir()) == ["latest", "step_00000002"]
    assert latest(tmp_path) == final


@pytest.mark.parametrize("where", ["weights", "logits"])
def test_values_that_are_not_finite_are_not_saved(where: str, tmp_path: Path, engine: Any) -> None:
    batch: Any = None
    save(tmp_path, engine, position(2), batch)
    if where == "weights":
        engine.weights["w"][1] = float("nan")
    else:
        engine.logits[0, 0] = float("inf")
    with pytest.raises(NotFiniteError, match="after step 4 has weights or outputs that are not finite"):
        save(tmp_path, engine, position(4), batch)
    assert sorted(path.name for path in checkpoints_of(tmp_path).iterdir()) == ["latest", "step_00000002"]


def written(partial: Path, name: str, host: str) -> saving._Written:
    """What a rank on another node reports. Its file is there already."""
    path = partial / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.ones(2)}, path)
    share = saving._Written(host=host)
    share.sums[name] = saving.hash_file(path)
    return share


@pytest.mark.parametrize("comes", [True, False])
def test_a_checkpoint_is_completed_when_the_files_of_other_nodes_can_be_seen(
    comes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that shows another node's file late, or not at all, because it is not shared."""
    monkeypatch.setattr(saving, "_VISIBLE_SECONDS", 30.0 if comes else 0.0)
    monkeypatch.setattr("data_prep.files._VISIBLE_POLL_SECONDS", 0.01)
    final = checkpoints_of(tmp_path) / "step_00000004"
    partial = final.with_name(".step_00000004.partial")
    names = [f"state/engine/rank_0000{rank}.safetensors" for rank in range(2)]
    shares = [written(partial, "weights/model-00001-of-00001.safetensors", "alpha")]
    shares += [written(partial, name, host) for name, host in zip(names, ("alpha", "beta"), strict=True)]
    late = partial / names[1]
    unseen = late.rename(tmp_path / "unseen")
    listed: list[str] = []
    real = os.listdir

    def listdir(folder: Path) -> list[str]:  # the second look at the folder shows the file
        listed.append(Path(folder).name)
        if comes and listed.count(partial.name) == 2:
            unseen.rename(late)
        return real(folder)

    monkeypatch.setattr("data_prep.files.os.listdir", listdir)
    why = saving._complete(partial, final, position(4), shares)
    if comes:
        assert why == ""
        verify(final)
    else:
        assert why.startswith(
            f"{names[1]}, which rank 2 has written on beta, cannot be seen on {socket.gethostname()} after 0 s"
        )
        assert "a file system that all nodes share" in why
        assert list(checkpoints_of(tmp_path).iterdir()) == []


def judge_as(rank: int, views: Path) -> None:
    """One of two ranks. Each sees the run folder in its own working folder, as another node would."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(views / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    mesh: Any = SimpleNamespace(is_main=rank == 0, rank=rank, world_size=2)

    def judge(case: str, seconds: float) -> tuple[str, list[str]]:
        resuming._VISIBLE_SECONDS = seconds
        os.chdir(views / case / str(rank))
        if case == "comes" and rank == 1:
            late = Path("late").absolute()
            threading.Timer(0.7, late.rename, [checkpoints_of(Path("run").absolute()) / "step_00000004"]).start()
        activities: list[str] = []
        try:
            found = str(newest_intact(Path("run"), mesh, activities.append).checkpoint)
        except ValueError as error:
            found = str(error)
        return found, [text for text in activities if text == "waiting until step_00000004 can be seen here"]

    found, waits = judge("comes", 60.0)
    assert found == "run/checkpoints/step_00000004", found
    assert len(waits) > 1 if rank == 1 else len(waits) == 1
    found, waits = judge("never", 0.3)
    assert found.startswith(f"rank 1 on {socket.gethostname()} does not see all of run/checkpoints/step_00000004 after 0 s")
    assert "a file system that all nodes share" in found
    found, waits = judge("nobody", 60.0)
    assert found == "run/checkpoints/step_00000002", found
    assert not waits


def test_a_checkpoint_that_one_node_sees_late_is_waited_for_and_not_set_aside(tmp_path: Path) -> None:
    for case in ("comes", "never", "nobody"):
        for rank in range(2):
            view = tmp_path / case / str(rank)
            for step in (2, 4):
                checkpoint = make(view / "run", step)
            if case == "nobody":
                next((checkpoint / "weights").iterdir()).unlink()
            elif rank == 1:
                checkpoint.rename(view / "late")
    fork = multiprocessing.get_context("fork")  # everything is imported here already
    ranks = [fork.Process(target=judge_as, args=(rank, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    for case, last in (("comes", "step_00000004"), ("never", "step_00000004"), ("nobody", "step_00000004.damaged")):
        names = sorted(path.name for path in (tmp_path / case / "0/run/checkpoints").glob("step_*"))
        assert names == ["step_00000002", last]


@pytest.mark.parametrize("failures", [1, 100])
def test_a_folder_that_cannot_be_removed_now_does_not_end_the_run(
    failures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """NFS keeps a folder while another process has one of its files open."""
    real, left = shutil.rmtree, [failures]

    def rmtree(path: Path, **options: Any) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(39, "Directory not empty", str(path))
        real(path, **options)

    monkeypatch.setattr("pipeline.checkpoint.retention.shutil.rmtree", rmtree)
    for step in (2, 4):
        make(tmp_path, step)
    folder = checkpoints_of(tmp_path)
    assert prune(tmp_path, 1, None) == [folder / "step_00000002"]
    assert (folder / ".step_00000002.removed").exists() == (failures == 100)
    assert ("could not be removed ([Errno 39] Directory not empty" in caplog.text) == (failures == 100)
    left[0] = 0
    assert remove_leftovers(tmp_path) == [folder / ".step_00000002.removed"] * (failures == 100)
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step_00000004"]
