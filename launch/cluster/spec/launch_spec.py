"""The keys of a cluster file that every platform shares, checked by themselves and against each other.

Read from `configs/cluster/*.yaml`. `launch/cluster/spec/load.py` adds the section of each platform. Errors of the file itself
are reported here; errors of a job on that cluster are reported in `launch/cluster/checks.py`.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from launch.cluster.spec.section import ClusterSection, PlatformSection, check_variable

SectionT = TypeVar("SectionT", bound=PlatformSection)

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?")


class Mount(ClusterSection):
    """A folder of the host inside a container."""

    source: str
    """Folder on the host."""
    target: str
    """The folder's path in the container."""
    read_only: bool = False
    """Whether the container may not write to it."""

    @field_validator("source", "target")
    @classmethod
    def _is_plain(cls, path: str) -> str:
        if not re.fullmatch(r"/[^\s,:]*", path) or ".." in PurePosixPath(path).parts:
            raise ValueError(f"mounts names {path!r}: give an absolute path without blanks, commas, colons and ..")
        return str(PurePosixPath(path))


class LaunchSpec(ClusterSection):
    """Where a job runs and with what. Exactly one platform's section is given; it selects the platform."""

    renamed_keys: ClassVar = {"save_seconds": "preemption_grace_seconds"}
    platforms: ClassVar[tuple[str, ...]] = ()
    """The names of the platforms, each a field with that platform's section; set by `launch/cluster/spec/load.py`."""

    nodes: PositiveInt = 1
    """Number of nodes."""
    gpus_per_node: NonNegativeInt = 0
    """0: training runs on CPUs, over gloo."""
    processes_per_node: PositiveInt | None = None
    """Ranks on a node. Default: one per GPU, or one on a node without GPUs."""
    cpus_per_node: PositiveInt
    """CPU cores that a job gets on each node."""
    memory_gb_per_node: PositiveFloat | None = None
    """Memory in GB that a job gets on each node. Default: the platform's."""
    time_limit: str | None = None
    """In SLURM's format: minutes, hours:minutes:seconds or days-hours:minutes:seconds, in quotes."""
    preemption_grace_seconds: Annotated[int, Field(ge=10)] = 300
    """How long before its end a job is told to save: longer than a step, a validation and a checkpoint take."""
    max_restarts: NonNegativeInt = 20
    """How often a job that was preempted, or reached its time limit, is restarted automatically."""
    image: str | None = None
    """Container image. Required on Kubernetes; on SLURM, Pyxis starts it (srun --container-image)."""
    mounts: tuple[Mount, ...] = ()
    """Folders of the host in that container, on SLURM."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the job's processes."""
    python: str | None = None
    """The Python that has this package, on every node. Default: the submitting one, or python3 in a container."""
    setup: tuple[str, ...] = ()
    """Shell lines that run before the work, such as `module load cuda`, on SLURM."""

    @property
    def platform(self) -> str:
        """The name of the platform whose section is given."""
        return next(name for name in self.platforms if getattr(self, name) is not None)

    def section(self, section_class: type[SectionT]) -> SectionT:
        """The platform's section, which must be of this class: `load_cluster` has checked the platform."""
        section = getattr(self, self.platform)
        assert isinstance(section, section_class)
        return section

    @property
    def ranks_per_node(self) -> int:
        return self.processes_per_node or self.gpus_per_node or 1

    @property
    def num_ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def num_cpus(self) -> int:
        return self.nodes * self.cpus_per_node

    @property
    def cpus_per_rank(self) -> int:
        return max(1, self.cpus_per_node // self.ranks_per_node)

    @property
    def time_seconds(self) -> int | None:
        return None if self.time_limit is None else parse_time(self.time_limit)

    @property
    def node_processes(self) -> str:
        """What a node starts, for messages: the GPUs or, on a cluster without GPUs, the processes."""
        return f"gpus_per_node {self.gpus_per_node}" if self.gpus_per_node else f"{self.ranks_per_node} processes"

    @field_validator("time_limit", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(f"time_limit was read as the number {value} (YAML reads 24:00:00 as a number): put it in quotes")
        return value

    @field_validator("environment", mode="before")
    @classmethod
    def _numbers_are_text(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: str(value) if isinstance(value, int | float) else value for name, value in values.items()}

    @field_validator("environment")
    @classmethod
    def _check_variables(cls, values: dict[str, str]) -> dict[str, str]:
        for name in values:
            check_variable("environment", name)
        return values

    @field_validator("setup")
    @classmethod
    def _are_lines(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        for line in lines:
            if "\n" in line.strip() or line.lstrip().startswith("#SBATCH"):
                raise ValueError(f"setup holds {line!r}: give one shell line per entry; sbatch's options go to slurm.options")
        return lines

    @model_validator(mode="after")
    def _check_platform(self) -> LaunchSpec:
        given = [name for name in self.platforms if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a cluster file has one of the sections {', '.join(self.platforms)}; this file has "
                f"{' and '.join(given) or 'none'}: an empty section, such as `slurm: {{}}`, is enough"
            )
        if self.mounts and self.image is None:
            raise ValueError("mounts are folders in a container, and no image is given: give image, or leave mounts out")
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> LaunchSpec:
        if self.gpus_per_node and self.ranks_per_node > self.gpus_per_node:
            raise ValueError(
                f"processes_per_node {self.processes_per_node} exceeds gpus_per_node {self.gpus_per_node}: ranks do not share "
                "a GPU; leave processes_per_node out"
            )
        if self.ranks_per_node > self.cpus_per_node:
            raise ValueError(
                f"cpus_per_node {self.cpus_per_node} is less than the {self.ranks_per_node} ranks of a node: raise it"
            )
        seconds = self.time_seconds
        if seconds is not None and seconds <= self.preemption_grace_seconds:
            raise ValueError(
                f"time_limit {self.time_limit!r} is {seconds} s, not more than preemption_grace_seconds "
                f"{self.preemption_grace_seconds}: the job would be told to save as soon as it starts; raise time_limit or "
                "lower preemption_grace_seconds"
            )
        return self

    @model_validator(mode="after")
    def _check_section(self) -> LaunchSpec:
        self.section(PlatformSection).check_spec(self)
        return self

    def refuse_slurm_keys(self) -> None:
        """Raise ValueError if a key is given that has a meaning on SLURM only."""
        given = {"mounts": self.mounts, "setup": self.setup, "python": self.python}
        if unused := next((name for name, value in given.items() if value), None):
            raise ValueError(f"{unused} has no meaning on {self.platform}: leave it out (volumes: kubernetes.volumes)")


def parse_time(text: str) -> int:
    """Seconds of a time limit in SLURM's format. Raises ValueError for any other text.

    One number is minutes, two are minutes and seconds. After a number of days, one is hours, two are hours and minutes.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'time_limit {text!r} is not a time: write "90" (minutes), "12:00:00" or "3-00:00:00"')
    days, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match[1] is not None:  # days-hours[:minutes[:seconds]]
        return ((24 * days + first) * 60 + second) * 60 + third
    if match[4] is not None:
        return (60 * first + second) * 60 + third
    return 60 * first + second
