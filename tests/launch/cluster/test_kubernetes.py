"""Manifests validated with the published schemas, and a fake kubectl that records its arguments."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.cluster import kubernetes
from launch.cluster.platform import PrepareJob, TrainJob
from launch.cluster.record import read_record
from launch.cluster.spec.load import launch_spec_class
from launch.config import load_config
from tests.helpers import crd_schemas

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")

KINDS = {
    "JobSet": ("jobset.x-k8s.io_jobsets.yaml", "v1alpha2"),
    "TrainJob": ("trainer.kubeflow.org_trainjobs.yaml", "v1alpha1"),
    "RayJob": ("ray.io_rayjobs.yaml", "v1"),
}
CORE_VERSION = "1.31"
# Maps with arbitrary keys.
FREE = {"labels", "annotations", "limits", "requests", "nodeSelector", "rayStartParams"}


@pytest.fixture(scope="module")
def validators(test_data: Path) -> dict[str, Any]:
    folder = test_data / "kubernetes-crds"
    if not folder.is_dir():
        pytest.skip(f"no published schemas of JobSet, TrainJob and RayJob in {folder}")
    return {kind: crd_schemas.validator(folder / file, version) for kind, (file, version) in KINDS.items()}


def manifest(kind: str, *changes: str) -> dict[str, Any]:
    """The object of a manifest for a cluster file that uses every key."""
    full = [
        "time_limit=1-00:00:00",
        "kubernetes.service_account=trainer",
        "kubernetes.image_pull_secret=registry",
        "kubernetes.node_selector={pool: a100}",
        "kubernetes.secrets=[{variable: TOKEN, name: mlflow, key: token}]",
        "kubernetes.tolerations=[{key: gpu, operator: Equal, value: 'yes', effect: NoSchedule}, {key: spot}]",
        "kubernetes.queue=gpu",
        "kubernetes.priority_class=high",
        "kubernetes.annotations={k8s.v1.cni.cncf.io/networks: rdma-net}",
        "kubernetes.resources={rdma/hca: 1, ephemeral-storage: 20Gi}",
        "kubernetes.capabilities=[IPC_LOCK]",
        f"kubernetes.kind={'trainjob' if kind == 'TrainJob' else 'jobset'}",
        *changes,
    ]
    name = "configs/cluster/kubernetes-prepare.yaml" if kind == "RayJob" else "configs/cluster/kubernetes.yaml"
    spec = load_config(launch_spec_class(), name, full)
    if kind == "RayJob":
        data = Path("/data/pile")
        text = kubernetes.prepare_manifest(
            PrepareJob(cluster=spec, folder=data, record_folder=data, recipe="input: [a]\n", workers=1)
        )
    else:
        run, recipe = Path("/runs/base"), "model: {size: nano}\n"
        text = kubernetes.train_manifest(
            TrainJob(cluster=spec, folder=run, record_folder=run, recipe=recipe, overrides=("train.steps=3",))
        )
    assert kubernetes.kind_of(text) == kind
    recipe_map, found = yaml.safe_load_all(text)
    kubernetes_validate.validate(recipe_map, CORE_VERSION, strict=True)
    assert isinstance(found, dict)
    return found


def objects(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every object inside a value."""
    if isinstance(value, dict):
        yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from objects(child, (*path, key))


