"""Damaged, incomplete and diverged checkpoints, leftovers of interrupted saves, and saves that fail."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from launch.cli import _GlobalOptions, build_app
from pipeline.checkpoint import checkpoint as saving
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
    assert len(found.notes) == 3
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
