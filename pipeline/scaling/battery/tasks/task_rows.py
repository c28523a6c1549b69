"""What a task is: rows that are a pure function of (seed, index), and the exact accuracy of a guess without the input.

Shapes: B rows, N encoder tokens, M decoder tokens. Every decoder position has a target, and every row of a task has the same N
and M, so there is no padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.cost.flops import Lengths

Ints = NDArray[np.int64]

START = 0
"""The first decoder input of tasks whose decoder reads its own earlier targets."""
GAP = 1
"""Marks the place in the input that is to be filled."""
FIRST_SYMBOL = 2
NUM_SYMBOLS = 32
"""Symbols of recall (values), copy, reverse and gap filling."""


class TaskRows(NamedTuple):
    """Some rows of a task, int64."""

    encoder_ids: Ints
    """(B, N)"""
    decoder_ids: Ints
    """(B, M)"""
    targets: Ints
    """(B, M)"""


@dataclass(frozen=True)
class Chance:
    """The best expected accuracy of a guess that reads the decoder's inputs and not the encoder's."""

    token: float
    """Share of targets that are right."""
    row: float
    """Share of rows in which every target is right."""


class Task(Protocol):
    """A task at one nominal length."""

    @property
    def lengths(self) -> Lengths: ...

    @property
    def vocab_size(self) -> int: ...

    def rows(self, seed: str, samples: Ints) -> TaskRows:
        """The rows with these numbers. Each is a function of (seed, number) alone."""
        ...

    def chance(self) -> Chance: ...


def after_start(targets: Ints) -> Ints:
    """Decoder inputs (B, M): the start token, then each earlier target."""
    inputs = np.full_like(targets, START)
    inputs[:, 1:] = targets[:, :-1]
    return inputs


def symbols(uniform: NDArray[np.float64], count: int) -> Ints:
    """Uniform numbers in [0, 1) to whole numbers from 0 to count - 1."""
    return (uniform * count).astype(np.int64)
