"""The platforms by name. A platform is added by a line in `PLATFORMS`.

This module imports nothing slow, and a platform's modules are imported when they are used, so that `--help` stays fast.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from launch.cluster.platform import Platform


@dataclass(frozen=True)
class PlatformModules:
    """The modules of a platform; both can be the same module."""

    platform: str
    """Module with `PLATFORM`, an object with the methods of `Platform`."""
    commands: str
    """Module with `register(app)`, which adds the group `fnet-t5 launch NAME`."""


PLATFORMS: dict[str, PlatformModules] = {
    "slurm": PlatformModules("launch.cluster.slurm", "launch.cli.cluster.slurm"),
    "kubernetes": PlatformModules("launch.cluster.kubernetes", "launch.cli.cluster.kubernetes"),
    "ray": PlatformModules("launch.cluster.ray_jobs", "launch.cli.cluster.ray"),
}


def find_platform(name: str) -> Platform:
    """The platform of this name. Raises ValueError for an unknown name."""
    if name not in PLATFORMS:
        raise ValueError(f"{name!r} is not a platform: this version has {', '.join(PLATFORMS)}")
    return cast("Platform", importlib.import_module(PLATFORMS[name].platform).PLATFORM)
