"""Reading of a cluster file: the schema has the common keys, and a section for each platform of the registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import create_model

from launch.cluster.registry import PLATFORMS, find_platform
from launch.cluster.spec.launch_spec import LaunchSpec
from launch.config import load_config
from launch.config_errors import ConfigError


def launch_spec_class() -> type[LaunchSpec]:
    """The schema of a cluster file."""
    sections: dict[str, Any] = {name: (find_platform(name).section | None, None) for name in PLATFORMS}
    spec_class = create_model("LaunchSpec", __base__=LaunchSpec, **sections)
    spec_class.platforms = tuple(PLATFORMS)
    return spec_class


def load_cluster(cluster: str, overrides: Sequence[str], platform: str) -> LaunchSpec:
    """The checked content of a cluster file. Raises ConfigError, also for a file of another platform."""
    spec = load_config(launch_spec_class(), cluster, overrides, kind="cluster")
    if spec.platform != platform:
        raise ConfigError(
            f"{cluster} is a cluster file of {spec.platform}: use `fnet-t5 launch {spec.platform} …`, or another file"
        )
    return spec
