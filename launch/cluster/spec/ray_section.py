"""The section `ray:` of a cluster file: a Ray cluster that is already running."""

from __future__ import annotations

from typing import ClassVar, Literal

from launch.cluster.spec.launch_spec import LaunchSpec
from launch.cluster.spec.section import PlatformSection


class RaySection(PlatformSection):
    """A Ray cluster that is already running."""

    has_fixed_size: ClassVar = False

    address: str | None = None
    """The cluster's dashboard, http://HEAD:8265; --ray-address overrides it."""
    auth_mode: Literal["token", "disabled"] = "token"
    """Given to head, workers and driver alike. token: processes without the cluster's RAY_AUTH_TOKEN are refused."""

    def check_spec(self, spec: LaunchSpec) -> None:
        spec.refuse_slurm_keys()
