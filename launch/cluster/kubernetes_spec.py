"""The section `kubernetes:` of a cluster file: what only Kubernetes knows."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from launch.cluster import kubernetes_names as names
from launch.cluster.section import Section, check_variable


class Volume(Section):
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


class Secret(Section):
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
        check_variable("kubernetes.secrets", variable)
        return variable

    @field_validator("key")
    @classmethod
    def _is_key(cls, key: str) -> str:
        names.check_secret_key("kubernetes.secrets.key", key)
        return key


class Toleration(Section):
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


class Kubernetes(Section):
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
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    priority_class: str | None = None
    """PriorityClass of the pods."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Of the pods, such as k8s.v1.cni.cncf.io/networks for a second network."""
    resources: dict[str, int | str] = Field(default_factory=dict)
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
