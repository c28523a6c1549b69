"""Kubernetes: manifests of a training run (JobSet, TrainJob) and of a data preparation (RayJob), and calls of kubectl.

Pods read the job's size and addresses from torchrun's own variables (PET_NNODES, PET_NODE_RANK, …). Kubeflow Trainer sets them,
and our JobSet sets the same ones, so both start the same command.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from launch.cluster.platform import ClusterJob, Platform, PrepareJob, RenderedScript, Submission, TrainJob
from launch.cluster.record import LaunchRecord
from launch.cluster.rendering import render
from launch.cluster.spec.kubernetes_section import KubernetesSection
from launch.cluster.spec.launch_spec import LaunchSpec

MANIFEST = "manifest.yaml"
RECIPE_FOLDER = "/etc/fnet-t5"
RUNTIME = "fnet-t5"
RESOURCES = {"JobSet": "jobsets.jobset.x-k8s.io", "TrainJob": "trainjobs.trainer.kubeflow.org", "RayJob": "rayjobs.ray.io"}

_PORT = 29400
# The names of pods and hosts contain it, and <name>-node-0-<index>-<suffix> must be a DNS label.
_LONGEST_NAME = 40
# Of /dev/shm; the rest is for its other users. By default Ray takes 30 % of the pod's memory, up to 10 GB, and puts its objects
# on disk if /dev/shm is smaller.
_OBJECT_STORE_SHARE = 0.9
_INSTANCE = "app.kubernetes.io/instance"


class KubernetesError(ValueError):
    """kubectl is not installed here, or a command of kubectl failed."""


class _ObjectAccess(BaseModel):
    """What kubectl needs to find an object again, besides its name."""

    model_config = ConfigDict(extra="ignore")

    kind: str
    namespace: str
    context: str | None = None


class KubernetesPlatform(Platform):
    """Objects made by kubectl: a JobSet or TrainJob trains, a RayJob prepares data."""

    section = KubernetesSection

    def render(self, job: ClusterJob) -> tuple[RenderedScript, ...]:
        spec = job.cluster
        if isinstance(job, TrainJob):
            text, size = train_manifest(job), f"{spec.nodes} pods x {spec.ranks_per_node} ranks"
        elif isinstance(job, PrepareJob):
            text, size = prepare_manifest(job), f"{spec.nodes} Ray pods x {spec.cpus_per_node} CPUs"
        else:
            raise ValueError(f"{job.kind} jobs do not run on Kubernetes: use SLURM")
        return (RenderedScript(name=MANIFEST, text=text, size=size),)

    def submit(self, job: ClusterJob, scripts: tuple[RenderedScript, ...]) -> Submission:
        """Create the manifest's objects. Raises KubernetesError with the cluster's message, the manifest and the remedy."""
        (manifest,) = scripts
        section = job.cluster.section(KubernetesSection)
        _create(job.launch_folder / manifest.name, section.context)
        name, kind = object_name(job.folder), kind_of(manifest.text)
        details = {"kind": kind, "namespace": section.namespace, "context": section.context}
        return Submission(job_id=name, title=f"{kind} {name}", details=details)

    def state(self, record: LaunchRecord) -> str:
        """The object's conditions, and a line for each pod."""
        own = _details(record)
        columns = "-o=jsonpath={range .status.conditions[?(@.status=='True')]}{.type}: {.message}{'\\n'}{end}"
        conditions = _kubectl(own.context, "get", RESOURCES[own.kind], record.job_id, "-n", own.namespace, columns)
        pods = _kubectl(own.context, "get", "pods", "-n", own.namespace, "--selector", f"{_INSTANCE}={record.job_id}")
        return f"{conditions}{pods}".rstrip()

    def cancel(self, record: LaunchRecord) -> None:
        """Remove the object and its recipe; pods get their grace period to save."""
        _kubectl(_details(record).context, "delete", "--ignore-not-found", "--filename", str(record.file))

    def logs(self, record: LaunchRecord, *, lines: int, follow: bool) -> int:
        """The output of all pods of the job, each line with the name of its pod."""
        own = _details(record)
        selector = ["--namespace", own.namespace, "--selector", f"{_INSTANCE}={record.job_id}"]
        options = ["--prefix", f"--tail={lines}", "--max-log-requests=100", *(["--follow"] if follow else [])]
        return subprocess.run([*_base(own.context), "logs", *selector, *options], check=False).returncode


PLATFORM = KubernetesPlatform()


