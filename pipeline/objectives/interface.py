"""The interface of objectives: pure functions from rows of raw tokens to a batch, whose lengths and costs are known before.

An objective is a function of (row, seed, global sample index) alone. The number of a row's targets follows from its length and
its sample index, without reading a token, so every rank knows the global count by itself.

Shapes: B rows, L raw tokens of a row, N encoder length, M decoder length, P predicted positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from models.cost.flops import Lengths
from pipeline.objectives.vocabulary import Vocabulary

Ints = NDArray[np.int64]
Form = Literal["encoder_decoder", "decoder_only", "encoder_only"]
VALIDATION_SEED = "validation"
"""Seed of the random numbers of evaluation, the same for every run."""
Loss = tuple[Ints, Ints]
"""Targets and a mask of the same shape: 1 where the loss is taken."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows for an encoder-decoder, all int64. Padding has mask 0 and id 0, and is never read."""

    encoder_ids: Ints  # (B, N)
    encoder_mask: Ints  # (B, N)
    decoder_ids: Ints  # (B, M), the targets shifted right after the start token
    targets: Ints  # (B, M)
    target_mask: Ints  # (B, M), 1 where the loss is taken

    @property
    def inputs(self) -> tuple[Ints, ...]:
        """The inputs of the first pipeline stage."""
        return self.encoder_ids, self.encoder_mask, self.decoder_ids

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The targets and masks that the last pipeline stage takes."""
        return ((self.targets, self.target_mask),)


@dataclass(frozen=True, kw_only=True)
class TextBatch:
    """Rows as a decoder alone takes them, all int64."""

    ids: Ints  # (B, L), the text shifted right behind the start token
    mask: Ints  # (B, L): 0 padding, 1 a token, 2 a token of the prefix that may be read in both directions
    targets: Ints  # (B, L)
    target_mask: Ints  # (B, L)

    @property
    def inputs(self) -> tuple[Ints, ...]:
        """The inputs of the first pipeline stage."""
        return self.ids, self.mask

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The targets and masks that the last pipeline stage takes."""
        return ((self.targets, self.target_mask),)


@dataclass(frozen=True, kw_only=True)
class EncoderBatch:
    """Rows as an encoder alone takes them, all int64. A predicted position that is not used is 0, with mask 0."""

    ids: Ints  # (B, N)
    mask: Ints  # (B, N)
    type_ids: Ints  # (B, N), 0 in the first segment and in padding, 1 in the second
    positions: Ints  # (B, P), ascending
    targets: Ints  # (B, P)
    target_mask: Ints  # (B, P)
    order: Ints  # (B,), 1 where the segments were swapped
    order_mask: Ints  # (B,)

    @property
    def inputs(self) -> tuple[Ints, ...]:
        """The inputs of the first pipeline stage."""
        return self.ids, self.mask, self.type_ids, self.positions

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The targets and masks that the last pipeline stage takes."""
        return (self.targets, self.target_mask), (self.order, self.order_mask)


AnyBatch = Batch | TextBatch | EncoderBatch


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a full row: raw tokens of the corpus, computed positions (padding included), and target tokens."""

    raw: int
    encoder: int
    decoder: int
    target: float
    """The mean, if it is random."""

    def per_raw(self) -> tuple[float, float, float]:
        """Encoder positions, decoder positions and target tokens per raw token."""
        return self.encoder / self.raw, self.decoder / self.raw, self.target / self.raw


class Objective(ABC):
    """See the file's head."""

    row_length: int
    """Raw tokens of a full row."""

    @property
    @abstractmethod
    def cost(self) -> Cost:
        """The cost of a full row."""

    @abstractmethod
    def num_targets(self, row_lengths: Ints, samples: Ints) -> Ints:
        """Target tokens (B,) of rows with these lengths in tokens (B,), without reading the rows."""

    @abstractmethod
    def __call__(self, rows: Ints, row_lengths: Ints, samples: Ints) -> AnyBatch:
        """The batch of rows (B, row_length) int64, padded at their end.

        row_lengths (B,) in tokens; samples (B,): global sample indices.
        """

    def loss_counts(self, row_lengths: Ints, samples: Ints) -> tuple[int, ...]:
        """The number of targets of each of the batch's losses, summed over these rows."""
        return (int(self.num_targets(row_lengths, samples).sum()),)


