"""Tests of the runs that `fnet-t5 train` starts, resumes and refuses."""

import json
import os
import shutil
import socket
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import launch.start
from data_prep.dataset.manifest import load_manifest
from data_prep.files import only_writer
from launch.config import load_run_config, write_resolved
from launch.preflight import check_data, checkpoint_bytes
from pipeline.run_folder import hold

DEMO = "configs/train/demo.yaml"
Command = Callable[..., int]
ErrorLine = Callable[[], str]


class Started:
    """A fake `run_local` that records its arguments."""

    def __init__(self, code: int = 0) -> None:
        self.calls: list[tuple[Path, int]] = []
        self.code = code
        self.status: str | None = None

    def __call__(self, run_dir: Path, num_processes: int, *, then: Sequence[Path], stop_grace: float) -> int:
        assert not then
        assert stop_grace == 20 * 60  # train.hang_minutes
        if self.status is not None:
            (run_dir / "STATUS").write_text(f"{self.status}\n")
        assert (run_dir / "config.json").is_file()
        self.calls.append((run_dir, num_processes))
        return self.code


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Started:
    monkeypatch.chdir(tmp_path)
    local = Started()
    monkeypatch.setattr(launch.start, "run_local", local)
    return local


def test_train_starts_one_replica_in_a_folder_named_after_the_recipe(
    started: Started, prepared: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", DEMO, f"data.path={prepared}") == 0
    assert started.calls == [(Path("runs/demo"), 4)]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("Training fnet_t5 demo on ")
    assert lines[1].startswith("4 processes (tensor 2 × pipeline 2 × data 1); run folder runs/demo")


def test_train_uses_nproc_and_output_and_returns_the_exit_code(
    started: Started, prepared: Path, command: Command, tmp_path: Path
) -> None:
    started.code = 7
    assert command("train", DEMO, "--nproc", 8, "--output", tmp_path / "mine", f"data.path={prepared}") == 7
    assert started.calls == [(tmp_path / "mine", 8)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--nproc", "3"], "3 processes cannot hold replicas of 4"),
        (["--nproc", "12"], "train.global_batch_size 16 is not a multiple"),
        (["data.path=nowhere"], "data.path: nowhere/manifest.json: the folder does not exist; make one with"),
        (["data.encoder_length=500"], "has no train rows of 628 tokens"),
        (["optimizer.learning_rate=.inf"], "optimizer.learning_rate"),
        (["optimizer.betas=[0.9,1.0]"], "optimizer.betas [0.9, 1.0]: each must be at least 0 and less than 1"),
    ],
)
def test_impossible_runs_are_refused_before_processes_start(
    arguments: list[str],
    expected: str,
    started: Started,
    prepared: Path,
    command: Command,
    tmp_path: Path,
    error_line: ErrorLine,
) -> None:
    assert command("train", DEMO, f"data.path={prepared}", *arguments) == 1
    assert expected in error_line()
    assert started.calls == []
    assert not (tmp_path / "runs").exists()


def test_another_run_in_the_same_folder_is_refused(
    started: Started, prepared: Path, command: Command, capsys: pytest.CaptureFixture[str], error_line: ErrorLine
) -> None:
    assert command("train", DEMO, f"data.path={prepared}") == 0
    empty_checkpoint(Path("runs/demo/checkpoints/step_00000100"))
    assert command("train", DEMO, f"data.path={prepared}", "train.steps=999") == 0
    shown = capsys.readouterr().out
    assert "Resuming fnet_t5 demo" in shown
    assert "from step 100 to step 999" in shown
    assert command("train", DEMO, f"data.path={prepared}", "train.seed=5") == 1
    assert error_line() == (
        "error: runs/demo holds another run: train.seed (0 there, 5 now); give another --output, or undo the difference"
    )
    assert len(started.calls) == 2


