"""Moving tensors between our canonical names and another library's: an entry says what goes where, one function each way
applies it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import ModelConfig


@dataclass(frozen=True)
class Entry:
    """One of their tensors and what of ours it holds."""

    theirs: str
    ours: tuple[str, ...]
    """Several are stacked along their first dimension, as GPT-2 keeps query, key and value."""
    transposed: bool = False
    """They keep (in, out), as GPT-2's Conv1D; we keep (out, in)."""
    vocabulary: bool = False
    """A row per token: ours is padded to `padded_vocab_size`, theirs is not."""
    copies: tuple[str, ...] = ()
    """Their other names for the same tensor."""


def entry(theirs: str, *ours: str, transposed: bool = False, vocabulary: bool = False, copies: Sequence[str] = ()) -> Entry:
    return Entry(theirs, ours, transposed, vocabulary, tuple(copies))


def linear(theirs: str, ours: str, bias: bool = True) -> list[Entry]:
    """A layer's weight and, where it has one, its bias (of a norm, too)."""
    return [entry(f"{theirs}.{name}", f"{ours}.{name}") for name in (["weight", "bias"] if bias else ["weight"])]


def to_theirs(entries: Sequence[Entry], ours: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Their tensors from ours; every tensor of ours must be named by an entry (ValueError)."""
    unknown = sorted(set(ours) - {name for one in entries for name in one.ours})
    if unknown:
        raise ValueError(f"{unknown[0]} has no place in the Hugging Face model: {len(unknown)} tensors would be lost")
    result = {}
    for one in entries:
        parts = [ours[name] for name in one.ours]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        if one.vocabulary:
            value = value[: config.vocab_size]
        value = value.t() if one.transposed else value
        for name in (one.theirs, *one.copies):
            result[name] = value.contiguous()
    return result


def from_theirs(entries: Sequence[Entry], theirs: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our tensors from theirs; vocabulary rows are filled up with zeros. Raises ValueError for a tensor that is missing."""
    result: dict[str, Tensor] = {}
    for one in entries:
        name = next((name for name in (one.theirs, *one.copies) if name in theirs), None)
        if name is None:
            raise ValueError(f"the checkpoint has no {one.theirs}: it is of another model, or not whole")
        value = theirs[name].t() if one.transposed else theirs[name]
        if one.vocabulary:
            value = padded_rows(value, config.padded_vocab_size)
        for ours, part in zip(one.ours, value.chunk(len(one.ours)), strict=True):
            result[ours] = part.contiguous()
    return result


def padded_rows(value: Tensor, num_rows: int) -> Tensor:
    """(R, …) with zeros behind, up to num_rows."""
    return torch.cat([value, value.new_zeros(num_rows - len(value), *value.shape[1:])]) if len(value) < num_rows else value


def require(config: ModelConfig, **needed: object) -> None:
    """Raise ValueError naming the first field that differs from what the Hugging Face class is built with."""
    for name, value in needed.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if getattr(config, name) not in allowed:
            raise ValueError(
                f"model.{name} is {getattr(config, name)!r}: the Hugging Face class of {config.architecture} "
                f"has {' or '.join(map(repr, allowed))} only"
            )
