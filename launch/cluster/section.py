"""What all sections of a cluster file are: unknown keys are refused, and nothing changes after reading."""

import re

from pydantic import BaseModel, ConfigDict

_VARIABLE = re.compile(r"[A-Za-z_]\w*")
# torchrun's variables belong to the job, Ray's access to the templates: a second value would win or lose by chance.
_RESERVED = re.compile(r"PET_\w+|RANK|WORLD_SIZE|LOCAL_RANK|MASTER_(ADDR|PORT)|RAY_AUTH_(MODE|TOKEN)")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def check_variable(key: str, name: str) -> None:
    """Raise ValueError where `key` names no variable, or one that jobs set themselves."""
    if not _VARIABLE.fullmatch(name):
        raise ValueError(f"{key} holds {name!r}, which no shell takes for a variable's name")
    if _RESERVED.fullmatch(name):
        raise ValueError(f"{key} sets {name}, which every job computes for itself: leave it out")
