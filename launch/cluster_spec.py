"""What a person says about a cluster: one `LaunchSpec` for every platform, with a section for what only that platform knows.

Read from `configs/cluster/*.yaml`. What can be wrong in the file alone is refused here; what can be wrong with a job on that
cluster is refused in `launch/cluster_checks.py`.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from launch import kubernetes_names as names

PLATFORMS = ("slurm", "kubernetes", "ray")

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?")
_VARIABLE = re.compile(r"[A-Za-z_]\w*")
# torchrun's variables belong to the job, Ray's access to the templates: a second value would win or lose by chance.
_RESERVED = re.compile(r"PET_\w+|RANK|WORLD_SIZE|LOCAL_RANK|MASTER_(ADDR|PORT)|RAY_AUTH_(MODE|TOKEN)")


# Options of sbatch that were checked, or that the scripts rely on; behind them the remedy.
_SCRIPTS_OWN = {
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node"), "give nodes and processes_per_node"),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), "give cpus_per_node"),
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task", "ntasks-per-gpu"), "give gpus_per_node and slurm.gpu_type"),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "give memory_gb_per_node"),
    **{name: f"give slurm.{name}" for name in ("partition", "account", "qos", "constraint", "reservation", "exclusive")},
    **dict.fromkeys(("time", "time-min"), "give time_limit"),
    **dict.fromkeys(("requeue", "no-requeue"), "give max_restarts; 0 for none"),
    "signal": "give save_seconds",
    **dict.fromkeys(("output", "error", "open-mode", "chdir", "job-name", "array", "wrap"), "leave it out"),
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Mount(_Section):
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


class Slurm(_Section):
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclusive: bool = True
    """Whole nodes: no other job's work beside ours."""
    gpu_option: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """How this SLURM is asked for GPUs: --gpus-per-node=8 or --gres=gpu:8."""
    gpu_type: str | None = None
    """As the cluster names it, where it must be named: h100."""
    options: tuple[str, ...] = ()
    """Further options of sbatch, as written there: --comment=pretraining."""
    at_once: PositiveInt = 4
    """Most jobs of an array that run at the same time."""

    @field_validator("partition", "account", "qos", "constraint", "reservation", "gpu_type")
    @classmethod
    def _is_word(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[^\s\"'#\\]+", value):
            raise ValueError(f"{value!r} is no name that SLURM can read: no blanks, quotes, backslashes or #")
        return value

    @field_validator("options")
    @classmethod
    def _are_options(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            if not re.fullmatch(r"--[a-z][-a-z]*(=([^\s\"'#\\]+|\"[^\"\n\\]*\"))?", option):
                raise ValueError(
                    f"slurm.options holds {option!r}: write one of sbatch's options in full, as --comment=text, and blanks in "
                    'double quotes: --comment="a text"'
                )
            name, _, value = option[2:].partition("=")
            if key := _SCRIPTS_OWN.get("gpus" if name == "gres" and value.strip('"').startswith("gpu") else name):
                raise ValueError(f"slurm.options holds {option!r}, which the script says itself: {key}")
        return options

    @model_validator(mode="after")
    def _one_gres(self) -> Slurm:
        if self.gpu_option == "gres" and (second := next((text for text in self.options if text.startswith("--gres")), None)):
            raise ValueError(
                f"slurm.options holds {second!r}, and SLURM would take it instead of the GPUs that slurm.gpu_option gres asks "
                "for: leave gpu_option out"
            )
        return self


class Volume(_Section):
    """A persistent volume claim, and where the containers see it."""

    claim: str
    path: str
    read_only: bool = False

    @field_validator("claim")
    @classmethod
    def _is_name(cls, name: str) -> str:
        names.check_subdomain("kubernetes.volumes.claim", name)
        return name

    @field_validator("path")
    @classmethod
    def _can_be_mounted(cls, path: str) -> str:
        if problem := names.mount_problem(path):
            raise ValueError(f"kubernetes.volumes mounts a claim at {path!r}: {problem}")
        return str(PurePosixPath(path))


class Secret(_Section):
    """An environment variable whose value stays in a Secret of the cluster."""

    variable: str
    name: str
    key: str

    @field_validator("name")
    @classmethod
    def _is_name(cls, name: str) -> str:
        names.check_subdomain("kubernetes.secrets.name", name)
        return name

    @field_validator("variable")
    @classmethod
    def _is_variable(cls, variable: str) -> str:
        if not _VARIABLE.fullmatch(variable):
            raise ValueError(f"kubernetes.secrets holds {variable!r}, which no shell takes for a variable's name")
        if _RESERVED.fullmatch(variable):
            raise ValueError(f"kubernetes.secrets sets {variable}, which every job computes for itself: leave it out")
        return variable

    @field_validator("key")
    @classmethod
    def _is_key(cls, key: str) -> str:
        names.check_secret_key("kubernetes.secrets.key", key)
        return key


class Toleration(_Section):
    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _api_takes_it(self) -> Toleration:
        names.check_qualified("kubernetes.tolerations", self.key)
        names.check_label_value("kubernetes.tolerations", self.value or "")
        if self.value is not None and self.operator == "Exists":
            raise ValueError(
                f"kubernetes.tolerations gives {self.key} a value, which Exists ignores: add operator: Equal, or drop it"
            )
        return self


class Kubernetes(_Section):
    kind: Literal["jobset", "trainjob"] = "jobset"
    """What trains: a JobSet, or a TrainJob of Kubeflow Trainer v2. Data is prepared by KubeRay's RayJob with either."""
    namespace: str = "default"
    context: str | None = None
    """kubectl's context. Default: the current one."""
    volumes: tuple[Volume, ...] = ()
    secrets: tuple[Secret, ...] = ()
    queue: str | None = None
    """Kueue's local queue."""
    runtime: str | None = None
    """The ClusterTrainingRuntime that a TrainJob refers to. Default: the one of `fnet-t5 launch kubernetes runtime`."""
    service_account: str | None = None
    image_pull_secret: str | None = None
    user_id: PositiveInt = 1000
    group_id: PositiveInt = 1000
    """Of the processes, and of the files that they write to the volumes."""
    shared_memory_gb: Annotated[float, Field(ge=0.1)] = 16.0
    """Size of /dev/shm, taken from the pod's memory: the container engine's own 64 MB are too little for NCCL and Ray.

    Ray's object store is nine tenths of it, and never less than 75 MiB.
    """
    gpu_resource: str = "nvidia.com/gpu"
    node_selector: dict[str, str] = {}
    tolerations: tuple[Toleration, ...] = ()
    priority_class: str | None = None
    """PriorityClass of the pods."""
    annotations: dict[str, str] = {}
    """Of the pods, such as k8s.v1.cni.cncf.io/networks for a second network."""
    resources: dict[str, int | str] = {}
    """What a pod has besides CPUs, memory and GPUs, as request and limit alike: rdma/hca: 1."""
    capabilities: tuple[str, ...] = ()
    """Of the training containers, which drop all others: IPC_LOCK."""

    @field_validator("namespace")
    @classmethod
    def _is_label(cls, name: str) -> str:
        names.check_label("kubernetes.namespace", name)
        return name

    @field_validator("queue", "runtime", "service_account", "image_pull_secret", "priority_class")
    @classmethod
    def _are_names(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is not None:
            # A queue is said by a label, whose values are shorter.
            names.check_subdomain(f"kubernetes.{info.field_name}", name, 63 if info.field_name == "queue" else 253)
        return name

    @field_validator("gpu_resource")
    @classmethod
    def _is_extended(cls, name: str) -> str:
        names.check_extended_resource("kubernetes.gpu_resource", name)
        return name

    @field_validator("node_selector")
    @classmethod
    def _are_labels(cls, labels: dict[str, str]) -> dict[str, str]:
        for name, value in labels.items():
            names.check_qualified("kubernetes.node_selector", name)
            names.check_label_value("kubernetes.node_selector", value)
        return labels

    @field_validator("annotations")
    @classmethod
    def _are_annotations(cls, annotations: dict[str, str]) -> dict[str, str]:
        for name in annotations:
            names.check_qualified("kubernetes.annotations", name)
        return annotations

    @field_validator("resources")
    @classmethod
    def _are_resources(cls, resources: dict[str, int | str]) -> dict[str, int | str]:
        names.check_resources("kubernetes.resources", resources)
        return resources

    @field_validator("capabilities")
    @classmethod
    def _are_capabilities(cls, capabilities: tuple[str, ...]) -> tuple[str, ...]:
        for name in capabilities:
            names.check_capability("kubernetes.capabilities", name)
        return capabilities

    @model_validator(mode="after")
    def _says_once(self) -> Kubernetes:
        if self.gpu_resource in self.resources:
            raise ValueError(f"kubernetes.resources holds {self.gpu_resource}: that is said by gpus_per_node")
        if self.priority_class and self.kind == "trainjob" and self.runtime:
            raise ValueError(
                f"kubernetes.priority_class {self.priority_class} is not a TrainJob's to say: its runtime {self.runtime} has it"
            )
        variables = [secret.variable for secret in self.secrets]
        if twice := next((name for name in variables if variables.count(name) > 1), None):
            raise ValueError(f"kubernetes.secrets sets {twice} twice: leave one out")
        return self

    @model_validator(mode="after")
    def _mounts_once(self) -> Kubernetes:
        paths = [volume.path for volume in self.volumes]
        if twice := next((path for path in paths if paths.count(path) > 1), None):
            raise ValueError(f"kubernetes.volumes mounts two claims at {twice}: give each a path of its own")
        return self


class Ray(_Section):
    address: str | None = None
    """The cluster's dashboard, http://HEAD:8265; --ray-address wins over it."""
    auth_mode: Literal["token", "disabled"] = "token"
    """Said to head, workers and driver alike. token: what none of them is given (RAY_AUTH_TOKEN) is refused."""


class LaunchSpec(_Section):
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
    environment: dict[str, str] = {}
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
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"environment holds {name!r}, which no shell takes for a variable's name")
            if _RESERVED.fullmatch(name):
                raise ValueError(f"environment sets {name}, which every job computes for itself: leave it out")
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
