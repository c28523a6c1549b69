"""Initial values as a pure function of (seed, canonical name): the same weights on one process and on any mesh.

A module only records *how* a parameter starts (a normal's standard deviation, or a constant); the values are drawn later, when
the parameter's canonical name is known. A rank that holds a shard draws the full tensor and keeps its slice.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

_STD = "init_std"
_VALUE = "init_value"


def normal_parameter(shape: tuple[int, ...], std: float) -> nn.Parameter:
    """An fp32 parameter, uninitialised, that will start as N(0, std²)."""
    parameter = nn.Parameter(torch.empty(shape))
    mark_normal(parameter, std)
    return parameter


def mark_normal(parameter: Tensor, std: float) -> None:
    """Record that a weight made elsewhere will start as N(0, std²)."""
    setattr(parameter, _STD, std)


def constant_parameter(shape: tuple[int, ...], value: float) -> nn.Parameter:
    """An fp32 parameter that starts at `value` everywhere."""
    parameter = nn.Parameter(torch.full(shape, value))
    mark_constant(parameter, value)
    return parameter


def mark_constant(parameter: Tensor, value: float) -> None:
    """Record that a weight made elsewhere will start at `value` everywhere."""
    setattr(parameter, _VALUE, value)


def initial_value(parameter: nn.Parameter, name: str, full_shape: tuple[int, ...], seed: int) -> Tensor:
    """The full initial tensor, fp32 on the CPU, of the parameter with this canonical name."""
    if hasattr(parameter, _VALUE):
        return torch.full(full_shape, getattr(parameter, _VALUE))
    if not hasattr(parameter, _STD):
        raise AssertionError(f"{name} does not say how it starts: make it by normal_parameter or constant_parameter")
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(full_shape, generator=generator) * getattr(parameter, _STD)


@torch.no_grad()
def initialize(module: nn.Module, seed: int) -> None:
    """Draw every parameter of a whole, unsharded model whose module names are the canonical ones."""
    for name, parameter in module.named_parameters():
        parameter.copy_(initial_value(parameter, name, tuple(parameter.shape), seed))
