"""Training in two simulated pods: each has its own hostname, /etc and environment, as the controllers create them.

Environment of pods, by the documentation of JobSet and Kubeflow Trainer: Kubernetes sets JOB_COMPLETION_INDEX and the hostname
`<job>-<index>` in pods of an indexed Job; JobSet names its Job `<jobset>-<replicated job>-0` and makes
`<job>-<index>.<jobset>` resolve; the Trainer sets PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_ADDR and
PET_MASTER_PORT, and names the JobSet like the TrainJob.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.run_folder import read_status
from pipeline.tracking.metrics import read_metrics

NAME = "nano-run"

# In a separate mount and host namespace: /etc with the pod's names and the recipe, then the container's command.
POD = r"""
set -eu
hostname "$POD_NAME"
mount -t tmpfs tmpfs "$POD_ROOT"
cp -a /etc/. "$POD_ROOT"/
printf '127.0.0.1 localhost %s\n' "$POD_HOSTS" > "$POD_ROOT"/hosts
mkdir "$POD_ROOT"/fnet-t5
cp "$POD_RECIPE" "$POD_ROOT"/fnet-t5/recipe.yaml
mount --bind "$POD_ROOT" /etc
unset POD_NAME POD_ROOT POD_HOSTS POD_RECIPE
exec "$@"
"""


@pytest.fixture(scope="module")
def namespaces() -> None:
    done = subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True, check=False)
    if os.geteuid() != 0 or done.returncode:
        pytest.skip("simulated pods need root and namespaces (unshare --mount --uts)")


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("kind", ["jobset", pytest.param("trainjob", marks=pytest.mark.slow)])
def test_two_pods_train(
    kind: str, command: Callable[..., int], dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster, recipe, run = tmp_path / "cluster.yaml", tmp_path / "recipe.yaml", tmp_path / "runs" / NAME
    run.parent.mkdir()
    volumes = [{"claim": "data", "path": str(dataset.parent), "read_only": True}, {"claim": "runs", "path": str(run.parent)}]
    cluster.write_text(
        yaml.safe_dump(
            {
                **{"nodes": 2, "cpus_per_node": 1, "image": "fnet-t5:test", "preemption_grace_seconds": 60},
                "environment": {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": 1},
                "kubernetes": {"kind": kind, "volumes": volumes},
            }
        )
    )
    recipe.write_text(
        yaml.safe_dump(
            {
                "model": {"size": "nano"},
                "data": {"path": str(dataset), "encoder_length": 16, "decoder_length": 8, "validation_rows": 8},
                "mesh": {"pipeline_parallel": 2},
                "train": {"steps": 3, "global_batch_size": 4, "micro_batch_size": 2, "precision": "fp32", "log_every": 1},
                "tracking": {"enabled": False},
            }
        )
    )
    launch = ["launch", "kubernetes", "train", recipe, "--cluster", cluster, "--output", run, "--dry-run"]
    assert command(*launch) == 0
    kept_recipe, found = yaml.safe_load_all(capsys.readouterr().out)
    (tmp_path / "kept.yaml").write_text(kept_recipe["data"]["recipe.yaml"])
    pods = [_start(_container(found, index), index, tmp_path) for index in range(2)]
    try:
        outputs = [pod.communicate(timeout=240)[0] for pod in pods]
    finally:
        for pod in pods:
            pod.kill()
    assert [pod.returncode for pod in pods] == [0, 0], "\n".join(outputs)
    assert read_status(run) == "finished"
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row] == [1, 2, 3]


def _container(found: dict[str, Any], index: int) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a pod's container, as the kubelet resolves them."""
    spec = found["spec"]
    if found["kind"] == "TrainJob":
        trainer = spec["trainer"]
        rank = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        injected: list[dict[str, Any]] = [
            {"name": "PET_NNODES", "value": str(trainer["numNodes"])},
            {"name": "PET_NPROC_PER_NODE", "value": str(trainer["numProcPerNode"])},
            {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": rank}}},
            {"name": "PET_MASTER_ADDR", "value": f"{NAME}-node-0-0.{NAME}"},
            {"name": "PET_MASTER_PORT", "value": "29400"},
        ]
        container = {**trainer, "env": [*trainer["env"], *injected]}
    else:
        container = spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    annotations = {"metadata.annotations['batch.kubernetes.io/job-completion-index']": str(index)}
    variables = {
        variable["name"]: variable["value"]
        if "value" in variable
        else annotations[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        for variable in container["env"]
    }
    return [*container["command"], *container["args"]], {"JOB_COMPLETION_INDEX": str(index), **variables}


def _start(container: tuple[list[str], dict[str, str]], index: int, folder: Path) -> subprocess.Popen[str]:
    """Start the container's process in a pod. `python3` and `fnet-t5` replace those on the PATH of its image."""
    words, variables = container
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, line in {
        "python3": f'exec {sys.executable} "$@"',
        "fnet-t5": f'exec {sys.executable} -c "from launch.cli import main; main()" "$@"',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{line}\n")
        (programs / name).chmod(0o755)
    root = folder / f"etc{index}"
    root.mkdir()
    hosts = " ".join(f"{NAME}-node-0-{pod}.{NAME} {NAME}-node-0-{pod}" for pod in range(2))
    pod = {
        "POD_NAME": f"{NAME}-node-0-{index}",
        "POD_ROOT": str(root),
        "POD_HOSTS": hosts,
        "POD_RECIPE": str(folder / "kept.yaml"),
    }
    unshare = shutil.which("unshare")
    assert unshare is not None
    return subprocess.Popen(
        [unshare, "--mount", "--uts", "bash", "-c", POD, "pod", *words],
        env={"PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder), **variables, **pod},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