def at(value: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def pods(kind: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates inside a custom resource, as core objects."""
    spec = found["spec"]
    if kind == "JobSet":
        job = spec["replicatedJobs"][0]["template"]
        kubernetes_validate.validate(
            {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "node"}, **job}, CORE_VERSION, strict=True
        )
        templates = [job["spec"]["template"]]
    elif kind == "RayJob":
        cluster = spec["rayClusterSpec"]
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        templates = [spec["submitterPodTemplate"], *(group["template"] for group in groups)]
    else:  # the runtime, the patch and the trainer together define a pod
        cluster = load_config(launch_spec_class(), "configs/cluster/kubernetes.yaml", ["kubernetes.priority_class=high"])
        runtime = yaml.safe_load(kubernetes.runtime_manifest(cluster))
        base = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        patch = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]
        template = copy.deepcopy(patch["spec"]["template"])
        trainer = spec["trainer"]
        template["spec"]["containers"][0] |= {key: trainer[key] for key in ("image", "command", "args", "env")}
        template["spec"]["containers"][0]["resources"] = trainer["resourcesPerNode"]
        template["spec"]["containers"][0] = {**base["containers"][0], **template["spec"]["containers"][0]}
        template["spec"] = {**base, **template["spec"]}
        templates = [template]
    return [{"apiVersion": "v1", "kind": "Pod", **template} for template in templates]


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_is_valid_in_strict_mode(kind: str, validators: dict[str, Any]) -> None:
    found = manifest(kind)
    assert not [error.message for error in validators[kind].iter_errors(found)]
    inside = [path for path in objects(found) if "metadata" not in path and path and path[-1] not in FREE]
    assert len(inside) > 20
    for path in inside:
        misspelt = copy.deepcopy(found)
        at(misspelt, path)["mispelt"] = 1
        assert not validators[kind].is_valid(misspelt), f"a misspelt field is accepted at {path}"


@pytest.mark.parametrize("kind", KINDS)
def test_pods_of_a_manifest_are_valid_core_objects_in_strict_mode(kind: str) -> None:
    for pod in pods(kind, manifest(kind)):
        kubernetes_validate.validate(pod, CORE_VERSION, strict=True)
        for path in [path for path in objects(pod["spec"]) if not path or path[-1] not in FREE]:
            misspelt = copy.deepcopy(pod)
            at(misspelt["spec"], path)["mispelt"] = 1
            with pytest.raises(kubernetes_validate.ValidationError):
                kubernetes_validate.validate(misspelt, CORE_VERSION, strict=True)


@pytest.mark.parametrize("kind", KINDS)
def test_pods_have_the_needed_resources_and_no_other_rights(kind: str) -> None:
    for pod in pods(kind, manifest(kind)):
        spec, container = pod["spec"], pod["spec"]["containers"][0]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] == 1000
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        added = {} if kind == "RayJob" else {"add": ["IPC_LOCK"]}
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], **added}
        assert spec["serviceAccountName"] == "trainer"
        assert spec["priorityClassName"] == "high"
        assert pod["metadata"]["annotations"] == {"k8s.v1.cni.cncf.io/networks": "rdma-net"}
        if container["name"] == "submitter":
            assert set(container["resources"]["limits"]) == {"cpu", "memory"}
            continue
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert container["resources"]["limits"].items() >= {"rdma/hca": 1, "ephemeral-storage": "20Gi"}.items()
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert volumes[mounted["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert volumes[mounted["/data"]]["persistentVolumeClaim"]["claimName"] == "datasets"
        assert spec["terminationGracePeriodSeconds"] >= 300  # preemption_grace_seconds
        token = next(variable for variable in container["env"] if variable["name"] == "TOKEN")
        assert token["valueFrom"] == {"secretKeyRef": {"name": "mlflow", "key": "token"}}
        if kind != "RayJob":
            assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
            assert "NCCL_SOCKET_IFNAME" in {variable["name"] for variable in container["env"]}


def test_the_runtime_of_trainjobs_restarts_like_a_jobset(
    validators: dict[str, Any], command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """By the Trainer's API its template contains a JobSet's spec. The test data have no schema for the rest."""
    assert command("launch", "kubernetes", "runtime", "--cluster", "cluster/kubernetes", "--set", "max_restarts=7") == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert (found["kind"], found["metadata"]["namespace"]) == ("TrainingRuntime", "training")
    assert set(found["spec"]) == {"mlPolicy", "template"}
    made = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": "base"},
        **found["spec"]["template"],
    }
    assert not [error.message for error in validators["JobSet"].iter_errors(made)]
    own = manifest("JobSet", "max_restarts=7")["spec"]
    assert made["spec"]["failurePolicy"] == own["failurePolicy"]
    assert made["spec"]["network"] == own["network"]
    job, own_job = (spec["replicatedJobs"][0]["template"]["spec"] for spec in (made["spec"], own))
    for key in ("backoffLimit", "podFailurePolicy", "completionMode"):
        assert job[key] == own_job[key]
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    kubernetes_validate.validate(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "node"}, "spec": job}, CORE_VERSION, strict=True
    )


def test_a_trainjob_refers_to_our_runtime_or_to_one_of_the_cluster() -> None:
    ours, theirs = (
        manifest("TrainJob", f"kubernetes.runtime={name}", "kubernetes.priority_class=null")["spec"]["runtimeRef"]
        for name in ("null", "torch")
    )
    assert (ours["kind"], ours["name"]) == ("TrainingRuntime", kubernetes.RUNTIME)
    assert (theirs["kind"], theirs["name"]) == ("ClusterTrainingRuntime", "torch")


def test_rays_object_store_is_in_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The size by Ray's own computation, in a pod of the shipped file. Without the parameter Ray would use the disk."""
    from ray._common import utils as common
    from ray._private import services, utils

    cluster = manifest("RayJob")["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        limit = mebibytes(pod["containers"][0]["resources"]["limits"]["memory"])
        shared = mebibytes(pod["volumes"][0]["emptyDir"]["sizeLimit"])
        assert shared < limit / 2  # the content of /dev/shm counts towards the limit
        monkeypatch.setattr(common, "get_system_memory", lambda limit=limit: limit)
        monkeypatch.setattr(utils, "get_shared_memory_bytes", lambda shared=shared: shared)
        object_store = int(group["rayStartParams"]["object-store-memory"])
        assert services.determine_plasma_store_config(object_store, str(tmp_path)) == ("/dev/shm", str(tmp_path), object_store)
        untold = utils.resolve_object_store_memory(limit)
        assert services.determine_plasma_store_config(untold, str(tmp_path))[0] == str(tmp_path)


def test_minimum_shared_memory_fits_rays_minimum_object_store() -> None:
    from ray._private.ray_constants import OBJECT_STORE_MINIMUM_MEMORY_BYTES

    cluster = manifest("RayJob", "kubernetes.shared_memory_gb=0.1")["spec"]["rayClusterSpec"]
    assert int(cluster["headGroupSpec"]["rayStartParams"]["object-store-memory"]) >= OBJECT_STORE_MINIMUM_MEMORY_BYTES


def mebibytes(quantity: str) -> int:
    return int(quantity.removesuffix("Mi")) * 2**20


def test_the_help_does_not_name_files_of_other_platforms(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("launch", "kubernetes", "train", "--help") == 0
    shown = capsys.readouterr().out
    assert "--cluster" in shown
    assert "slurm" not in shown


def test_object_names_come_from_folder_names_and_invalid_ones_are_refused() -> None:
    assert kubernetes.object_name(Path("/runs/Base_v1.1")) == "base-v1-1"
    for name in ("8gpus", "x" * 41, "___"):
        with pytest.raises(ValueError, match="give another --output"):
            kubernetes.object_name(Path("/runs") / name)


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[str]]]:
    """A fake kubectl that succeeds, or fails with the text in `refusal`, and records its arguments."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/bash\nprintf "%s\\n" "$@" | python3 -c "import json, sys; print(json.dumps(sys.stdin.read().splitlines()))" '
        f">> {tmp_path}/calls\n[[ ! -f {tmp_path}/refusal ]] || {{ cat {tmp_path}/refusal >&2; exit 1; }}\necho says kubectl\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return lambda: [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]


def test_a_run_is_submitted_followed_and_cancelled_by_kubectl(
    command: Callable[..., int],
    kubectl: Callable[[], list[list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    cluster = ["--cluster", "configs/cluster/kubernetes.yaml", "--set", "kubernetes.context=prod"]
    launch = ["launch", "kubernetes", "train", "configs/train/base.yaml", *cluster, "data.path=/data/pile"]
    assert command(*launch, "--dry-run") == 0
    shown = capfd.readouterr().out
    assert not list(tmp_path.glob("runs*"))
    assert command(*launch) == 0
    record = read_record(Path("runs/base"))
    assert record.file.read_text() == shown
    assert (record.kind, record.job_id, record.namespace, record.context) == ("JobSet", "base", "training", "prod")
    assert command("launch", "status", "runs/base") == 0
    assert "says kubectl" in capfd.readouterr().out
    assert command("launch", "logs", "runs/base", "--follow") == 0
    assert command("launch", "cancel", "runs/base") == 0
    create, get, get_pods, logs, delete = kubectl()
    assert create == ["--context", "prod", "create", "--filename", "runs/base/launch/manifest.yaml"]
    assert get[2:7] == ["get", "jobsets.jobset.x-k8s.io", "base", "-n", "training"]
    assert get_pods[-2:] == ["--selector", "app.kubernetes.io/instance=base"]
    assert {"logs", "--follow", "--prefix"} <= set(logs)
    assert delete[2:] == ["delete", "--ignore-not-found", "--filename", str(record.file)]


def test_an_object_that_already_exists_is_reported_with_the_remedy(
    command: Callable[..., int],
    kubectl: Callable[[], list[list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refusal").write_text('Error from server (AlreadyExists): jobsets "base" already exists\n')
    launch = ["launch", "kubernetes", "train", "train/base", "--cluster", "configs/cluster/kubernetes.yaml"]
    assert command(*launch, "data.path=/data/pile") == 1
    error = capsys.readouterr().err
    assert (
        "already exists; the manifest is kept in runs/base/launch/manifest.yaml: give another --output, or end and remove"
        in error
    )
    assert "with `kubectl delete --ignore-not-found --filename runs/base/launch/manifest.yaml`" in error
    assert not (tmp_path / "runs/base/launch/record.json").exists()


def test_the_error_of_a_refused_launch_names_the_manifest(
    command: Callable[..., int],
    kubectl: Callable[[], list[list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refusal").write_text("error: the server could not find the requested resource\n")
    launch = ["launch", "kubernetes", "train", "train/base", "--cluster", "configs/cluster/kubernetes.yaml"]
    assert command(*launch, "data.path=/data/pile", "--set", "kubernetes.context=prod", "--keep", "kept here") == 1
    error = capsys.readouterr().err
    assert "could not find the requested resource; the manifest is kept in kept here/launch/manifest.yaml" in error
    assert "`kubectl --context prod delete --ignore-not-found --filename 'kept here/launch/manifest.yaml'`" in error
    assert (tmp_path / "kept here/launch/manifest.yaml").is_file()
