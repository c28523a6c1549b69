"""Checks of a job on a cluster before it is submitted; each error names the file, the key and the remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from launch.cluster.spec.kubernetes_names import mount_problem
from launch.cluster.spec.kubernetes_section import KubernetesSection
from launch.cluster.spec.launch_spec import LaunchSpec
from launch.cluster.spec.slurm_section import SlurmSection
from launch.config_errors import ConfigError

if TYPE_CHECKING:
    from data_prep.config import PrepareConfig
    from pipeline.config import RunConfig
    from pipeline.scaling.ladder.ladder import Ladder

# Other characters have a meaning in a #SBATCH line or in a file name pattern of SLURM.
_PLAIN_PATH = re.compile(r"[\w./+=@,:-]+")


def check_mesh(spec: LaunchSpec, cluster: str, config: RunConfig, recipe: str) -> None:
    """Raise ConfigError if the cluster's processes do not form whole replicas, or if the batch does not divide among them."""
    started = f"{cluster}: nodes {spec.nodes} x {spec.node_processes} = {spec.num_ranks} processes"
    try:
        replicas = config.mesh.data_parallel(spec.num_ranks)
        config.train.accumulation_steps(replicas)
    except ValueError as error:
        raise ConfigError(f"{started}, which {recipe} cannot use: {error}") from error
    tensor = config.mesh.tensor_parallel
    if tensor > spec.ranks_per_node:
        raise ConfigError(
            f"{started}; mesh.tensor_parallel {tensor} of {recipe} would span nodes of {spec.ranks_per_node} processes, and "
            "the network between nodes is too slow for it: lower it, and raise mesh.pipeline_parallel instead"
        )


def check_on_volumes(spec: LaunchSpec, cluster: str, paths: dict[str, Path], written: frozenset[str]) -> None:
    """Raise ConfigError for a path that lies on no claim of the pods, or on a read-only claim although it is written to.

    `paths` holds the paths by the key that gave them, and `written` the keys of those that the job writes to.
    """
    volumes = spec.section(KubernetesSection).volumes
    mounted = ", ".join(volume.path for volume in volumes) or "none"
    for key, path in paths.items():
        given = PurePosixPath(path)
        what = key if key.endswith(f" {path}") else f"{key} {path}"
        if not given.is_absolute():
            raise ConfigError(
                f"{cluster}: {what} is relative, and pods do not start in your current folder: give the absolute path that "
                f"they see (kubernetes.volumes mounts: {mounted})"
            )
        if ".." in given.parts:
            raise ConfigError(
                f"{cluster}: {what} contains `..`, which may leave the folders that kubernetes.volumes mounts: write the path "
                f"without it ({mounted})"
            )
        # Of nested mounts a pod sees the inner one.
        inside = [volume for volume in volumes if given.is_relative_to(volume.path)]
        if not inside:
            parent = given.parent
            add = "" if mount_problem(str(parent)) else f"add `{{claim: NAME, path: {parent}}}`, or "
            raise ConfigError(
                f"{cluster}: kubernetes.volumes has no persistent volume claim for {what} (mounted: {mounted}): the files "
                f"would be lost with the pods; {add}give a path on a claim"
            )
        volume = max(inside, key=lambda volume: len(volume.path))
        if volume.read_only and key in written:
            raise ConfigError(
                f"{cluster}: kubernetes.volumes mounts claim {volume.claim} at {volume.path} read_only, and the job writes to "
                f"{what}: remove read_only, or choose another path"
            )
        if key in written and given == PurePosixPath(volume.path):
            raise ConfigError(
                f"{cluster}: {what} is the root of claim {volume.claim} in kubernetes.volumes, which may hold other files: "
                f"give a folder in it, as {given / 'base'}"
            )


def check_no_gpus(spec: LaunchSpec, cluster: str) -> None:
    """Raise ConfigError if a data preparation, which uses no GPU, would run on nodes with GPUs."""
    if spec.gpus_per_node:
        raise ConfigError(
            f"{cluster}: gpus_per_node {spec.gpus_per_node}: a data preparation uses no GPU, and its pods would occupy nodes "
            "with GPUs; give a file without GPUs, as configs/cluster/kubernetes-prepare.yaml, or --set gpus_per_node=0"
        )


