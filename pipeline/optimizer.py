"""The optimizer and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from pipeline.config import OptimizerConfig
from pipeline.stages import CanonicalParameter


def build_optimizer(parameters: Iterable[CanonicalParameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices inside layers only: not on norms, the embedding or the bias tables.

    Both groups exist on every rank, in the same order, because ZeRO flattens each of them by itself.
    """
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    for entry in parameters:
        is_matrix = entry.parameter.ndim == 2 and entry.name.startswith(("encoder.layers.", "decoder.layers."))
        (decayed if is_matrix else plain).append(entry.parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps)


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Learning rate of the `step`-th update (counted from 1) of a run of `num_steps`."""
    num_steps = config.decay_steps or num_steps
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)
