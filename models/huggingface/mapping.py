"""Renaming tensors from canonical names to another library's: a list of entries, and the function that applies it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of the other library, and our tensors in it."""

    theirs: str
    ours: tuple[str, ...]
    """Several are concatenated along their first dimension, as query, key and value are in GPT-2."""
    transposed: bool = False
    """Theirs is (in, out), as in GPT-2's Conv1D; ours is (out, in)."""
    vocabulary: bool = False
    """It has a row per token: ours is padded to `padded_vocab_size`, theirs is not."""
    copies: tuple[str, ...] = ()
    """Other names of the same tensor there."""


def entry(theirs: str, *ours: str, transposed: bool = False, vocabulary: bool = False, copies: Sequence[str] = ()) -> Entry:
    return Entry(theirs=theirs, ours=ours, transposed=transposed, vocabulary=vocabulary, copies=tuple(copies))


def linear(theirs: str, ours: str, bias: bool = True) -> list[Entry]:
    """The weight of a linear layer or a norm and, with `bias`, its bias."""
    return [entry(f"{theirs}.{name}", f"{ours}.{name}") for name in (["weight", "bias"] if bias else ["weight"])]


def to_theirs(entries: Sequence[Entry], ours: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Their tensors from ours. Raises ValueError for a tensor of ours that no entry names."""
    unknown = sorted(set(ours) - {name for one in entries for name in one.ours})
    if unknown:
        raise ValueError(f"{unknown[0]} has no counterpart in the Hugging Face model: {len(unknown)} tensors would be lost")
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


def require(config: ModelConfig, **needed: object) -> None:
    """Raise ValueError naming the first field that the Hugging Face class does not support."""
    for name, value in needed.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if getattr(config, name) not in allowed:
            raise ValueError(
                f"model.{name} is {getattr(config, name)!r}: the Hugging Face class of {config.architecture} "
                f"has {' or '.join(map(repr, allowed))} only"
            )
