"""The learning rate as a pure function of the step: warm-up, then one of five shapes.

    constant       peak
    linear         a line from the peak to final_fraction of it at the last step
    cosine         half a cosine between the same ends (Loshchilov & Hutter 2017, arXiv:1608.03983)
    inverse_sqrt   peak * sqrt(warmup / step): as T5, with a ramp instead of its plateau; has no end
    wsd            the peak until decay_begin, then 1 - sqrt(progress) (Hägele et al. 2024, arXiv:2405.18392)

A wsd run has no fixed end, so one stable run serves budgets of any size: each is a branch (`checkpoint/branch.py`) from one of
its checkpoints, with its own decay_begin and train.steps.
"""

from __future__ import annotations

import math

from pipeline.config import OptimizerConfig

_WSD_DECAY_SHARE = 0.2


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Learning rate of the `step`-th update (counted from 1) of a run of `num_steps`."""
    end = config.decay_steps or num_steps
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "inverse_sqrt":
        return config.learning_rate * math.sqrt(config.warmup_steps / step)
    begin = wsd_begin(end, config) if config.schedule == "wsd" else config.warmup_steps
    progress = min(1.0, max(0.0, (step - begin) / max(1, end - begin)))
    remaining = {
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "wsd": 1 - math.sqrt(progress),
    }[config.schedule]
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * remaining)


def wsd_begin(end: int, config: OptimizerConfig) -> int:
    """The last step at the peak rate of a wsd run that ends at step `end`: decay_begin, or after four fifths of the steps."""
    if config.decay_begin is not None:
        return config.decay_begin
    return max(config.warmup_steps, end - max(1, round(_WSD_DECAY_SHARE * end)))
