"""Initial values as a pure function of (seed, canonical name): the same weights on one process and on any mesh.

A module only records the distribution of a parameter (the standard deviation of a normal, or a constant). The values are drawn
later, when the parameter's canonical name is known. A rank that holds a shard draws the full tensor and keeps its slice.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

_STD = "init_std"
_VALUE = "init_value"


def normal_parameter(shape: tuple[int, ...], std: float) -> nn.Parameter:
    """An fp32 parameter without values, marked to be drawn from N(0, std²)."""
    parameter = nn.Parameter(torch.empty(shape))
    mark_normal(parameter, std)
    return parameter


def mark_normal(parameter: Tensor, std: float) -> None:
    """Mark an existing parameter to be drawn from N(0, std²)."""
    setattr(parameter, _STD, std)


def constant_parameter(shape: tuple[int, ...], value: float) -> nn.Parameter:
    """An fp32 parameter whose elements all start at `value`."""
    parameter = nn.Parameter(torch.full(shape, value))
    mark_constant(parameter, value)
    return parameter


def mark_constant(parameter: Tensor, value: float) -> None:
    """Mark an existing parameter to start at `value`."""
    setattr(parameter, _VALUE, value)


def initial_value(parameter: nn.Parameter, name: str, full_shape: tuple[int, ...], seed: int) -> Tensor:
    """The full initial tensor, fp32 on the CPU, of the parameter with this canonical name."""
    if hasattr(parameter, _VALUE):
        return torch.full(full_shape, getattr(parameter, _VALUE))
    if not hasattr(parameter, _STD):
        raise AssertionError(f"{name} has no initial distribution: make it by normal_parameter or constant_parameter")
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(full_shape, generator=generator) * getattr(parameter, _STD)


@torch.no_grad()
def initialize(module: nn.Module, seed: int) -> None:
    """Set every parameter of an unsharded model whose module names are the canonical ones."""
    for name, parameter in module.named_parameters():
        parameter.copy_(initial_value(parameter, name, tuple(parameter.shape), seed))
