"""The base classes of the cluster file's sections: unknown keys are refused, and values do not change after reading."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from launch.config_errors import RENAMED_KEY

if TYPE_CHECKING:
    from launch.cluster.spec.launch_spec import LaunchSpec

_VARIABLE = re.compile(r"[A-Za-z_]\w*")
# The job sets torchrun's variables, and the templates set Ray's access. With a second value, the one that wins is arbitrary.
_RESERVED = re.compile(r"PET_\w+|RANK|WORLD_SIZE|LOCAL_RANK|MASTER_(ADDR|PORT)|RAY_AUTH_(MODE|TOKEN)")


class ClusterSection(BaseModel):
    """A part of a cluster file. `renamed_keys` maps keys of earlier versions, which are refused, to their new names."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    renamed_keys: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_renamed_keys(cls, values: Any) -> Any:
        for old, new in cls.renamed_keys.items() if isinstance(values, dict) else ():
            if old in values:
                raise PydanticCustomError(RENAMED_KEY, "{old} is now named {new}: rename the key", {"old": old, "new": new})
        return values


class PlatformSection(ClusterSection):
    """The section of one platform. Its name in the cluster file is the platform's name."""

    has_fixed_size: ClassVar[bool] = True
    """Whether a job has just the nodes of the cluster file. A running Ray cluster has its own number of nodes."""

    def check_spec(self, spec: LaunchSpec) -> None:
        """Raise ValueError if a common key of the cluster file is missing, or has no meaning on this platform."""


def check_variable(key: str, name: str) -> None:
    """Raise ValueError if `name`, given by `key`, is not a valid variable name, or is a variable that jobs set themselves."""
    if not _VARIABLE.fullmatch(name):
        raise ValueError(f"{key} holds {name!r}, which is not a valid name of an environment variable")
    if _RESERVED.fullmatch(name):
        raise ValueError(f"{key} sets {name}, which every job computes for itself: leave it out")
