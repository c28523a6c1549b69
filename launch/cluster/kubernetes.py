"""Kubernetes: manifests of a training run (JobSet, TrainJob) and of a preparation (RayJob), and kubectl for the rest.

Pods are told of the job by torchrun's own variables (PET_NNODES, PET_NODE_RANK, …): Kubeflow Trainer sets them, and our
JobSet sets the same, so both start the same command.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from launch.cluster.record import LaunchRecord
from launch.cluster.rendering import render
from launch.cluster.spec import LaunchSpec

MANIFEST = "manifest.yaml"
RECIPE_FOLDER = "/etc/fnet-t5"
RUNTIME = "fnet-t5"
RESOURCES = {"JobSet": "jobsets.jobset.x-k8s.io", "TrainJob": "trainjobs.trainer.kubeflow.org", "RayJob": "rayjobs.ray.io"}

_PORT = 29400
# Names of pods and hosts are made of it: <name>-node-0-<index>-<suffix> must stay a DNS label.
_LONGEST_NAME = 40
# Of /dev/shm; the rest is for what else lies there. Left alone Ray takes 30 % of the pod's memory, up to 10 GB even where
# /dev/shm is smaller, and then puts its objects on disk.
_OBJECT_STORE_SHARE = 0.9
_INSTANCE = "app.kubernetes.io/instance"


class KubernetesError(ValueError):
    """kubectl is not here, or the cluster refused what it was asked."""


def object_name(folder: Path) -> str:
    """The name that a run folder or dataset has in the cluster. Raises ValueError where none can be made of it."""
    name = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")
    if not name or not name[0].isalpha() or len(name) > _LONGEST_NAME:
        raise ValueError(
            f"{folder.name!r} makes no name in Kubernetes: begin with a letter, and keep to {_LONGEST_NAME} letters, digits "
            "and hyphens; give another --output"
        )
    return name


def train_manifest(spec: LaunchSpec, run: Path, recipe: str, overrides: Sequence[str]) -> str:
    """The manifest of a training run: `run` is the folder as the pods see it, `recipe` the recipe's text."""
    assert spec.kubernetes is not None
    options = ["--log-dir", f"{run}/logs", "--redirects", "3", "--tee", "3"]
    own = {
        "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGUSR1",
        "PET_SHUTDOWN_TIMEOUT": str(spec.save_seconds),
        "OMP_NUM_THREADS": str(spec.cpus_per_rank),
    }
    return _manifest(
        "jobset.yaml.j2" if spec.kubernetes.kind == "jobset" else "trainjob.yaml.j2",
        **_common(spec, object_name(run), recipe, own),
        command=["python3", "-m", "torch.distributed.run", *options, "--no-python"],
        train=["fnet-t5", "train", f"{RECIPE_FOLDER}/recipe.yaml", "--output", str(run), *overrides],
        port=_PORT,
        runtime=RUNTIME,
    )


def runtime_manifest(spec: LaunchSpec) -> str:
    """The TrainingRuntime of a namespace, which TrainJobs refer to that name no other.

    Kubeflow's own `torch-distributed` leaves the restarts to defaults: each container by itself, in its place.
    """
    return _manifest("trainjob_runtime.yaml.j2", spec=spec, kubernetes=spec.kubernetes, runtime=RUNTIME)


def prepare_manifest(spec: LaunchSpec, output: Path, recipe: str) -> str:
    """The manifest of a preparation of `output` (as the pods see it) by the recipe's text."""
    assert spec.kubernetes is not None
    return _manifest(
        "rayjob.yaml.j2",
        **_common(spec, object_name(output), recipe, {}),
        prepare=["fnet-t5", "prepare", "--config", f"{RECIPE_FOLDER}/recipe.yaml", "--ray-address", "auto"],
        ray_version=version("ray"),
        object_store_bytes=int(_OBJECT_STORE_SHARE * spec.kubernetes.shared_memory_gb * 2**30),
    )


def _manifest(template: str, **values: Any) -> str:
    # Where a part of the template is empty its line stays blank; no value spans lines.
    return re.sub(r"\n(?: *\n)+", "\n", render(template, **values))


def _common(spec: LaunchSpec, name: str, recipe: str, own: dict[str, str]) -> dict[str, Any]:
    return {
        "spec": spec,
        "kubernetes": spec.kubernetes,
        "name": name,
        "recipe": recipe,
        "recipe_folder": RECIPE_FOLDER,
        # The cluster file's win: own values are defaults.
        "variables": {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **own, **spec.environment},
        # torchrun waits save_seconds for its ranks, and then needs a moment itself.
        "grace_seconds": spec.save_seconds + 30,
    }


def kind_of(manifest: str) -> str:
    """JobSet, TrainJob or RayJob."""
    kinds: list[str] = [document["kind"] for document in yaml.safe_load_all(manifest)]
    return next(kind for kind in kinds if kind in RESOURCES)


def submit(manifest: Path, spec: LaunchSpec) -> None:
    """Make the manifest's objects. Raises KubernetesError with the cluster's words, where the manifest is, and the remedy."""
    assert spec.kubernetes is not None
    base = _base(spec.kubernetes.context)
    try:
        _kubectl(spec.kubernetes.context, "create", "--filename", str(manifest))
    except KubernetesError as error:
        taken = "AlreadyExists" in str(error)
        # No record is written, so `launch cancel` knows nothing of what was made before the error.
        remove = shlex.join([*base, "delete", "--ignore-not-found", "--filename", str(manifest)])
        remedy = "give another --output, or end and remove what has its names" if taken else "remove what was made of it"
        raise KubernetesError(f"{error}; the manifest is kept in {manifest}: {remedy} by `{remove}`") from error


def state(record: LaunchRecord) -> str:
    """Conditions of the object, and a line a pod."""
    columns = "-o=jsonpath={range .status.conditions[?(@.status=='True')]}{.type}: {.message}{'\\n'}{end}"
    conditions = _kubectl(record.context, "get", RESOURCES[record.kind], record.job_id, "-n", record.namespace, columns)
    pods = _kubectl(record.context, "get", "pods", "-n", record.namespace, "--selector", f"{_INSTANCE}={record.job_id}")
    return f"{conditions}{pods}".rstrip()


def cancel(record: LaunchRecord) -> None:
    """Remove the object and its recipe; pods get their grace period to save."""
    _kubectl(record.context, "delete", "--ignore-not-found", "--filename", str(record.file))


def logs(record: LaunchRecord, lines: int, follow: bool) -> list[str]:
    """The command that shows the pods' output."""
    selector = f"{_INSTANCE}={record.job_id}"
    options = ["--namespace", record.namespace, "--selector", selector, "--prefix", f"--tail={lines}", "--max-log-requests=100"]
    return [*_base(record.context), "logs", *options, *(["--follow"] if follow else [])]


def _base(context: str | None) -> list[str]:
    if shutil.which("kubectl") is None:
        raise KubernetesError("kubectl is not on the PATH: install it, or see the manifest with --dry-run")
    return ["kubectl", *(["--context", context] if context else [])]


def _kubectl(context: str | None, *arguments: str) -> str:
    done = subprocess.run([*_base(context), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KubernetesError(f"kubectl {arguments[0]} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout
