"""What can be wrong with a job on a cluster, found before it is submitted: each problem with its file, key and remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from launch.cluster.kubernetes_names import mount_problem
from launch.cluster.spec import LaunchSpec
from launch.config import load_config
from launch.config_errors import ConfigError

if TYPE_CHECKING:
    from data_prep.config import PrepareConfig
    from pipeline.config import RunConfig
    from pipeline.scaling.ladder.ladder import Ladder

# What a #SBATCH line or a file name pattern of SLURM would read as something else.
_PLAIN_PATH = re.compile(r"[\w./+=@,:-]+")


def load_cluster(cluster: str, overrides: Sequence[str], platform: str) -> LaunchSpec:
    """The cluster file's `LaunchSpec`, checked. Raises ConfigError, also where the file is another platform's."""
    spec = load_config(LaunchSpec, cluster, overrides, kind="cluster")
    if spec.platform != platform:
        raise ConfigError(
            f"{cluster} is a cluster file of {spec.platform}: use `fnet-t5 launch {spec.platform} …`, or another file"
        )
    return spec


def check_mesh(spec: LaunchSpec, cluster: str, config: RunConfig, recipe: str) -> None:
    """Raise ConfigError where the cluster's processes do not make whole replicas, or the batch does not divide among them."""
    what = f"gpus_per_node {spec.gpus_per_node}" if spec.gpus_per_node else f"{spec.ranks_per_node} processes"
    started = f"{cluster}: nodes {spec.nodes} x {what} = {spec.num_ranks} processes"
    try:
        replicas = config.mesh.data_parallel(spec.num_ranks)
        config.train.accumulation_steps(replicas)
    except ValueError as error:
        raise ConfigError(f"{started}, which {recipe} cannot use: {error}") from error
    tensor = config.mesh.tensor_parallel
    if tensor > spec.ranks_per_node:
        raise ConfigError(
            f"{started}; mesh.tensor_parallel {tensor} of {recipe} would reach over nodes of {spec.ranks_per_node} processes, "
            "whose network is too slow for it: lower it, and raise mesh.pipeline_parallel instead"
        )


def check_on_volumes(spec: LaunchSpec, cluster: str, paths: dict[str, Path], written: frozenset[str]) -> None:
    """Raise ConfigError where a path (by the key that gave it) lies on no claim of the pods, or on one they cannot write to."""
    assert spec.kubernetes is not None
    there = ", ".join(volume.path for volume in spec.kubernetes.volumes) or "none"
    for key, path in paths.items():
        given = PurePosixPath(path)
        what = key if key.endswith(f" {path}") else f"{key} {path}"
        if not given.is_absolute():
            raise ConfigError(
                f"{cluster}: {what} is relative, and pods start in no folder of yours: give the absolute path that they see "
                f"(kubernetes.volumes mounts: {there})"
            )
        if ".." in given.parts:
            raise ConfigError(
                f"{cluster}: {what} goes up by `..`, maybe out of what kubernetes.volumes mounts: write the path out ({there})"
            )
        # Of nested mounts the inner one is what a pod sees.
        inside = [volume for volume in spec.kubernetes.volumes if given.is_relative_to(volume.path)]
        if not inside:
            parent = given.parent
            add = "" if mount_problem(str(parent)) else f"add `{{claim: NAME, path: {parent}}}`, or "
            raise ConfigError(
                f"{cluster}: kubernetes.volumes has no persistent volume claim for {what} (mounted: {there}): pods would "
                f"lose it with their containers; {add}give a path on a claim"
            )
        volume = max(inside, key=lambda volume: len(volume.path))
        if volume.read_only and key in written:
            raise ConfigError(
                f"{cluster}: kubernetes.volumes mounts claim {volume.claim} at {volume.path} read_only, and {what} is "
                "written there: drop read_only, or choose another path"
            )
        if key in written and given == PurePosixPath(volume.path):
            raise ConfigError(
                f"{cluster}: {what} is the root of claim {volume.claim} in kubernetes.volumes, with all that lies on it: "
                f"give a folder in it, as {given / 'base'}"
            )


def check_no_gpus(spec: LaunchSpec, cluster: str) -> None:
    """Raise ConfigError where a preparation, which uses none, would stand on nodes with GPUs."""
    if spec.gpus_per_node:
        raise ConfigError(
            f"{cluster}: gpus_per_node {spec.gpus_per_node}: a preparation uses no GPU, and its pods would hold nodes that "
            "have them; give a file without, as configs/cluster/kubernetes-prepare.yaml, or --set gpus_per_node=0"
        )


def training_inputs(config: RunConfig) -> dict[str, Path]:
    """Everything that a training run reads besides its own folder, by the key that gave it."""
    blend = {f"data.blend.{number}.path": part.path for number, part in enumerate(config.data.blend)}
    weights = {"train.initial_weights": config.train.initial_weights} if config.train.initial_weights else {}
    return {"data.path": config.data.path, **blend, **weights}


def preparation_inputs(config: PrepareConfig) -> dict[str, Path]:
    """Everything that a preparation reads from disk, by the option that gave it."""
    inputs = {
        f"--{name} {pattern}": Path(pattern)
        for name in ("input", "val", "test")
        for pattern in getattr(config, name)
        if "://" not in pattern
    }
    return {**inputs, **({"--tokenizer": config.tokenizer} if config.tokenizer else {})}


def check_in_container(spec: LaunchSpec, cluster: str, paths: Mapping[str, Path], written: frozenset[str]) -> None:
    """Raise ConfigError where SLURM starts a container that does not see a path (by the key that gave it), or cannot write it.

    Source and target must be alike there: this command and the script look at the same paths from outside.
    """
    if spec.image is None:
        return
    for key, path in paths.items():
        if not path.is_absolute():
            raise ConfigError(f"{key} {path} is relative, and the container has a working folder of its own: make it absolute")
        within = [mount for mount in spec.mounts if PurePosixPath(path).is_relative_to(mount.target)]
        if ".." in path.parts or not within:
            there = ", ".join(mount.target for mount in spec.mounts) or "none"
            raise ConfigError(
                f"{cluster}: mounts holds no folder for {key} {path} (mounted: {there}): the container would not see it, or "
                "lose it; add `{source: FOLDER, target: FOLDER}`, or move it there"
            )
        mount = max(within, key=lambda mount: len(mount.target))
        if mount.source != mount.target:
            raise ConfigError(
                f"{cluster}: mounts shows {mount.source} as {mount.target}, and {key} {path} must be found under one path "
                "outside of the container and inside: mount it where it is"
            )
        if mount.read_only and key in written:
            raise ConfigError(f"{cluster}: mounts makes {mount.target} read_only, and {key} {path} is written there")


def check_ladder(spec: LaunchSpec, cluster: str, ladder: Ladder) -> str | None:
    """Raise ConfigError where a run needs more processes than a node has; a note where most of whole nodes would idle."""
    sizes = ladder.recipe.sizes
    largest = max({run.size for run in ladder.runs}, key=lambda size: sizes[size].num_processes)
    node = f"gpus_per_node {spec.gpus_per_node}" if spec.gpus_per_node else f"{spec.ranks_per_node} processes"
    if sizes[largest].num_processes > spec.ranks_per_node:
        raise ConfigError(
            f"{cluster}: a node has {node}, and size {largest} of the ladder needs {sizes[largest].num_processes} processes, "
            "which stay within one node: take larger nodes, or plan the ladder without it"
        )
    assert spec.slurm is not None
    small = [run for run in ladder.runs if sizes[run.size].num_processes < spec.ranks_per_node]
    if not (small and spec.slurm.exclusive):
        return None
    return (
        f"{len(small)} of {len(ladder.runs)} runs start fewer processes than a node has ({node}), and whole nodes are asked "
        "for: the rest idles. Smaller nodes, or slurm.exclusive=false with no more than the largest run needs, cost less"
    )


def check_plain(path: Path, option: str) -> Path:
    """The absolute path, which SLURM must be able to read in a #SBATCH line. Raises ConfigError where it cannot."""
    path = path.absolute()
    if not _PLAIN_PATH.fullmatch(str(path)):
        odd = next(character for character in str(path) if not _PLAIN_PATH.fullmatch(character))
        raise ConfigError(f"{option} {path} holds {odd!r}, which SLURM reads as something else: give another path")
    return path
