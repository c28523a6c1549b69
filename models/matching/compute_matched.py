"""Hybrids matched to a T5: the same dimensions, as many parameters, or as many FLOPs (by the encoder's width or depth).

Fourier mixing removes 4 D A parameters from each encoder layer, so a hybrid of the same dimensions is smaller and cheaper than
its T5. Only the encoder changes. Feed-forward widths are multiples of 64, so a mismatch remains; a `Variant` states it.

D model width, A width of all heads together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from models.architectures.pieces import forward_flops
from models.config import ModelConfig
from models.cost.flops import Lengths
from models.cost.parameters import num_parameters
from models.layers.factory import TorchLayers

Matching = Literal["same_dimensions", "equal_parameters", "equal_flops_width", "equal_flops_depth"]
MULTIPLE = 64


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A hybrid, and how far it is from its T5."""

    matching: Matching
    config: ModelConfig
    parameters: int
    flops: float
    """Forward, of one sequence at the given lengths."""
    parameter_mismatch: float
    """Parameters relative to the T5's, minus 1."""
    flop_mismatch: float


def compute_matched(t5: ModelConfig, lengths: Lengths, *, mixing: str = "fourier") -> dict[Matching, Variant]:
    """The four hybrids of any T5. Raises ValueError as `check_t5` does."""
    check_t5(t5)
    hybrid = replace(t5, architecture="fnet_t5", mixing=mixing, num_attention_layers=0, size="custom")  # type: ignore[arg-type]

    def flops_of(config: ModelConfig) -> float:
        return forward_flops(config, TorchLayers(), lengths)

    configs: dict[Matching, ModelConfig] = {
        "same_dimensions": hybrid,
        "equal_parameters": _by_width(hybrid, num_parameters, num_parameters(t5)),
        "equal_flops_width": _by_width(hybrid, flops_of, flops_of(t5)),
        "equal_flops_depth": _by_depth(hybrid, flops_of, flops_of(t5)),
    }
    return {
        matching: Variant(
            matching=matching,
            config=config,
            parameters=num_parameters(config),
            flops=flops_of(config),
            parameter_mismatch=num_parameters(config) / num_parameters(t5) - 1,
            flop_mismatch=flops_of(config) / flops_of(t5) - 1,
        )
        for matching, config in configs.items()
    }


def check_t5(t5: ModelConfig) -> None:
    """Raise ValueError for a model that is not a T5, or that has a vocabulary of 0."""
    if t5.architecture != "t5":
        raise ValueError(f"model.architecture is {t5.architecture!r}: variants are matched to a t5")
    if not t5.vocab_size:
        raise ValueError("model.vocab_size is 0: give the tokenizer's, because the embedding counts too")


def _by_width(hybrid: ModelConfig, cost: Callable[[ModelConfig], float], target: float) -> ModelConfig:
    """The encoder's feed-forward width, a multiple of 64, whose `cost` (linear in it) is nearest to `target`."""
    return nearest(lambda count: replace(hybrid, encoder_d_ff=count * MULTIPLE), cost, target)


def _by_depth(hybrid: ModelConfig, cost: Callable[[ModelConfig], float], target: float) -> ModelConfig:
    """The number of encoder layers whose `cost` is nearest to `target`."""
    return nearest(lambda count: replace(hybrid, num_encoder_layers=count), cost, target)


def nearest(at: Callable[[int], ModelConfig], cost: Callable[[ModelConfig], float], target: float) -> ModelConfig:
    """Of the configurations at(1), at(2), … the one whose `cost`, linear in the number, is nearest to `target`."""
    slope = cost(at(2)) - cost(at(1))
    below = max(1, int(1 + (target - cost(at(1))) // slope))
    return min((at(below), at(below + 1)), key=lambda config: abs(cost(config) - target))
