"""The section `slurm:` of a cluster file: what only SLURM knows."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import PositiveInt, field_validator, model_validator

from launch.cluster.section import Section

# Options of sbatch that were checked, or that the scripts rely on; behind them the remedy.
_SCRIPTS_OWN = {
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node"), "give nodes and processes_per_node"),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), "give cpus_per_node"),
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task", "ntasks-per-gpu"), "give gpus_per_node and slurm.gpu_type"),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "give memory_gb_per_node"),
    **{name: f"give slurm.{name}" for name in ("partition", "account", "qos", "constraint", "reservation", "exclusive")},
    **dict.fromkeys(("time", "time-min"), "give time_limit"),
    **dict.fromkeys(("requeue", "no-requeue"), "give max_restarts; 0 for none"),
    "signal": "give save_seconds",
    **dict.fromkeys(("output", "error", "open-mode", "chdir", "job-name", "array", "wrap"), "leave it out"),
}


class Slurm(Section):
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclusive: bool = True
    """Whole nodes: no other job's work beside ours."""
    gpu_option: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """How this SLURM is asked for GPUs: --gpus-per-node=8 or --gres=gpu:8."""
    gpu_type: str | None = None
    """As the cluster names it, where it must be named: h100."""
    options: tuple[str, ...] = ()
    """Further options of sbatch, as written there: --comment=pretraining."""
    at_once: PositiveInt = 4
    """Most jobs of an array that run at the same time."""

    @field_validator("partition", "account", "qos", "constraint", "reservation", "gpu_type")
    @classmethod
    def _is_word(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[^\s\"'#\\]+", value):
            raise ValueError(f"{value!r} is no name that SLURM can read: no blanks, quotes, backslashes or #")
        return value

    @field_validator("options")
    @classmethod
    def _are_options(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            if not re.fullmatch(r"--[a-z][-a-z]*(=([^\s\"'#\\]+|\"[^\"\n\\]*\"))?", option):
                raise ValueError(
                    f"slurm.options holds {option!r}: write one of sbatch's options in full, as --comment=text, and blanks in "
                    'double quotes: --comment="a text"'
                )
            name, _, value = option[2:].partition("=")
            if key := _SCRIPTS_OWN.get("gpus" if name == "gres" and value.strip('"').startswith("gpu") else name):
                raise ValueError(f"slurm.options holds {option!r}, which the script says itself: {key}")
        return options

    @model_validator(mode="after")
    def _one_gres(self) -> Slurm:
        if self.gpu_option == "gres" and (second := next((text for text in self.options if text.startswith("--gres")), None)):
            raise ValueError(
                f"slurm.options holds {second!r}, and SLURM would take it instead of the GPUs that slurm.gpu_option gres asks "
                "for: leave gpu_option out"
            )
        return self
