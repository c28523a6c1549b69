"""Start of runs: the manifest is read once, and STATUS and MLflow are updated for every kind of exit."""

from __future__ import annotations

import shutil
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from mlflow.tracking import MlflowClient
from rich.console import Console

import launch.start
from data_prep.dataset.manifest import MANIFEST_FILE, load_manifest
from data_prep.files import only_writer
from launch.config import load_run_config
from launch.demo.steps import Demo
from launch.scaling.execute import execute
from launch.start import PreparedRun, Processes, check_run, start_run, write_config
from pipeline.run_folder import read_status, write_status
from pipeline.scaling.ladder.ladder import Ladder, make_ladder
from pipeline.scaling.ladder.recipe import LadderRecipe
from pipeline.scaling.ladder.run_configs import runs_of

DEMO = "configs/train/demo.yaml"
Command = Callable[..., int]


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A client of a tracking database for this test."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    client.create_experiment("died")
    return client


class FakeProcesses:
    """A fake `run_local`: processes of the first run folder start, and end as the test specifies."""

    def __init__(self, mlflow: MlflowClient, code: int | Exception, status: str | None = "running") -> None:
        self._mlflow, self._code, self._status = mlflow, code, status
        self.finish_before: list[str] = []
        """Names of run folders that are trained to their end before one ends as the test says."""
        self.folders: list[Path] = []

    def __call__(self, run_dir: Path, num_processes: int, *, then: Sequence[Path] = (), stop_grace: float = 0) -> int:
        self.folders = [run_dir, *then]
        for folder in self.folders:
            if folder.name not in self.finish_before:
                self._begin(folder)
                break
            write_status(folder, "finished")
        if isinstance(self._code, Exception):
            raise self._code
        return self._code

    def _begin(self, folder: Path) -> None:
        experiment = self._mlflow.get_experiment_by_name("died")
        run_id = self._mlflow.create_run(experiment.experiment_id).info.run_id
        (folder / "mlflow_run_id").write_text(f"{run_id}\n")
        if self._status is not None:
            write_status(folder, self._status)

    def state_in_mlflow(self, folder: Path) -> str:
        return str(self._mlflow.get_run((folder / "mlflow_run_id").read_text().strip()).info.status)


@pytest.fixture
def processes(mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeProcesses]:
    """Let the processes of the next start write this STATUS and end with this exit code or exception."""

    def end_with(code: int | Exception, status: str | None = "running") -> FakeProcesses:
        made = FakeProcesses(mlflow, code, status)
        monkeypatch.setattr(launch.start, "run_local", made)
        return made

    return end_with


