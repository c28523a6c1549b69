"""Errors that SLURM, Pyxis and Ray would report only on the nodes are reported on the login node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., int]
SHARED = "mounts=[{source: /shared, target: /shared}, {source: /raw, target: /raw, read_only: true}, {source: /a, target: /b}]"
TRAIN = ["launch", "slurm", "train", "train/base", "--cluster", "cluster/slurm", "--set", "image=/i.sqsh", "--set", SHARED]


@pytest.mark.parametrize(
    ("output", "data", "expected"),
    [
        (
            "/shared/runs/x",
            "/shared/pile",
            "without --dry-run this is refused: data.path: /shared/pile/manifest.json: the folder does not exist",
        ),
        ("/shared/runs/x", "data/pile", "data.path data/pile is relative, and the container has its own working folder"),
        ("/home/runs/x", "/shared/pile", "mounts has no folder for --output /home/runs/x (mounted: /shared, /raw, /b)"),
        ("/shared/../home/x", "/shared/pile", "mounts has no folder for --output /shared/../home/x"),
        ("/raw/runs/x", "/shared/pile", "mounts makes /raw read_only, and the job writes to --output /raw/runs/x"),
        (
            "/shared/runs/x",
            "/b/pile",
            "mounts shows /a as /b, and data.path /b/pile must have the same path outside and inside the container",
        ),
    ],
)
def test_paths_are_checked_against_the_mounts_of_a_container(
    output: str, data: str, expected: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    code = command(*TRAIN, "--output", output, f"data.path={data}", "--dry-run")
    captured = capsys.readouterr()
    assert expected in captured.err
    assert (code == 0) == captured.out.startswith("#!/bin/bash") == expected.startswith("without --dry-run")


def test_preparations_in_a_container_are_checked_with_their_inputs_and_workers(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare = ["launch", "slurm", "prepare", "--cluster", "cluster/slurm-prepare", "--output", "/shared/pile", "--dry-run"]
    container = ["--set", "image=/i.sqsh", "--set", SHARED]
    assert command(*prepare, *container, "--input", "/home/*.zst") == 1
    assert "mounts has no folder for --input /home/*.zst" in capsys.readouterr().err
    assert command(*prepare, *container, "--input", "/raw/*.zst", "https://host/x.zst") == 0
    assert "/shared/pile.launch/recipe.yaml:\ninput:\n- /raw/*.zst\n" in capsys.readouterr().err
    assert command(*prepare, "--input", "/raw/*.zst", "--workers", 129) == 1
    assert "workers 129 is more than the 128 CPUs of 4 nodes x 32" in capsys.readouterr().err


def test_a_ladder_whose_runs_need_more_than_a_node_is_refused(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ladder = tmp_path / "ladder"
    assert command("scaling", "plan", "scaling/pile-small", "--output", ladder, "vocab_size=32000", "train_tokens=3e11") == 0
    launch = ["launch", "slurm", "scaling", ladder, "--cluster", "cluster/slurm", "--dry-run"]
    capsys.readouterr()
    assert command(*launch, "--set", "gpus_per_node=2") == 1
    assert "needs 4 processes, which must be on one node" in capsys.readouterr().err
    assert command(*launch) == 0
    printed = capsys.readouterr().err
    assert "sweep.txt: sweep-t5" in printed
    assert "main runs, a node each, 4 at a time, after all sweeps" in printed
    assert "runs start fewer processes than a node has (gpus_per_node 8)" in printed
    assert command(*launch, "--set", "gpus_per_node=4", "--set", "slurm.exclusive=false") == 0
    assert "fewer processes" not in capsys.readouterr().err


def test_an_address_without_a_dashboard_is_refused_in_a_dry_run(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    launch = ["launch", "ray", "prepare", "--input", "/x", "--output", "/y", "--dry-run", "--ray-address"]
    assert command(*launch, "head:6379") == 1
    assert "Ray Jobs go through the dashboard; give http://HEAD:8265" in capsys.readouterr().err
    assert command(*launch[:-2], "--ray-address", "http://head:8265", "--output", "y") == 1
    assert "--output y is a relative path" in capsys.readouterr().err
