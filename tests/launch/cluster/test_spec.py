"""Cluster files: the shipped ones load, and each error in a file is reported with its remedy before anything is submitted."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launch.cluster.spec.launch_spec import parse_time
from launch.cluster.spec.load import launch_spec_class, load_cluster
from launch.config import load_config
from launch.config_errors import ConfigError
from launch.recipes import packaged_recipes

SHIPPED = [name for name in packaged_recipes() if name.startswith("configs/cluster/")]
VALUES: dict[str, Any] = {"nodes": 2, "gpus_per_node": 8, "cpus_per_node": 64, "time_limit": "12:00:00", "slurm": {}}
KUBERNETES: dict[str, Any] = {"nodes": 2, "gpus_per_node": 8, "cpus_per_node": 64, "image": "fnet-t5:1"}


def test_every_platform_has_shipped_files() -> None:
    assert {load_config(launch_spec_class(), name).platform for name in SHIPPED} == {"slurm", "kubernetes", "ray"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(values: dict[str, Any] = VALUES, **changes: Any) -> Path:
        path = tmp_path / "cluster.yaml"
        path.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
        return path

    return write


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"gpu_per_node": 8}, r"cluster.yaml:6: unknown key gpu_per_node; did you mean gpus_per_node\?"),
        ({"slurm": {"partion": "gpu"}}, r"cluster.yaml:\d: unknown key slurm.partion; did you mean slurm.partition\?"),
        ({"nodes": 0}, r"cluster.yaml:1: nodes is 0; expected a number greater than"),
        ({"nodes": "many"}, r"cluster.yaml:1: nodes is 'many'; expected a whole number"),
        ({"time_limit": "soon"}, r"cluster.yaml:4: .*time_limit 'soon' is not a time: write \"90\" \(minutes\)"),
        ({"time_limit": 1440}, r"time_limit was read as the number 1440 .*put it in quotes"),
        (
            {"time_limit": "4", "preemption_grace_seconds": 300},
            r"time_limit '4' is 240 s, not more than preemption_grace_seconds 300.*raise time_limit",
        ),
        ({"save_seconds": 300}, r"save_seconds is now named preemption_grace_seconds: rename the key"),
        ({"slurm": {"at_once": 4}}, r"cluster\.yaml:\d+: slurm\.at_once is now named slurm\.max_concurrent: rename the key"),
        ({"processes_per_node": 16}, r"processes_per_node 16 exceeds gpus_per_node 8: ranks do not share a GPU"),
        ({"cpus_per_node": 4}, r"cpus_per_node 4 is less than the 8 ranks of a node: raise it"),
        ({"environment": {"MASTER_ADDR": "n1"}}, r"environment sets MASTER_ADDR, which every job computes for itself"),
        ({"environment": {"a b": "1"}}, r"environment holds 'a b', which is not a valid name of"),
        ({"setup": ["#SBATCH --mem=0"]}, r"sbatch's options go to slurm.options"),
        ({"slurm": {"options": ["mem=0"]}}, r"slurm.options holds 'mem=0': write an option of sbatch in full"),
        ({"slurm": {"options": ["--comment=of FNet"]}}, r"blanks in double quotes: --comment=\"a text\""),
        ({"slurm": {"options": ["--time=1:00"]}}, r"'--time=1:00', which the script sets itself: give time_limit"),
        ({"slurm": {"options": ["--gres=gpu:2"]}}, r"which the script sets itself: give gpus_per_node and slurm.gpu_type"),
        ({"slurm": {"options": ["--no-requeue"]}}, r"which the script sets itself: give max_restarts; 0 for none"),
        (
            {"slurm": {"options": ["--gres=disk:1"], "gpu_option": "gres"}},
            r"it would replace the GPUs that slurm.gpu_option gres requests",
        ),
        ({"slurm": {"account": 'a"; rm'}}, r"slurm.account.* is not a name that SLURM can read: remove blanks, quotes"),
        ({"image": "a", "mounts": [{"source": "/a b", "target": "/a"}]}, r"mounts names '/a b': give an absolute path without"),
        ({"mounts": [{"source": "/a", "target": "/b"}]}, r"mounts are folders in a container, and no image is given"),
        ({"kubernetes": {}}, r"has one of the sections slurm, kubernetes, ray; this file has slurm and kubernetes"),
        ({"slurm": None}, r"has one of the sections slurm, kubernetes, ray; this file has none"),
    ],
)
def test_errors_of_a_file_name_the_key_and_the_remedy(
    changes: dict[str, Any], expected: str, write: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        load_cluster(str(write(**changes)), [], "slurm")
    assert "cluster.yaml" in str(caught.value)


def test_a_renamed_key_of_an_override_is_reported_as_that_override(write: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"^override 'slurm\.at_once=3': slurm\.at_once is now named slurm\.max_concurrent"):
        load_cluster(str(write()), ["slurm.at_once=3"], "slurm")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image": None, "kubernetes": {}}, r"image is missing: on Kubernetes every process runs in a container"),
        ({"kubernetes": {"namespace": "My Team"}}, r"kubernetes.namespace 'My Team' is not a DNS label"),
        ({"kubernetes": {"volumes": [{"claim": "a", "path": "runs"}]}}, r"mounts a claim at 'runs': give an absolute path"),
        (
            {"kubernetes": {"volumes": [{"claim": "a", "path": "/runs"}, {"claim": "b", "path": "/runs/"}]}},
            r"mounts two claims at /runs",
        ),
        ({"memory_gb_per_node": 16, "kubernetes": {}}, r"shared_memory_gb 16 is part of memory_gb_per_node 16"),
        *(
            ({"kubernetes": {"volumes": [{"claim": "a", "path": path}]}}, rf"mounts a claim at '{path}': {remedy}")
            for path, remedy in {
                "/": "it would hide files that pods need; do not mount at /, or in /dev, /etc, /proc, /sys",
                "/dev/shm": "it would hide",
                "/etc/fnet-t5/": "it would hide",
                "/runs/../data": "write the path out",
                "//runs": "write the path out",
                "/ru:ns": "write the path out",
            }.items()
        ),
        (
            {"kubernetes": {"volumes": [{"claim": "My_Data", "path": "/d"}]}},
            r":6: kubernetes.volumes.claim 'My_Data' is not a DNS",
        ),
        ({"kubernetes": {"queue": "gpu queue"}}, r"kubernetes.queue 'gpu queue' is not a DNS subdomain: use small letters"),
        ({"kubernetes": {"queue": "q" * 64}}, r"kubernetes.queue .* at most 63"),
        ({"kubernetes": {"runtime": "-torch"}}, r"kubernetes.runtime '-torch' is not a DNS subdomain"),
        ({"kubernetes": {"priority_class": "High"}}, r"kubernetes.priority_class 'High' is not a DNS subdomain"),
        ({"kubernetes": {"service_account": "a/b"}}, r"kubernetes.service_account 'a/b' is not a DNS subdomain"),
        (
            {"kubernetes": {"kind": "trainjob", "runtime": "torch", "priority_class": "high"}},
            r"kubernetes.priority_class high has no effect on a TrainJob: set it in its runtime torch",
        ),
        (
            {"kubernetes": {"secrets": [{"variable": "TOKEN", "name": "ML flow", "key": "token"}]}},
            r"kubernetes.secrets.name 'ML flow' is not a DNS subdomain",
        ),
        (
            {"kubernetes": {"secrets": [{"variable": "A TOKEN", "name": "mlflow", "key": "token"}]}},
            r"kubernetes.secrets holds 'A TOKEN', which is not a valid name of",
        ),
        (
            {"kubernetes": {"secrets": [{"variable": "PET_NNODES", "name": "mlflow", "key": "token"}]}},
            r"kubernetes.secrets sets PET_NNODES, which every job computes for itself",
        ),
        (
            {"kubernetes": {"secrets": [{"variable": "TOKEN", "name": "mlflow", "key": "a token"}]}},
            r"kubernetes.secrets.key 'a token' is not a key of a Secret",
        ),
        (
            {"kubernetes": {"secrets": [{"variable": "TOKEN", "name": name, "key": "token"} for name in ("a", "b")]}},
            r"kubernetes.secrets sets TOKEN twice: leave one out",
        ),
        (
            {"environment": {"TOKEN": "1"}, "kubernetes": {"secrets": [{"variable": "TOKEN", "name": "a", "key": "token"}]}},
            r"kubernetes.secrets sets TOKEN, and so does environment: leave one out",
        ),
        ({"kubernetes": {"tolerations": [{"key": "g p u"}]}}, r"kubernetes.tolerations holds 'g p u', which is not NAME or"),
        ({"kubernetes": {"tolerations": [{"key": "gpu", "value": "a"}]}}, r"kubernetes.tolerations .* add operator: Equal"),
        (
            {"kubernetes": {"node_selector": {"pool": "a 100"}}},
            r"kubernetes.node_selector holds 'a 100', which is not the value of a label",
        ),
        (
            {"kubernetes": {"gpu_resource": "gpu"}},
            r"kubernetes.gpu_resource 'gpu' is not an extended resource: write DOMAIN/NAME",
        ),
        ({"kubernetes": {"resources": {"rdma": 1}}}, r"kubernetes.resources holds 'rdma': write DOMAIN/NAME, as rdma/hca"),
        ({"kubernetes": {"resources": {"cpu": 1}}}, r"kubernetes.resources holds cpu: give cpus_per_node"),
        ({"kubernetes": {"resources": {"nvidia.com/gpu": 1}}}, r"holds nvidia.com/gpu: give gpus_per_node instead"),
        (
            {"kubernetes": {"resources": {"rdma/hca": "1Gi"}}},
            r"kubernetes.resources gives 1Gi of rdma/hca: give a whole number",
        ),
        ({"kubernetes": {"resources": {"rdma/hca": 0}}}, r"kubernetes.resources gives 0 of rdma/hca"),
        (
            {"kubernetes": {"resources": {"ephemeral-storage": "20 GB"}}},
            r"gives 20 GB of ephemeral-storage: give a quantity",
        ),
        (
            {"kubernetes": {"annotations": {"a b": "1"}}},
            r"kubernetes.annotations holds 'a b', which is not NAME or DOMAIN/NAME",
        ),
        ({"kubernetes": {"capabilities": ["CAP_IPC_LOCK"]}}, r"kubernetes.capabilities holds 'CAP_IPC_LOCK': .* without CAP_"),
        ({"kubernetes": {"capabilities": ["ALL"]}}, r"kubernetes.capabilities holds 'ALL': name single capabilities"),
        ({"kubernetes": {"shared_memory_gb": 0.05}}, r"kubernetes.shared_memory_gb is 0.05; expected a number"),
        ({"setup": ["module load cuda"], "kubernetes": {}}, r"setup has no meaning on kubernetes: leave it out"),
    ],
)
def test_errors_of_a_kubernetes_file_name_the_key_and_the_remedy(
    changes: dict[str, Any], expected: str, write: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        load_cluster(str(write(KUBERNETES, **changes)), [], "kubernetes")
    assert "cluster.yaml" in str(caught.value)


def test_an_unquoted_time_is_refused_with_an_explanation(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("cpus_per_node: 8\ntime_limit: 24:00:00\nslurm: {}\n")
    with pytest.raises(ConfigError, match="YAML reads 24:00:00 as a number"):
        load_config(launch_spec_class(), path)


@given(days=st.integers(0, 30), hours=st.integers(0, 23), minutes=st.integers(0, 59), seconds=st.integers(0, 59))
def test_times_are_parsed_as_by_slurm(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = ((24 * days + hours) * 60 + minutes) * 60 + seconds
    assert parse_time(f"{days}-{hours:02}:{minutes:02}:{seconds:02}") == total
    assert parse_time(f"{24 * days + hours}:{minutes:02}:{seconds:02}") == total
    assert parse_time(f"{days}-{hours}") == (24 * days + hours) * 3600
    assert parse_time(f"{days}-{hours}:{minutes}") == (24 * days + hours) * 3600 + 60 * minutes
    assert parse_time(f"{minutes}:{seconds:02}") == 60 * minutes + seconds
    assert parse_time(f"{minutes}") == 60 * minutes


def test_a_file_of_another_platform_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"cluster.yaml is a cluster file of slurm: use `fnet-t5 launch slurm …`"):
        load_cluster(str(write()), [], "kubernetes")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["mesh.pipeline_parallel=3"],
            r"nodes 2 x gpus_per_node 8 = 16 processes, which .* cannot use: 16 processes cannot hold",
        ),
        (["train.global_batch_size=100"], r"cannot use: train.global_batch_size 100 is not a multiple of"),
        (
            ["mesh.tensor_parallel=16", "model.num_heads=16"],
            r"mesh.tensor_parallel 16 of .* would span nodes of 8 processes",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_the_cluster_is_refused_before_submission(
    overrides: list[str],
    expected: str,
    write: Callable[..., Path],
    command: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("launch", "slurm", "train", "train/base", "--cluster", write(), *overrides) == 1
    captured = capsys.readouterr()
    assert not captured.out
    assert "cluster.yaml" in captured.err
    assert re.search(expected, captured.err), captured.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("volumes", "expected"),
    [
        ([], "has no writable persistent volume claim"),
        ([{"claim": "runs", "path": "/runs"}], "has no persistent volume claim for data.path /data/pile (mounted: /runs)"),
        ([{"claim": "all", "path": "/data", "read_only": True}], "has no writable persistent volume claim"),
    ],
)
def test_a_path_outside_of_all_claims_is_refused_before_submission(
    volumes: list[dict[str, Any]],
    expected: str,
    write: Callable[..., Path],
    command: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    cluster = write(KUBERNETES, kubernetes={"volumes": volumes})
    assert command("launch", "kubernetes", "train", "train/base", "--cluster", cluster, "data.path=/data/pile") == 1
    error = capsys.readouterr().err
    assert expected in error
    assert "cluster.yaml" in error
    assert "claim: NAME" in error  # the remedy
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_on_a_read_only_claim_is_refused(
    write: Callable[..., Path], command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    volumes = [{"claim": "datasets", "path": "/data", "read_only": True}, {"claim": "runs", "path": "/runs"}]
    cluster = write(KUBERNETES, kubernetes={"volumes": volumes})
    launch = [
        "launch",
        "kubernetes",
        "train",
        "train/base",
        "--cluster",
        cluster,
        "--output",
        "/data/run",
        "data.path=/data/pile",
    ]
    assert command(*launch) == 1
    assert "mounts claim datasets at /data read_only, and the job writes to --output /data/run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["data.path=data/pile"],
            "data.path data/pile is relative, .* give the absolute path that they see .*mounts: /data, /runs",
        ),
        (["data.path=/data/pile", "--output", "base"], "--output base is relative, .* give the absolute path"),
        (
            ["data.path=/data/pile", "--output", "/runs/../data/x"],
            r"--output /runs/../data/x contains `\.\.`.* write the path without it",
        ),
        (
            ["data.path=/data/pile", "--output", "/runs"],
            "--output /runs is the root of claim runs .* give a folder in it, as /runs/base",
        ),
        (
            ["data.path=/data/pile", "--output", "/base"],
            r"no persistent volume claim for --output /base .*; give a path on a claim$",
        ),
    ],
)
def test_a_path_missing_in_pods_is_refused_with_a_remedy(
    arguments: list[str], expected: str, write: Callable[..., Path], command: Callable[..., int], error_line: Callable[[], str]
) -> None:
    volumes = [{"claim": "datasets", "path": "/data", "read_only": True}, {"claim": "runs", "path": "/runs"}]
    cluster = write(KUBERNETES, kubernetes={"volumes": volumes})
    assert command("launch", "kubernetes", "train", "train/base", "--cluster", cluster, *arguments) == 1
    error = " ".join(error_line().split())
    assert re.search(expected, error), error
    assert "cluster.yaml" in error


def test_the_inner_one_of_nested_mounts_is_used(write: Callable[..., Path], command: Callable[..., int]) -> None:
    volumes = [{"claim": "datasets", "path": "/data", "read_only": True}, {"claim": "runs", "path": "/data/runs"}]
    cluster = write(KUBERNETES, kubernetes={"volumes": volumes})
    launch = ["launch", "kubernetes", "train", "train/base", "--cluster", cluster, "data.path=/data/pile", "--dry-run"]
    assert command(*launch, "--output", "/data/runs/base") == 0
    assert command(*launch, "--output", "/data/base") == 1


def test_a_preparation_refuses_nodes_with_gpus_and_relative_inputs(
    write: Callable[..., Path], command: Callable[..., int], error_line: Callable[[], str]
) -> None:
    cluster = write(KUBERNETES, kubernetes={"volumes": [{"claim": "datasets", "path": "/data"}]})
    prepare = ["launch", "kubernetes", "prepare", "--cluster", cluster, "--output", "/data/pile", "--dry-run", "--input"]
    assert command(*prepare, "/data/raw/*") == 1
    error = error_line()
    assert "cluster.yaml: gpus_per_node 8: a data preparation uses no GPU" in error
    assert error.endswith("--set gpus_per_node=0")
    assert command(*prepare, "raw/*", "--set", "gpus_per_node=0") == 1
    assert "cluster.yaml: --input raw/* is relative, " in error_line()


def test_a_path_that_slurm_would_misread_is_refused(
    write: Callable[..., Path], command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = ["launch", "slurm", "train", "train/base", "--cluster", write(), "--output", tmp_path / "50% more"]
    assert command(*launch) == 1
    assert "contains '%', which has a special meaning for SLURM" in capsys.readouterr().err.replace("' '", "'%'")


def test_without_slurm_the_error_says_where_to_run_the_command(
    write: Callable[..., Path],
    command: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("sbatch") is None
    assert command("launch", "slurm", "prepare", "--cluster", write(), "--input", "raw/*", "--output", "made") == 1
    assert (
        "sbatch is not on the PATH: run this on a login node of the cluster, or see the script with --dry-run"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "made.launch" / "record.json").exists()


def test_a_folder_without_ladder_or_launch_is_reported(
    write: Callable[..., str], command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scaling = ["launch", "slurm", "scaling", tmp_path, "--cluster", write(), "--dry-run"]
    assert command(*scaling) == 1
    assert "is no ladder: it holds no ladder.json. Make one with `fnet-t5 scaling plan RECIPE`" in capsys.readouterr().err
    for text, reason in (("[1]", "is damaged"), ("{", "is damaged"), ('{"schema": 1, "sha256": ""}', "was changed")):
        (tmp_path / "ladder.json").write_text(text)
        assert command(*scaling) == 1
        assert f"ladder.json {reason}" in capsys.readouterr().err
    for verb in ("status", "cancel", "logs"):
        assert command("launch", verb, tmp_path) == 1
        assert f"{tmp_path} was not launched on a cluster" in capsys.readouterr().err