@pytest.fixture
def prepare_run(prepared: Path, tmp_path: Path) -> Callable[[str], PreparedRun]:
    def make(name: str) -> PreparedRun:
        config = load_run_config(DEMO, [f"data.path={prepared}"])
        run = check_run(config, tmp_path / name, processes=Processes(4))
        write_config(run)
        return run

    return make


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The path of a manifest for each time that it is read."""
    found: list[Path] = []
    read_bytes = Path.read_bytes

    def count(path: Path) -> bytes:
        if path.name == MANIFEST_FILE:
            found.append(path)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", count)
    return found


@pytest.mark.parametrize("blended", [False, True])
def test_the_manifest_is_read_once(
    blended: bool,
    prepared: Path,
    command: Command,
    processes: Callable[..., FakeProcesses],
    reads: list[Path],
    tmp_path: Path,
) -> None:
    processes(0, "finished")
    other = shutil.copytree(prepared, tmp_path / "other")
    parts = f"[{{path: {prepared}, weight: 2}}, {{path: {other}, weight: 1}}]"
    blend = [f"data.blend={parts}"] if blended else []
    assert command("train", DEMO, "--output", tmp_path / "run", f"data.path={prepared}", *blend) == 0
    assert sorted(reads) == sorted([prepared / MANIFEST_FILE, *([other / MANIFEST_FILE] if blended else [])])


@pytest.mark.parametrize("code", [1, 137, 143, OSError("no space left")])
def test_a_dead_run_is_marked_failed_in_its_folder_and_in_mlflow(
    code: int | Exception, processes: Callable[..., FakeProcesses], prepare_run: Callable[[str], PreparedRun]
) -> None:
    run, died = prepare_run("run"), processes(code)
    if isinstance(code, Exception):
        with pytest.raises(OSError, match="no space left"):
            start_run(run)
    else:
        assert start_run(run) == code
    assert read_status(run.folder) == "failed"
    assert died.state_in_mlflow(run.folder) == "FAILED"


@pytest.mark.parametrize("before", [None, "preempted", "finished"])
def test_processes_that_die_before_writing_a_status_are_marked_failed(
    before: str | None, processes: Callable[..., FakeProcesses], prepare_run: Callable[[str], PreparedRun]
) -> None:
    run, died = prepare_run("run"), processes(1, None)
    if before is not None:
        write_status(run.folder, before)
    assert start_run(run) == 1
    assert read_status(run.folder) == "failed"
    assert died.state_in_mlflow(run.folder) == "FAILED"


@pytest.mark.parametrize(
    ("code", "expected", "before"),
    [(130, 130, "preempted"), (129, 129, "finished"), (143, 75, "running"), (143, 75, None), (138, 75, "failed")],
)
def test_a_stop_before_the_first_step_leaves_the_run_preempted(
    code: int,
    expected: int,
    before: str | None,
    processes: Callable[..., FakeProcesses],
    prepare_run: Callable[[str], PreparedRun],
) -> None:
    """`running` is there after kill -9 of an earlier start, and from the scripts of SLURM."""
    run = prepare_run("run")
    if before is not None:
        write_status(run.folder, before)
    processes(code, None)
    assert start_run(run) == expected
    assert read_status(run.folder) == "preempted"


def test_only_the_run_in_training_is_marked_failed(
    processes: Callable[..., FakeProcesses], prepare_run: Callable[[str], PreparedRun]
) -> None:
    runs = [prepare_run(name) for name in ("first", "second", "third")]
    died = processes(1, None)
    died.finish_before = ["first"]
    assert start_run(runs[0], then=runs[1:]) == 1
    assert died.folders == [run.folder for run in runs]
    assert [read_status(run.folder) for run in runs] == ["finished", "failed", None]
    assert died.state_in_mlflow(runs[1].folder) == "FAILED"


def test_a_run_of_another_process_is_unchanged(
    processes: Callable[..., FakeProcesses], prepare_run: Callable[[str], PreparedRun]
) -> None:
    run = prepare_run("run")
    other = processes(1, "running")
    with only_writer(run.folder):
        assert start_run(run) == 1
    assert read_status(run.folder) == "running"
    assert other.state_in_mlflow(run.folder) == "RUNNING"


def test_a_failed_rank_in_the_job_of_an_outer_launcher_marks_the_run_failed(
    mlflow: MlflowClient, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = FakeProcesses(mlflow, 1)

    def train(run: Path, stop: Any) -> None:
        died(run, 8)
        raise RuntimeError("lost")

    trainer = types.ModuleType("pipeline.training.trainer")
    trainer.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipeline.training.trainer", trainer)
    config = load_run_config(DEMO, [f"data.path={prepared}"])
    run = check_run(config, tmp_path / "run", processes=Processes(8, rank=0))
    write_config(run)
    with pytest.raises(RuntimeError, match="lost"):
        start_run(run)
    assert read_status(run.folder) == "failed"
    assert died.state_in_mlflow(run.folder) == "FAILED"


@pytest.fixture
def ladder(prepared: Path) -> Ladder:
    layers = {"num_encoder_layers": 2, "num_decoder_layers": 1}
    size: dict[str, Any] = {"micro_batch_size": 4, "model": {"d_model": 16, "d_ff": 64, "d_kv": 8, "num_heads": 2, **layers}}
    values = {
        "name": "small",
        "data": {"path": str(prepared), "encoder_length": 48, "decoder_length": 16},
        "objectives": ["prefix_lm"],
        "sizes": {"s": size, "m": {**size, "model": {**size["model"], "d_model": 32}}},
        "arms": {"t5": {}},
        "budgets": [4e9],
        "learning_rate": {"values": [0.001, 0.002, 0.004], "sizes": ["s", "m"], "budget": 2e9},
        "batch": {"tokens": 256, "exponent": 0},
        "schedule": {"warmup": 0.1, "allow_short": True},
        "device": {"flops_per_second": 1e9},
    }
    return make_ladder(LadderRecipe.model_validate(values))


def test_a_failed_run_of_a_ladder_is_marked_failed_with_one_manifest_read(
    ladder: Ladder, processes: Callable[..., FakeProcesses], reads: list[Path], prepared: Path, tmp_path: Path
) -> None:
    died = processes(1)
    sweep = next(run for run in ladder.runs if run.phase == "sweep")
    with pytest.raises(ValueError, match=rf"{sweep.name}-lr0\.001 ended as failed: see "):
        execute(tmp_path / "ladder", ladder, sweep, None, print)
    assert [folder.parent for folder in died.folders] == [runs_of(tmp_path / "ladder")] * 3
    assert [read_status(folder) for folder in died.folders] == ["failed", None, None]
    assert died.state_in_mlflow(died.folders[0]) == "FAILED"
    assert reads == [prepared / MANIFEST_FILE]


def test_a_failed_demo_is_marked_failed(
    prepared: Path, processes: Callable[..., FakeProcesses], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    died = processes(1)
    demo = Demo(tmp_path / "demo", Console(quiet=True))

    def prepare(recipe: object) -> object:
        return load_manifest(shutil.copytree(prepared, demo.data))

    monkeypatch.setattr(demo, "_find_text", lambda: None)
    monkeypatch.setattr(demo, "_prepare", prepare)
    with pytest.raises(typer.Exit) as ended:
        demo.perform(False, [])
    assert ended.value.exit_code == 1
    assert read_status(demo.run) == "failed"
    assert died.state_in_mlflow(demo.run) == "FAILED"