class ObjectiveConfig(BaseModel):
    """An objective's section in a recipe, without the lengths, the tokenizer and the seed of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    form: ClassVar[Form] = "encoder_decoder"
    """The kind of model that it trains."""

    def row_length(self, encoder_length: int, decoder_length: int) -> int:
        """Raw tokens of the longest rows that always fit these lengths. Raises ValueError if there are none."""
        raise NotImplementedError

    def default_decoder_length(self, encoder_length: int) -> int:
        """The decoder length if the recipe gives none."""
        raise NotImplementedError

    def lengths(self, encoder_length: int, decoder_length: int) -> Lengths:
        """The shapes of a full row, from which a model's FLOPs are counted."""
        return Lengths(encoder_length, decoder_length)

    def build(self, row_length: int, encoder_length: int, decoder_length: int, vocabulary: Vocabulary, seed: str) -> Objective:
        """The objective on rows of `row_length` that gives batches of these shapes.

        Raises ValueError if a row would not fit, or if the vocabulary lacks a token that it needs.
        """
        raise NotImplementedError


class FittedConfig(ObjectiveConfig):
    """An objective whose encoder and decoder texts both grow with the row. The longest row that fits is searched."""

    def needs(self, row_length: int) -> tuple[int, int]:
        """Most encoder and decoder positions of rows of up to `row_length` tokens. Neither may fall as row_length grows."""
        raise NotImplementedError

    def row_length(self, encoder_length: int, decoder_length: int) -> int:
        low, high = 1, 2
        while self._fits(high, encoder_length, decoder_length):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(middle, encoder_length, decoder_length) else (low, middle)
        if low < 2:
            raise ValueError(
                f"data.encoder_length {encoder_length} and data.decoder_length {decoder_length} are too short for {self.name}: "
                f"rows of 16 tokens need {' and '.join(map(str, self.needs(16)))}"
            )
        return low

    def default_decoder_length(self, encoder_length: int) -> int:
        unbounded = 1 << 40
        return self.needs(self.row_length(encoder_length, unbounded))[1]

    def check_fit(self, row_length: int, encoder_length: int, decoder_length: int) -> None:
        """Raise ValueError if rows of this length may need more than these lengths."""
        if not self._fits(row_length, encoder_length, decoder_length):
            encoder, decoder = self.needs(row_length)
            raise ValueError(
                f"{self.name} on rows of {row_length} tokens needs {encoder} encoder and {decoder} decoder positions, "
                f"data.encoder_length is {encoder_length} and data.decoder_length {decoder_length}: raise them, or "
                "shorten the rows"
            )

    def _fits(self, row_length: int, encoder_length: int, decoder_length: int) -> bool:
        encoder, decoder = self.needs(row_length)
        return encoder <= encoder_length and decoder <= decoder_length


def shift_right(targets: Ints, start_id: int) -> Ints:
    """The decoder's input for `targets` (B, M): the start token, then the targets without the last one."""
    shifted = np.empty_like(targets)
    shifted[:, 0] = start_id
    shifted[:, 1:] = targets[:, :-1]
    return shifted


def valid(lengths: Ints, width: int) -> NDArray[np.bool_]:
    """(B, width), true at the first `lengths` (B,) positions of each row."""
    return np.arange(width) < lengths[:, None]


def by_length(row_lengths: Ints) -> Iterator[tuple[int, Ints | slice]]:
    """Each length that occurs, with the rows of that length. If all lengths are equal it is a slice, which costs no copy."""
    if row_lengths.size and (row_lengths == row_lengths[0]).all():
        yield int(row_lengths[0]), slice(None)
        return
    for length in np.unique(row_lengths):
        yield int(length), np.flatnonzero(row_lengths == length)