def object_name(folder: Path) -> str:
    """The object's name in the cluster, made of the folder's name. Raises ValueError if the folder's name has no valid form."""
    name = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")
    if not name or not name[0].isalpha() or len(name) > _LONGEST_NAME:
        raise ValueError(
            f"{folder.name!r} cannot be a name in Kubernetes: start with a letter, and use at most {_LONGEST_NAME} letters, "
            "digits and hyphens; give another --output"
        )
    return name


def train_manifest(job: TrainJob) -> str:
    """The manifest of a training run; `job.folder` is the run folder as the pods see it."""
    spec = job.cluster
    options = ["--log-dir", f"{job.folder}/logs", "--redirects", "3", "--tee", "3"]
    defaults = {
        "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGUSR1",
        "PET_SHUTDOWN_TIMEOUT": str(spec.preemption_grace_seconds),
        "OMP_NUM_THREADS": str(spec.cpus_per_rank),
    }
    return _manifest(
        "jobset.yaml.j2" if spec.section(KubernetesSection).kind == "jobset" else "trainjob.yaml.j2",
        **_common_values(job, defaults),
        command=["python3", "-m", "torch.distributed.run", *options, "--no-python"],
        train=["fnet-t5", "train", f"{RECIPE_FOLDER}/recipe.yaml", "--output", str(job.folder), *job.overrides],
        port=_PORT,
        runtime=RUNTIME,
    )


def runtime_manifest(spec: LaunchSpec) -> str:
    """The TrainingRuntime of a namespace, for TrainJobs that name no other runtime.

    Kubeflow's own `torch-distributed` sets no restart policy: its containers restart one by one, in place.
    """
    return _manifest("trainjob_runtime.yaml.j2", spec=spec, kubernetes=spec.section(KubernetesSection), runtime=RUNTIME)


def prepare_manifest(job: PrepareJob) -> str:
    """The manifest of a data preparation; `job.folder` is the dataset folder as the pods see it."""
    shared_memory_gb = job.cluster.section(KubernetesSection).shared_memory_gb
    return _manifest(
        "rayjob.yaml.j2",
        **_common_values(job, {}),
        prepare=["fnet-t5", "prepare", "--config", f"{RECIPE_FOLDER}/recipe.yaml", "--ray-address", "auto"],
        ray_version=version("ray"),
        object_store_bytes=int(_OBJECT_STORE_SHARE * shared_memory_gb * 2**30),
    )


def kind_of(manifest: str) -> str:
    """JobSet, TrainJob or RayJob."""
    kinds: list[str] = [document["kind"] for document in yaml.safe_load_all(manifest)]
    return next(kind for kind in kinds if kind in RESOURCES)


def _manifest(template: str, **values: Any) -> str:
    # An empty part of a template leaves a blank line. No value spans several lines, so all blank lines can go.
    return re.sub(r"\n(?: *\n)+", "\n", render(template, **values))


def _common_values(job: TrainJob | PrepareJob, defaults: dict[str, str]) -> dict[str, Any]:
    spec = job.cluster
    return {
        "spec": spec,
        "kubernetes": spec.section(KubernetesSection),
        "name": object_name(job.folder),
        "recipe": job.recipe,
        "recipe_folder": RECIPE_FOLDER,
        # The cluster file's environment overrides the defaults.
        "variables": {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **defaults, **spec.environment},
        # torchrun waits preemption_grace_seconds for its ranks, and then needs a moment itself.
        "grace_seconds": spec.preemption_grace_seconds + 30,
    }


def _create(manifest: Path, context: str | None) -> None:
    base = _base(context)
    try:
        _kubectl(context, "create", "--filename", str(manifest))
    except KubernetesError as error:
        taken = "AlreadyExists" in str(error)
        # No record is written, so `launch cancel` does not know the objects that were created before the error.
        remove = shlex.join([*base, "delete", "--ignore-not-found", "--filename", str(manifest)])
        remedy = "give another --output, or end and remove the objects of these names" if taken else "remove what was created"
        raise KubernetesError(f"{error}; the manifest is kept in {manifest}: {remedy} with `{remove}`") from error


def _details(record: LaunchRecord) -> _ObjectAccess:
    try:
        return _ObjectAccess.model_validate(record.details)
    except ValidationError as error:
        raise ValueError(f"the record of {record.folder} lacks the object's kind or namespace: launch again") from error


def _base(context: str | None) -> list[str]:
    if shutil.which("kubectl") is None:
        raise KubernetesError("kubectl is not on the PATH: install it, or see the manifest with --dry-run")
    return ["kubectl", *(["--context", context] if context else [])]


def _kubectl(context: str | None, *arguments: str) -> str:
    done = subprocess.run([*_base(context), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KubernetesError(f"kubectl {arguments[0]} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout
