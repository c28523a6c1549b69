"""The interface of a platform: it renders a job, submits it, and later shows its state and logs and cancels it.

A job is one of three records: a training run, a data preparation, or the runs of a ladder. `launch/cluster/registry.py` lists
the platforms by name; `docs/howto/add-a-platform.md` describes how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol, TypeAlias

from launch.cluster.record import LaunchRecord, launch_folder
from launch.cluster.spec.launch_spec import LaunchSpec
from launch.cluster.spec.section import PlatformSection

Kind: TypeAlias = Literal["train", "prepare", "scaling"]


@dataclass(frozen=True, kw_only=True)
class ClusterJob:
    """The common part of a job."""

    kind: ClassVar[Kind]

    cluster: LaunchSpec
    folder: Path
    """The run, dataset or ladder folder, as the job's processes see it."""
    record_folder: Path
    """The folder on this machine by which `launch status`, `cancel` and `logs` find the job; often the same as `folder`."""
    working_folder: Path = field(default_factory=Path.cwd)
    """Where the job starts, on platforms whose nodes share the disk of this machine."""

    @property
    def launch_folder(self) -> Path:
        """Where the rendered files and the record are kept."""
        return launch_folder(self.record_folder, self.kind)


@dataclass(frozen=True, kw_only=True)
class TrainJob(ClusterJob):
    """One training run."""

    kind = "train"

    recipe: str
    """The text of the recipe."""
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PrepareJob(ClusterJob):
    """One data preparation."""

    kind = "prepare"

    recipe: str
    """The text of a recipe that holds all settings, inputs and the output folder among them."""
    workers: int


@dataclass(frozen=True, kw_only=True)
class ScalingJob(ClusterJob):
    """The runs of a ladder. All runs of a phase finish before the next phase starts."""

    kind = "scaling"

    phases: Mapping[str, tuple[str, ...]]
    """The names of the runs by phase, in the order of the phases: sweep, main, check."""
    max_concurrent: int


@dataclass(frozen=True, kw_only=True)
class RenderedScript:
    """A script or manifest that is submitted, and the files that it reads."""

    name: str
    text: str
    size: str
    """For the person who submits: "4 nodes x 8 ranks"."""
    companions: Mapping[str, str] = field(default_factory=dict)
    """Further files for the launch folder, by name."""
    companion_text: str = ""
    """What is shown of the companions."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What the platform returned for a submitted job."""

    job_id: str
    title: str
    """For the person who submits: "job 17"."""
    logs: str = ""
    """Glob of the job's log files; empty if the platform keeps the logs."""
    details: Mapping[str, str | None] = field(default_factory=dict)
    """What the platform needs to find the job again, besides its id."""


class Platform(Protocol):
    """A platform that runs jobs. Methods that talk to it raise a ValueError with the platform's own message."""

    section: type[PlatformSection]
    """The platform's section of the cluster file."""

    def render(self, job: ClusterJob) -> tuple[RenderedScript, ...]:
        """The scripts of a job, in the order in which they run. Raises ValueError for a kind of job that it cannot run."""
        ...

    def check_earlier(self, earlier: LaunchRecord) -> None:
        """Raise ValueError if the earlier job of this folder must end first. Not needed if the platform refuses by itself."""
        return

    def submit(self, job: ClusterJob, scripts: tuple[RenderedScript, ...]) -> Submission:
        """Submit the scripts, which lie in `job.launch_folder`."""
        ...

    def state(self, record: LaunchRecord) -> str:
        """The state of the job, in one or more lines."""
        ...

    def cancel(self, record: LaunchRecord) -> None:
        """End the job. A training run gets time to save, if the platform allows it."""
        ...

    def logs(self, record: LaunchRecord, *, lines: int, follow: bool) -> int:
        """Write the last lines of the job's log to stdout, and with `follow` all that comes after; return an exit code."""
        ...
