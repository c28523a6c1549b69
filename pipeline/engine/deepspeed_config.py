"""The configuration of DeepSpeed, made from ours. Users never write it, and combinations known to train wrongly are refused.

A comment at each fixed setting gives its reason. The reasons were found by experiment: see `docs/architecture.md`.
"""

from __future__ import annotations

from typing import Any

from pipeline.config import RunConfig


def deepspeed_config(config: RunConfig, data_parallel: int) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`. Raises ValueError for a combination that trains wrongly."""
    check_version(_installed_version())
    check_zero(config)
    train, stage = config.train, config.zero_stage(data_parallel)
    result: dict[str, Any] = {
        "train_batch_size": train.global_batch_size,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.accumulation_steps(data_parallel),
        # Without ZeRO the skip-step guard clips: it already has the norm, with tied weights counted once.
        "gradient_clipping": config.optimizer.clip if stage else 0.0,
        "zero_optimization": {"stage": stage},
        # DeepSpeed allows only the optimizers of its own list; ours are tested against plain per-tensor optimizers.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "pipeline": {
            # By default only the first tensor between two stages may carry a gradient; an encoder-decoder sends three.
            "pipe_partitioned": False,
            "grad_partitioned": False,
            # The reentrant form fails on a first stage whose inputs are all integers.
            "use_reentrant": False,
        },
    }
    if train.precision == "bf16":
        result["bf16"] = {"enabled": True}
        # Without it gradients accumulate in bf16.
        result["data_types"] = {"grad_accum_dtype": "fp32"}
        # Without it replicas exchange the fp32 gradients rounded to bf16.
        result["communication_data_type"] = "fp32"
    return result


def check_zero(config: RunConfig) -> None:
    """Raise ValueError for a ZeRO stage that DeepSpeed's pipeline engine does not train correctly."""
    stage, train = config.train.zero_stage, config.train
    if stage >= 2:
        raise ValueError(
            f"train.zero_stage {stage} is refused: DeepSpeed's pipeline engine supports stages 0 and 1; use train.zero_stage=1"
        )
    if stage == 0 and train.precision == "bf16":
        raise ValueError(
            "train.zero_stage 0 with bf16 is refused: DeepSpeed has no fp32 accumulation there; use train.zero_stage=1"
        )
    if stage == 0 and config.mesh.pipeline_parallel > 1 and config.optimizer.clip > 0:
        raise ValueError(
            "train.zero_stage 0 with pipeline parallelism and clipping is refused: DeepSpeed counts tied weights twice in the "
            "gradient norm on that path; use train.zero_stage=1, or optimizer.clip=0"
        )


def check_version(version: str) -> None:
    """Refuse releases before 0.19.3: 0.18.3 to 0.19.2 divide gradients once per pipeline stage (DeepSpeed issue 8152)."""
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:3])
    if numbers < (0, 19, 3):
        raise ValueError(
            f"deepspeed {version} is refused: releases before 0.19.3 scale pipeline gradients wrongly (deepspeed issue 8152); "
            "install deepspeed>=0.19.3"
        )


def _installed_version() -> str:
    from importlib.metadata import version

    return version("deepspeed")