@pytest.mark.parametrize("rank", [0, 3])
def test_train_joins_the_job_of_an_outer_launcher(
    rank: int,
    started: Started,
    prepared: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    error_line: ErrorLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[Path] = []
    trainer = types.ModuleType("pipeline.training.trainer")
    trainer.train = lambda run, stop: trained.append(run)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipeline.training.trainer", trainer)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert command("train", DEMO, f"data.path={prepared}") == 0
    assert trained == [Path("runs/demo")]
    assert started.calls == []
    assert len(capsys.readouterr().out.splitlines()) == (2 if rank == 0 else 0)
    assert command("train", DEMO, f"data.path={prepared}", "--nproc", 8) == 1
    assert "leave it out" in error_line()
    monkeypatch.delenv("WORLD_SIZE")
    assert command("train", DEMO, f"data.path={prepared}") == 1
    assert "WORLD_SIZE is not" in error_line()


def test_a_run_is_refused_in_a_folder_with_other_files(
    started: Started, prepared: Path, command: Command, error_line: ErrorLine, tmp_path: Path
) -> None:
    assert command("train", DEMO, "--output", prepared, f"data.path={prepared}") == 1
    assert error_line() == f"error: {prepared} holds a dataset, which a run would overwrite: give another --output"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    assert command("train", DEMO, "--output", tmp_path / "notes", f"data.path={prepared}") == 1
    assert "holds files that are not a run's" in error_line()
    assert command("train", DEMO, f"data.path={prepared}") == 0
    with only_writer(Path("runs/demo")):
        assert command("train", DEMO, f"data.path={prepared}") == 1
    assert "another process is writing here" in error_line()
    assert len(started.calls) == 1


def empty_checkpoint(path: Path) -> Path:
    """The smallest complete checkpoint: a manifest that lists one file."""
    (path / "state").mkdir(parents=True)
    (path / "state" / "position.json").write_text("")
    (path / "state" / "manifest.json").write_text('{"step": 0, "sha256": {"state/position.json": ""}}')
    return path


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [(143, "preempted", 75), (138, "preempted", 75), (130, "preempted", 130), (143, "failed", 143), (0, "finished", 0)],
)
def test_a_preempted_run_exits_with_75(
    started: Started, prepared: Path, command: Command, code: int, status: str, expected: int
) -> None:
    started.code = code
    Path("runs/demo").mkdir(parents=True)
    started.status = status
    assert command("train", DEMO, f"data.path={prepared}") == expected


