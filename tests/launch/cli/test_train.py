"""Tests of the runs that `fnet-t5 train` starts, resumes and refuses."""

import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import launch.start
from data_prep.files import only_writer

DEMO = "configs/train/demo.yaml"
Command = Callable[..., int]
ErrorLine = Callable[[], str]


class Started:
    """A fake `run_local` that records its arguments."""

    def __init__(self, code: int = 0) -> None:
        self.calls: list[tuple[Path, int]] = []
        self.code = code
        self.status: str | None = None

    def __call__(self, run_dir: Path, num_processes: int, *, then: Sequence[Path]) -> int:
        assert not then
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
    Path("runs/demo/checkpoints/latest").mkdir(parents=True)
    assert command("train", DEMO, f"data.path={prepared}", "train.steps=999") == 0
    assert "Resuming fnet_t5 demo" in capsys.readouterr().out
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
    trainer.train = trained.append  # type: ignore[attr-defined]
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
    """The smallest complete checkpoint: a manifest that lists no files."""
    (path / "state").mkdir(parents=True)
    (path / "state" / "manifest.json").write_text('{"step": 0, "sha256": {}}')
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
    assert "Stopped" not in capsys.readouterr().out
    empty_checkpoint(Path("runs/other/checkpoints/step_00000016"))
    Path("runs/other/checkpoints/latest").write_text("step_00000016")
    assert command("train", DEMO, "--output", "runs/other", f"data.path={prepared}") == 130
    assert "Stopped; step_00000016 is saved. Rerun the same command to resume." in capsys.readouterr().out
