"""A fourth platform, added with one module and one line in the registry, supports every command of `fnet-t5 launch`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from launch.cli.cluster.launching import launch_job
from launch.cli.cluster.options import Cluster, DryRun, Set
from launch.cluster.platform import ClusterJob, Platform, PrepareJob, RenderedScript, ScalingJob, Submission, TrainJob
from launch.cluster.record import LaunchRecord, read_record
from launch.cluster.registry import PLATFORMS, PlatformModules, find_platform
from launch.cluster.spec.load import launch_spec_class, load_cluster
from launch.cluster.spec.section import PlatformSection
from launch.config import load_config

Command = Callable[..., int]


class FakeSection(PlatformSection):
    queue: str


class FakePlatform(Platform):
    """A platform whose jobs are entries of a dictionary."""

    section = FakeSection

    def __init__(self) -> None:
        self.states: dict[str, str] = {}

    def render(self, job: ClusterJob) -> tuple[RenderedScript, ...]:
        assert isinstance(job, TrainJob)
        text = f"train in {job.folder}, queue {job.cluster.section(FakeSection).queue}\n"
        size = f"{job.cluster.nodes} machines"
        companions = {"recipe.yaml": job.recipe}
        return (RenderedScript(name="job.txt", text=text, size=size, companions=companions, companion_text="a recipe\n"),)

    def check_earlier(self, earlier: LaunchRecord) -> None:
        if self.states[earlier.job_id] == "running":
            raise ValueError(f"job {earlier.job_id} still runs")

    def submit(self, job: ClusterJob, scripts: tuple[RenderedScript, ...]) -> Submission:
        for script in scripts:
            assert (job.launch_folder / script.name).read_text() == script.text
        job_id = f"fake-{len(self.states)}"
        self.states[job_id] = "running"
        return Submission(job_id=job_id, title=f"entry {job_id}", details={"queue": job.cluster.section(FakeSection).queue})

    def state(self, record: LaunchRecord) -> str:
        return f"{record.job_id} is {self.states[record.job_id]} in {record.details['queue']}"

    def cancel(self, record: LaunchRecord) -> None:
        self.states[record.job_id] = "cancelled"

    def logs(self, record: LaunchRecord, *, lines: int, follow: bool) -> int:
        print(f"{lines} lines of {record.job_id}{', followed' if follow else ''}")
        return 0 if self.states[record.job_id] == "running" else 3


PLATFORM = FakePlatform()


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Jobs of the fake platform.", no_args_is_help=True)
    group.callback()(lambda: None)
    group.command()(train)
    app.add_typer(group, name="fake")


def train(cluster: Cluster, output: Path, set_: Set = None, dry_run: DryRun = False) -> None:
    spec = load_cluster(cluster, set_ or [], "fake")
    launch_job(TrainJob(cluster=spec, folder=output, record_folder=output, recipe="model: {}\n"), dry_run=dry_run)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLATFORMS, "fake", PlatformModules(__name__, __name__))
    monkeypatch.setattr(PLATFORM, "states", {})


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text("nodes: 3\ncpus_per_node: 4\nfake: {queue: fast}\n")
    return path


@pytest.mark.usefixtures("fake")
def test_a_job_is_shown_submitted_followed_and_cancelled(
    command: Command, cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    launch = ["launch", "fake", "train", run, "--cluster", cluster]
    assert command(*launch, "--dry-run") == 0
    shown = capsys.readouterr()
    assert shown.out == f"train in {run}, queue fast\n"
    assert shown.err == f"For {run}: 3 machines\na recipe\n"
    assert not run.exists()
    assert not PLATFORM.states

    assert command(*launch, "--set", "fake.queue=slow") == 0
    follow = f"Submitted as entry fake-0. Follow it: fnet-t5 launch logs {run} --follow"
    assert capsys.readouterr().out == f"train in {run}, queue slow\n{follow}\n"
    assert (run / "launch" / "recipe.yaml").read_text() == "model: {}\n"
    record = read_record(run)
    assert (record.platform, record.what, record.file, record.folder) == ("fake", "train", run / "launch" / "job.txt", run)
    assert record.details == {"queue": "slow"}

    assert command("launch", "status", run) == 0
    assert "fake-0 is running in slow\nSTATUS none yet, latest checkpoint none\n" in capsys.readouterr().out
    assert command("launch", "logs", run, "-n", "7", "--follow") == 0
    assert capsys.readouterr().out == "7 lines of fake-0, followed\n"
    assert command("launch", "cancel", run) == 0
    assert PLATFORM.states == {"fake-0": "cancelled"}
    assert "Asked fake to end job fake-0" in capsys.readouterr().out
    assert command("launch", "logs", run) == 3, "the platform's exit code"


@pytest.mark.usefixtures("fake")
def test_a_refused_submission_leaves_the_record_of_the_earlier_job(
    command: Command, cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = ["launch", "fake", "train", tmp_path / "run", "--cluster", cluster]
    assert command(*launch) == 0
    assert command(*launch) == 1
    assert "job fake-0 still runs" in capsys.readouterr().err
    assert read_record(tmp_path / "run").job_id == "fake-0"
    assert command("launch", "cancel", tmp_path / "run") == 0
    assert command(*launch) == 0
    assert read_record(tmp_path / "run").job_id == "fake-1"


@pytest.mark.usefixtures("fake")
def test_the_platforms_section_is_checked_with_the_cluster_file(
    command: Command, cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("launch", "slurm", "train", "train/base", "--cluster", cluster) == 1
    assert "is a cluster file of fake: use `fnet-t5 launch fake …`" in " ".join(capsys.readouterr().err.split())
    launch = ["launch", "fake", "train", tmp_path / "run", "--cluster", cluster]
    assert command(*launch, "--set", "fake.queu=slow") == 1
    assert "unknown key fake.queu; did you mean fake.queue?" in capsys.readouterr().err
    assert command(*launch, "--set", "slurm={}") == 1
    assert "one of the sections slurm, kubernetes, ray, fake; this file has slurm and fake" in capsys.readouterr().err


def test_an_unregistered_platform_is_named(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "launch").mkdir()
    values = {"platform": "fake", "what": "train", "name": "run", "file": "a", "folder": "b", "job_id": "1", "submitted": ""}
    (tmp_path / "launch" / "record.json").write_text(json.dumps(values))
    for verb in ("status", "cancel", "logs"):
        assert command("launch", verb, tmp_path) == 1
        assert "'fake' is not a platform: this version has slurm, kubernetes, ray" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("kubernetes", ScalingJob, "scaling jobs do not run on Kubernetes: use SLURM"),
        ("ray", TrainJob, "train jobs do not run on a Ray cluster: use SLURM or Kubernetes"),
    ],
)
def test_a_kind_of_job_that_a_platform_cannot_run_is_refused(name: str, kind: type[ClusterJob], expected: str) -> None:
    spec = load_config(launch_spec_class(), f"configs/cluster/{name}.yaml")
    own = {"phases": {}, "max_concurrent": 1} if kind is ScalingJob else {"recipe": ""}
    with pytest.raises(ValueError, match=expected):
        find_platform(name).render(kind(cluster=spec, folder=Path("/a"), record_folder=Path("/a"), **own))


def test_a_preparation_keeps_its_files_next_to_the_dataset() -> None:
    spec = load_config(launch_spec_class(), "configs/cluster/ray.yaml")
    job = PrepareJob(cluster=spec, folder=Path("/data/pile"), record_folder=Path("runs/pile"), recipe="", workers=1)
    assert job.launch_folder == Path("runs/pile.launch")


def test_records_of_earlier_versions_are_read(tmp_path: Path) -> None:
    earlier = {
        **{"platform": "slurm", "what": "train", "name": "base", "file": "/runs/base/launch/train.sbatch"},
        **{"folder": "/runs/base", "job_id": "17", "logs": "/runs/base/logs/slurm-17.out", "kind": "", "namespace": ""},
        **{"context": None, "address": "", "auth_mode": "", "submitted": "2026-11-01T00:00:00+00:00"},
    }
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "record.json").write_text(json.dumps(earlier))
    record = read_record(tmp_path)
    assert (record.job_id, record.logs) == ("17", "/runs/base/logs/slurm-17.out")
    (tmp_path / "launch" / "record.json").write_text(json.dumps({**earlier, "kind": 3}))
    with pytest.raises(ValueError, match=r"record.json is not a record of a launch \(1 problems\): remove it and launch again"):
        read_record(tmp_path)