def test_a_finished_run_is_not_started_again(
    started: Started, prepared: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", DEMO, f"data.path={prepared}") == 0
    checkpoint = empty_checkpoint(Path("runs/demo/checkpoints/step_00000400"))
    checkpoint.with_name("latest").write_text(checkpoint.name)
    Path("runs/demo/STATUS").write_text("finished\n")
    assert command("train", DEMO, f"data.path={prepared}") == 0
    assert "runs/demo is finished at step 400: raise train.steps" in capsys.readouterr().out
    assert command("train", DEMO, f"data.path={prepared}", "train.steps=500") == 0
    assert len(started.calls) == 2


def test_a_stopped_run_prints_how_to_resume(
    started: Started, prepared: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    started.code = 130
    assert command("train", DEMO, "--output", "runs/other", f"data.path={prepared}") == 130
    assert "Stopped; no checkpoint was saved yet" in capsys.readouterr().out
    assert Path("runs/other/STATUS").read_text() == "preempted\n"  # the processes had not written one
    empty_checkpoint(Path("runs/other/checkpoints/step_00000016"))
    Path("runs/other/checkpoints/latest").write_text("step_00000016")
    assert command("train", DEMO, "--output", "runs/other", f"data.path={prepared}") == 130
    assert "Stopped; step_00000016 is saved. Rerun the same command to resume." in capsys.readouterr().out


def saved(run: Path, step: int, config: Any, data: str = "") -> None:
    """A checkpoint whose position has the data's fingerprint, or another one."""
    path = empty_checkpoint(run / f"checkpoints/step_{step:08d}")
    fingerprint = data or check_data(config, load_manifest(config.data.path))
    position = {"dataset_fingerprint": fingerprint, "seed": config.train.seed, "step": step}
    (path / "state" / "position.json").write_text(json.dumps(position))


def test_a_run_goes_on_with_moved_data_without_its_start_folder_and_with_other_reports(
    started: Started, prepared: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, old = Path("runs/demo"), shutil.copytree(prepared, tmp_path / "old")
    config = load_run_config(DEMO, [f"data.path={old}"]).resolved()
    values = config.model_dump(mode="json")
    values["train"]["initial_weights"] = str(tmp_path / "gone")
    values["tracking"] = {"experiment": "mine", "enabled": True}
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(values))
    saved(run, 100, config)
    shutil.rmtree(old)
    overrides = [f"train.initial_weights={tmp_path / 'gone'}", "tracking.enabled=false", "data.validation_rows=600"]
    assert command("train", DEMO, f"data.path={prepared}", *overrides) == 0
    assert "from step 100 to step 400" in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["data"]["path"] == str(prepared)
    assert command("train", DEMO, f"data.path={prepared}", "data.decoder_length=17") == 1  # this changes numbers
    assert len(started.calls) == 1


def test_what_a_checkpoint_cannot_continue_is_refused_before_anything_is_written(
    started: Started, prepared: Path, command: Command, error_line: ErrorLine, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = load_run_config(DEMO, [f"data.path={prepared}"]).resolved()
    write_resolved(config, run)
    saved(run, 200, config)
    before = (run / "config.json").read_bytes()
    arguments = ("train", DEMO, f"data.path={prepared}", "--output")
    assert command(*arguments, run, "train.steps=150") == 1
    assert "train.steps 150 is less than the 200 steps that " in error_line()
    assert command(*arguments, tmp_path / "branch", "--branch", run, "train.seed=3") == 1
    message = error_line()
    assert "was trained with train.seed 0, not 3" in message
    assert "a branch goes on with the data and seed of its parent" in message
    assert "another --output" not in message
    saved(run, 300, config, data="other")
    assert command(*arguments, run) == 1
    assert "was trained on other data than" in error_line()
    assert (run / "config.json").read_bytes() == before
    assert not (tmp_path / "branch").exists()
    assert started.calls == []


def test_a_checkpoint_that_is_skipped_is_told_before_the_start(
    started: Started, prepared: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = load_run_config(DEMO, [f"data.path={prepared}"]).resolved()
    write_resolved(config, run)
    saved(run, 100, config)
    saved(run, 200, config)
    (run / "checkpoints/step_00000200/state/position.json").unlink()
    assert command("train", DEMO, f"data.path={prepared}", "--output", run) == 0
    shown = capsys.readouterr().out
    assert "warning: skipped checkpoint " in shown
    assert "step_00000200/state/position.json is missing" in shown
    assert "from step 100 to step 400" in shown
    assert len(started.calls) == 1


def test_the_place_of_checkpoints_is_tried_before_processes_start(
    started: Started,
    prepared: Path,
    command: Command,
    error_line: ErrorLine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    arguments = ("train", DEMO, f"data.path={prepared}", "--output", tmp_path / "new" / "run")
    free = 10**9

    def usage(path: Path) -> Any:
        assert path == tmp_path
        return types.SimpleNamespace(free=free)

    monkeypatch.setattr("launch.preflight.shutil.disk_usage", usage)
    size = checkpoint_bytes(load_run_config(DEMO, [f"data.path={prepared}"]).resolved())
    free = size - 1
    assert command(*arguments) == 1
    assert f"{tmp_path} has " in (message := error_line())
    assert "GB free, and one checkpoint of this run takes" in message
    free = size + 1
    assert command(*arguments, "optimizer.warmup_steps=400") == 0
    shown = capsys.readouterr().out
    assert "checkpoints to come take" in shown
    assert "warning: optimizer.warmup_steps 400 is not less than train.steps 400" in shown

    def refuse(**options: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("launch.preflight.tempfile.TemporaryFile", refuse)
    assert command(*arguments) == 1
    assert "cannot be written (Read-only file system)" in error_line()
    assert len(started.calls) == 1


def test_the_planned_size_of_a_checkpoint_is_that_of_its_tensors(prepared: Path) -> None:
    """Weights, and three fp32 numbers a parameter, counted over the modules of the model."""
    from models.architectures.build import build_model

    for precision, size in (("fp32", 16), ("bf16", 14)):
        config = load_run_config(DEMO, [f"data.path={prepared}", f"train.precision={precision}"]).resolved()
        parameters = sum(parameter.numel() for parameter in build_model(config.model).parameters())
        assert checkpoint_bytes(config) == size * parameters


def test_a_run_folder_in_use_is_refused_with_the_holders_name(
    started: Started, prepared: Path, command: Command, error_line: ErrorLine
) -> None:
    assert command("train", DEMO, f"data.path={prepared}") == 0
    with hold(Path("runs/demo")):
        assert command("train", DEMO, f"data.path={prepared}") == 1
        name = f"process {os.getpid()} on {socket.gethostname()}"
        assert error_line() == f"error: runs/demo: {name} is training here; wait for it or stop it"
    assert command("train", DEMO, f"data.path={prepared}") == 0


def test_text_that_is_not_utf8_is_named(tmp_path: Path, command: Command, error_line: ErrorLine) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"caf\xe9")
    assert command("generate", tmp_path, "--file", file) == 1
    assert f"{file} is not UTF-8 (byte 0xe9 at position 3)" in error_line()
