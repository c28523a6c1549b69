"""The section `kubernetes:` of a cluster file: keys that only Kubernetes has."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from launch.cluster.spec import kubernetes_names as names
from launch.cluster.spec.launch_spec import LaunchSpec
from launch.cluster.spec.section import ClusterSection, PlatformSection, check_variable


class Volume(ClusterSection):
    """A persistent volume claim, and the path at which the containers mount it."""

    claim: str
    """Name of the persistent volume claim."""
    path: str
    """Absolute path at which the containers mount it."""
    read_only: bool = False
    """Whether the containers may only read it."""

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


class Secret(ClusterSection):
    """An environment variable whose value stays in a Secret of the cluster."""

    variable: str
    """Environment variable that gets the value."""
    name: str
    """Name of the Secret."""
    key: str
    """Key of the value within the Secret."""

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


class Toleration(ClusterSection):
    """A taint of nodes that the pods tolerate."""

    key: str
    """Key of the taint."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Exists tolerates every value of the taint, Equal only the given one."""
    value: str | None = None
    """Value of the taint, with Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Default: all effects."""

    @model_validator(mode="after")
    def _check_value(self) -> Toleration:
        names.check_qualified("kubernetes.tolerations", self.key)
        names.check_label_value("kubernetes.tolerations", self.value or "")
        if self.value is not None and self.operator == "Exists":
            raise ValueError(
                f"kubernetes.tolerations gives {self.key} a value, which Exists ignores: add operator: Equal, or remove it"
            )
        return self


class KubernetesSection(PlatformSection):
    kind: Literal["jobset", "trainjob"] = "jobset"
    """The object that trains: a JobSet, or a TrainJob of Kubeflow Trainer v2. Data preparation uses KubeRay's RayJob."""
    namespace: str = "default"
    """Namespace that the job and its pods are created in."""
    context: str | None = None
    """kubectl's context. Default: the current one."""
    volumes: tuple[Volume, ...] = ()
    secrets: tuple[Secret, ...] = ()
    queue: str | None = None
    """Kueue's local queue."""
    runtime: str | None = None
    """The ClusterTrainingRuntime that a TrainJob refers to. Default: the one of `fnet-t5 launch kubernetes runtime`."""
    service_account: str | None = None
    """Service account of the pods. Default: the namespace's default account."""
    image_pull_secret: str | None = None
    """Secret with the registry's credentials, to pull `image`."""
    user_id: PositiveInt = 1000
    """User of the processes, and of the files that they write to the volumes."""
    group_id: PositiveInt = 1000
    """Group of the processes, and of the files that they write to the volumes."""
    shared_memory_gb: Annotated[float, Field(ge=0.1)] = 16.0
    """Size of /dev/shm, part of the pod's memory: the container engine's default of 64 MB is too small for NCCL and Ray.

    Ray's object store takes nine tenths of it, and needs at least 75 MiB.
    """
    gpu_resource: str = "nvidia.com/gpu"
    """Name of the resource that counts GPUs."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels that a node must have to run the pods."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of nodes that the pods tolerate."""
    priority_class: str | None = None
    """PriorityClass of the pods."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations of the pods, such as k8s.v1.cni.cncf.io/networks for a second network."""
    resources: dict[str, int | str] = Field(default_factory=dict)
    """Further resources of a pod, besides CPUs, memory and GPUs, as both request and limit: rdma/hca: 1."""
    capabilities: tuple[str, ...] = ()
    """Capabilities added to the training containers, which drop all others: IPC_LOCK."""

    @field_validator("namespace")
    @classmethod
    def _is_label(cls, name: str) -> str:
        names.check_label("kubernetes.namespace", name)
        return name

    @field_validator("queue", "runtime", "service_account", "image_pull_secret", "priority_class")
    @classmethod
    def _are_names(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is not None:
            # The queue becomes the value of a label, which is limited to 63 characters.
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
    def _check_duplicates(self) -> KubernetesSection:
        if self.gpu_resource in self.resources:
            raise ValueError(f"kubernetes.resources holds {self.gpu_resource}: give gpus_per_node instead")
        if self.priority_class and self.kind == "trainjob" and self.runtime:
            raise ValueError(
                f"kubernetes.priority_class {self.priority_class} has no effect on a TrainJob: set it in "
                f"its runtime {self.runtime}"
            )
        variables = [secret.variable for secret in self.secrets]
        if twice := next((name for name in variables if variables.count(name) > 1), None):
            raise ValueError(f"kubernetes.secrets sets {twice} twice: leave one out")
        return self

    @model_validator(mode="after")
    def _check_mount_paths(self) -> KubernetesSection:
        paths = [volume.path for volume in self.volumes]
        if twice := next((path for path in paths if paths.count(path) > 1), None):
            raise ValueError(f"kubernetes.volumes mounts two claims at {twice}: give each a separate path")
        return self

    def check_spec(self, spec: LaunchSpec) -> None:
        if spec.image is None:
            raise ValueError("image is missing: on Kubernetes every process runs in a container; build one from the Dockerfile")
        spec.refuse_slurm_keys()
        if twice := next((secret.variable for secret in self.secrets if secret.variable in spec.environment), None):
            raise ValueError(f"kubernetes.secrets sets {twice}, and so does environment: leave one out")
        memory = spec.memory_gb_per_node
        if memory is not None and self.shared_memory_gb >= memory:
            raise ValueError(
                f"kubernetes.shared_memory_gb {self.shared_memory_gb:g} is part of memory_gb_per_node {memory:g}: no memory "
                "would be left for the processes; raise memory_gb_per_node or lower shared_memory_gb"
            )
