"""The section `slurm:` of a cluster file: keys that only SLURM has."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import PositiveInt, field_validator, model_validator

from launch.cluster.spec.section import PlatformSection

# Options of sbatch that the scripts set themselves, and the key to give instead.
_SET_BY_SCRIPTS = {
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node"), "give nodes and processes_per_node"),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), "give cpus_per_node"),
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task", "ntasks-per-gpu"), "give gpus_per_node and slurm.gpu_type"),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "give memory_gb_per_node"),
    **{name: f"give slurm.{name}" for name in ("partition", "account", "qos", "constraint", "reservation", "exclusive")},
    **dict.fromkeys(("time", "time-min"), "give time_limit"),
    **dict.fromkeys(("requeue", "no-requeue"), "give max_restarts; 0 for none"),
    "signal": "give preemption_grace_seconds",
    **dict.fromkeys(("output", "error", "open-mode", "chdir", "job-name", "array", "wrap"), "leave it out"),
}


class SlurmSection(PlatformSection):
    """Options of SLURM jobs."""

    renamed_keys: ClassVar = {"at_once": "slurm.max_concurrent"}

    partition: str | None = None
    """Partition of the job. Default: the cluster's."""
    account: str | None = None
    """Account that the job is charged to. Default: the user's."""
    qos: str | None = None
    """Quality of service. Default: the account's."""
    constraint: str | None = None
    """Node features that the job needs, as in sbatch --constraint."""
    reservation: str | None = None
    """Reservation that the job runs in."""
    exclusive: bool = True
    """Whole nodes, without other jobs on them."""
    gpu_option: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """The option that requests GPUs on this cluster: --gpus-per-node=8 or --gres=gpu:8."""
    gpu_type: str | None = None
    """The cluster's name of the GPU type, such as h100, on clusters that require one."""
    options: tuple[str, ...] = ()
    """Further options of sbatch, written as on its command line: --comment=pretraining."""
    max_concurrent: PositiveInt = 4
    """The largest number of jobs of an array that run at the same time."""

    @field_validator("partition", "account", "qos", "constraint", "reservation", "gpu_type")
    @classmethod
    def _is_word(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[^\s\"'#\\]+", value):
            raise ValueError(f"{value!r} is not a name that SLURM can read: remove blanks, quotes, backslashes and #")
        return value

    @field_validator("options")
    @classmethod
    def _are_options(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            if not re.fullmatch(r"--[a-z][-a-z]*(=([^\s\"'#\\]+|\"[^\"\n\\]*\"))?", option):
                raise ValueError(
                    f"slurm.options holds {option!r}: write an option of sbatch in full, as --comment=text; put blanks in "
                    'double quotes: --comment="a text"'
                )
            name, _, value = option[2:].partition("=")
            if key := _SET_BY_SCRIPTS.get("gpus" if name == "gres" and value.strip('"').startswith("gpu") else name):
                raise ValueError(f"slurm.options holds {option!r}, which the script sets itself: {key}")
        return options

    @model_validator(mode="after")
    def _one_gres(self) -> SlurmSection:
        if self.gpu_option == "gres" and (second := next((text for text in self.options if text.startswith("--gres")), None)):
            raise ValueError(
                f"slurm.options holds {second!r}, and it would replace the GPUs that slurm.gpu_option gres "
                "requests: leave gpu_option out"
            )
        return self
