"""What a person says about a cluster: one `LaunchSpec` for every platform, with a section for what only that platform knows.

Read from `configs/cluster/*.yaml`. What can be wrong in the file alone is refused here; what can be wrong with a job on that
cluster is refused in `launch/cluster/checks.py`.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from launch.cluster.kubernetes_spec import Kubernetes
from launch.cluster.section import Section, check_variable
from launch.cluster.slurm_spec import Slurm

PLATFORMS = ("slurm", "kubernetes", "ray")

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?")


class Mount(Section):
    """A folder of the host inside a container."""

    source: str
    target: str
    read_only: bool = False

    @field_validator("source", "target")
    @classmethod
    def _is_plain(cls, path: str) -> str:
        if not re.fullmatch(r"/[^\s,:]*", path) or ".." in PurePosixPath(path).parts:
            raise ValueError(f"mounts names {path!r}: give an absolute path without blanks, commas, colons and ..")
        return str(PurePosixPath(path))


class Ray(Section):
    address: str | None = None
    """The cluster's dashboard, http://HEAD:8265; --ray-address wins over it."""
    auth_mode: Literal["token", "disabled"] = "token"
    """Said to head, workers and driver alike. token: what none of them is given (RAY_AUTH_TOKEN) is refused."""


class LaunchSpec(Section):
    """Where a job runs and with what. Exactly one of the sections `slurm`, `kubernetes` and `ray` says on what platform."""

    nodes: PositiveInt = 1
    gpus_per_node: NonNegativeInt = 0
    """0: training runs on CPUs, over gloo."""
    processes_per_node: PositiveInt | None = None
    """Ranks on a node. Default: one a GPU, or one where there is none."""
    cpus_per_node: PositiveInt
    memory_gb_per_node: PositiveFloat | None = None
    time_limit: str | None = None
    """As SLURM writes it: minutes, hours:minutes:seconds or days-hours:minutes:seconds, in quotes."""
    save_seconds: Annotated[int, Field(ge=10)] = 300
    """How long before its end a job is told to save: longer than a step, a validation and a checkpoint take."""
    max_restarts: NonNegativeInt = 20
    """How often a job that was preempted, or came to its time limit, starts again by itself."""
    image: str | None = None
    """Container image. Needed on Kubernetes; on SLURM it is started by Pyxis (srun --container-image)."""
    mounts: tuple[Mount, ...] = ()
    """Folders of the host in that container, on SLURM."""
    environment: dict[str, str] = Field(default_factory=dict)
    python: str | None = None
    """The Python that has this package, on every node. Default: the submitting one, or python3 in a container."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the work, such as `module load cuda`, on SLURM."""
    slurm: Slurm | None = None
    kubernetes: Kubernetes | None = None
    ray: Ray | None = None

    @property
    def platform(self) -> str:
        return next(name for name in PLATFORMS if getattr(self, name) is not None)

    @property
    def ranks_per_node(self) -> int:
        return self.processes_per_node or self.gpus_per_node or 1

    @property
    def num_ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def cpus_per_rank(self) -> int:
        return max(1, self.cpus_per_node // self.ranks_per_node)

    @property
    def time_seconds(self) -> int | None:
        return None if self.time_limit is None else parse_time(self.time_limit)

    @field_validator("time_limit", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(f"time_limit was read as the number {value} (YAML takes 24:00:00 for one): put it in quotes")
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
                raise ValueError(f"setup holds {line!r}: give one line of shell an entry; sbatch's options go to slurm.options")
        return lines

    @model_validator(mode="after")
    def _check_platform(self) -> LaunchSpec:
        given = [name for name in PLATFORMS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a cluster file has one of the sections {', '.join(PLATFORMS)}; this has {' and '.join(given) or 'none'}: "
                "an empty one, such as `slurm: {}`, will do"
            )
        if self.kubernetes is not None and self.image is None:
            raise ValueError("image is missing: on Kubernetes every process runs in a container; build one from the Dockerfile")
        only_on_slurm = {"mounts": self.mounts, "setup": self.setup, "python": self.python}
        if self.slurm is None and (unused := [name for name, value in only_on_slurm.items() if value]):
            raise ValueError(f"{unused[0]} has no meaning on {self.platform}: leave it out (volumes: kubernetes.volumes)")
        if self.mounts and self.image is None:
            raise ValueError("mounts are folders in a container, and no image is given: give image, or leave mounts out")
        return self

    @model_validator(mode="after")
    def _check_secrets(self) -> LaunchSpec:
        secrets = self.kubernetes.secrets if self.kubernetes is not None else ()
        if twice := next((secret.variable for secret in secrets if secret.variable in self.environment), None):
            raise ValueError(f"kubernetes.secrets sets {twice}, and so does environment: leave one out")
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
        if seconds is not None and seconds <= self.save_seconds:
            raise ValueError(
                f"time_limit {self.time_limit!r} is {seconds} s, not more than save_seconds {self.save_seconds}: the job would "
                "be told to save as soon as it starts; raise time_limit or lower save_seconds"
            )
        memory = self.memory_gb_per_node
        if self.kubernetes is not None and memory is not None and self.kubernetes.shared_memory_gb >= memory:
            raise ValueError(
                f"kubernetes.shared_memory_gb {self.kubernetes.shared_memory_gb:g} is taken from memory_gb_per_node "
                f"{memory:g}: nothing would be left; raise the one or lower the other"
            )
        return self


def parse_time(text: str) -> int:
    """Seconds of a time limit as SLURM writes it. Raises ValueError where it is none.

    Alone a number is minutes, and with days in front hours; two numbers are minutes and seconds, with days hours and minutes.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'time_limit {text!r} is no time: write "90" (minutes), "12:00:00" or "3-00:00:00"')
    days, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match[1] is not None:  # days-hours[:minutes[:seconds]]
        return ((24 * days + first) * 60 + second) * 60 + third
    if match[4] is not None:
        return (60 * first + second) * 60 + third
    return 60 * first + second