def training_inputs(config: RunConfig) -> dict[str, Path]:
    """All paths that a training run reads outside its own folder, by the key that gave them."""
    blend = {f"data.blend.{number}.path": part.path for number, part in enumerate(config.data.blend)}
    weights = {"train.initial_weights": config.train.initial_weights} if config.train.initial_weights else {}
    return {"data.path": config.data.path, **blend, **weights}


def preparation_inputs(config: PrepareConfig) -> dict[str, Path]:
    """All paths on disk that a data preparation reads, by the option that gave them."""
    inputs = {
        f"--{name} {pattern}": Path(pattern)
        for name in ("input", "val", "test")
        for pattern in getattr(config, name)
        if "://" not in pattern
    }
    read = {"--tokenizer": config.tokenizer, "--base": config.base}
    return {**inputs, **{option: path for option, path in read.items() if isinstance(path, Path)}}


def check_in_container(spec: LaunchSpec, cluster: str, paths: Mapping[str, Path], written: frozenset[str]) -> None:
    """Raise ConfigError for a path that SLURM's container does not see, or cannot write to although the job does.

    `paths` holds the paths by the key that gave them, and `written` the keys of those that the job writes to. A mount's source
    and target must be equal, because this command and the script use the same paths outside the container.
    """
    if spec.image is None:
        return
    for key, path in paths.items():
        if not path.is_absolute():
            raise ConfigError(f"{key} {path} is relative, and the container has its own working folder: give an absolute path")
        within = [mount for mount in spec.mounts if PurePosixPath(path).is_relative_to(mount.target)]
        if ".." in path.parts or not within:
            mounted = ", ".join(mount.target for mount in spec.mounts) or "none"
            raise ConfigError(
                f"{cluster}: mounts has no folder for {key} {path} (mounted: {mounted}): the container would not see it, or "
                "would lose it; add `{source: FOLDER, target: FOLDER}`, or give a path on a mount"
            )
        mount = max(within, key=lambda mount: len(mount.target))
        if mount.source != mount.target:
            raise ConfigError(
                f"{cluster}: mounts shows {mount.source} as {mount.target}, and {key} {path} must have the same path outside "
                "and inside the container: use the same source and target"
            )
        if mount.read_only and key in written:
            raise ConfigError(f"{cluster}: mounts makes {mount.target} read_only, and the job writes to {key} {path}")


def check_ladder(spec: LaunchSpec, cluster: str, ladder: Ladder) -> str | None:
    """A note if much of whole nodes would stay idle. Raises ConfigError if a run needs more processes than a node has."""
    sizes = ladder.recipe.sizes
    largest = max({run.size for run in ladder.runs}, key=lambda size: sizes[size].num_processes)
    node = spec.node_processes
    if sizes[largest].num_processes > spec.ranks_per_node:
        raise ConfigError(
            f"{cluster}: a node has {node}, and size {largest} of the ladder needs {sizes[largest].num_processes} processes, "
            "which must be on one node: use larger nodes, or plan the ladder without this size"
        )
    small = [run for run in ladder.runs if sizes[run.size].num_processes < spec.ranks_per_node]
    if not (small and spec.section(SlurmSection).exclusive):
        return None
    return (
        f"{len(small)} of {len(ladder.runs)} runs start fewer processes than a node has ({node}), and each occupies a whole "
        "node. Smaller nodes, or slurm.exclusive=false with no more GPUs than the largest run needs, cost less"
    )


def check_plain(path: Path, option: str) -> Path:
    """The absolute path. Raises ConfigError if it has a character that SLURM would not read literally in a #SBATCH line."""
    path = path.absolute()
    if not _PLAIN_PATH.fullmatch(str(path)):
        odd = next(character for character in str(path) if not _PLAIN_PATH.fullmatch(character))
        raise ConfigError(f"{option} {path} contains {odd!r}, which has a special meaning for SLURM: give another path")
    return path
