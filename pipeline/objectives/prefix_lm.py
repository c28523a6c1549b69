"""Prefix language modelling: the encoder reads the start of a row, the decoder writes the rest.

(Raffel et al. 2020, section 3.2.1.) The split is constant by default, and so is every shape. Or it is drawn for each sample
from a set of prefix lengths, and encoder and decoder are padded to the longest prefix and the longest rest
(`docs/architecture.md` has the padding rule). Or the decoder writes a fixed share of the row.

Shapes: B rows, N encoder length, M decoder length, L raw tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from pipeline.objectives.counter_rng import CounterRNG
from pipeline.objectives.interface import Batch, Cost, Ints, Objective, ObjectiveConfig, shift_right, valid
from pipeline.objectives.vocabulary import Vocabulary

__all__ = ["Batch", "PrefixLM", "PrefixLMConfig"]


class PrefixLMConfig(ObjectiveConfig):
    name: Literal["prefix_lm"] = "prefix_lm"
    prefix_lengths: tuple[PositiveInt, ...] = ()
    """Prefix lengths in tokens, one of which is drawn for each row, all equally likely. Default: always data.encoder_length."""
    target_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of each row that the decoder writes. Give it instead of prefix_lengths."""

    @model_validator(mode="after")
    def _one_rule(self) -> PrefixLMConfig:
        if self.prefix_lengths and self.target_share is not None:
            raise ValueError("prefix_lengths and target_share exclude each other: give one of them")
        if len(set(self.prefix_lengths)) != len(self.prefix_lengths):
            raise ValueError(
                f"prefix_lengths {list(self.prefix_lengths)} repeats a length: all are equally likely, so give each once"
            )
        return self

    def row_length(self, encoder_length: int, decoder_length: int) -> int:
        if self.target_share is not None:
            length = encoder_length + decoder_length
            while True:  # at most a few steps: the two bounds below differ from the exact ones by rounding only
                rest = _rest(length, self.target_share)
                excess = max(length - rest - encoder_length, rest - decoder_length)
                if excess <= 0:
                    return length
                length -= excess
        shortest, longest = min(self.prefix_lengths, default=encoder_length), max(self.prefix_lengths, default=encoder_length)
        if longest > encoder_length:
            raise ValueError(f"prefix_lengths has {longest}, more than data.encoder_length {encoder_length}: shorten it")
        row_length = shortest + decoder_length
        if row_length <= longest:
            raise ValueError(
                f"rows of {row_length} tokens (the shortest prefix, {shortest}, + data.decoder_length {decoder_length}) "
                f"leave nothing to write after a prefix of {longest}: raise data.decoder_length above {longest - shortest}"
            )
        return row_length

    def default_decoder_length(self, encoder_length: int) -> int:
        if self.target_share is not None:
            return max(1, round(encoder_length * self.target_share / (1 - self.target_share)))
        return 128 + max(self.prefix_lengths, default=0) - min(self.prefix_lengths, default=0)

    def build(self, row_length: int, encoder_length: int, decoder_length: int, vocabulary: Vocabulary, seed: str) -> PrefixLM:
        prefixes = self.prefix_lengths or (encoder_length,)
        if self.target_share is not None:
            prefixes = (row_length - _rest(row_length, self.target_share),)
        if max(prefixes) > encoder_length or not 0 < row_length - max(prefixes) <= row_length - min(prefixes) <= decoder_length:
            raise ValueError(
                f"prefix_lm cannot cut rows of {row_length} tokens after {' or '.join(map(str, prefixes))}: "
                f"data.encoder_length is {encoder_length}, data.decoder_length {decoder_length}; "
                "give target_share or prefix_lengths that fit them"
            )
        return PrefixLM(
            encoder_length=encoder_length,
            decoder_length=decoder_length,
            start_id=vocabulary.start,
            prefix_lengths=prefixes,
            row_length=row_length,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class PrefixLM(Objective):
    encoder_length: int
    decoder_length: int
    start_id: int
    prefix_lengths: tuple[int, ...] = ()
    """Default: the encoder length."""
    row_length: int = 0
    """Default: encoder and decoder length together."""
    seed: str = "0"

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix_lengths", self.prefix_lengths or (self.encoder_length,))
        object.__setattr__(self, "row_length", self.row_length or self.encoder_length + self.decoder_length)

    @property
    def cost(self) -> Cost:
        target = self.row_length - sum(self.prefix_lengths) / len(self.prefix_lengths)
        return Cost(raw=self.row_length, encoder=self.encoder_length, decoder=self.decoder_length, target=target)

    def prefixes(self, samples: Ints) -> Ints:
        """The length of each sample's prefix (B,)."""
        lengths = np.array(self.prefix_lengths, dtype=np.int64)
        if len(lengths) == 1:
            return np.full(len(samples), lengths[0])
        return lengths[CounterRNG(self.seed, "prefix", samples).below(np.full(len(samples), len(lengths)))[:, 0]]

    def num_targets(self, row_lengths: Ints, samples: Ints) -> Ints:
        return np.clip(row_lengths - self.prefixes(samples), 0, self.decoder_length)

    def __call__(self, rows: Ints, row_lengths: Ints, samples: Ints) -> Batch:
        n, m = self.encoder_length, self.decoder_length
        prefixes = self.prefixes(samples)
        encoder_mask = valid(np.minimum(row_lengths, prefixes), n)
        target_mask = valid(np.clip(row_lengths - prefixes, 0, m), m)
        if len(self.prefix_lengths) == 1 and prefixes[:1].tolist() == [n] and rows.shape[1] == n + m:
            encoder_ids, targets = rows[:, :n] * encoder_mask, rows[:, n:] * target_mask
        else:
            padded = np.zeros((len(rows), n + m), dtype=np.int64)
            padded[:, : rows.shape[1]] = rows
            encoder_ids = padded[:, :n] * encoder_mask
            places = np.minimum(prefixes[:, None] + np.arange(m), n + m - 1)
            targets = np.take_along_axis(padded, places, axis=1) * target_mask
        return Batch(
            encoder_ids=encoder_ids,
            encoder_mask=encoder_mask.astype(np.int64),
            decoder_ids=shift_right(targets, self.start_id),
            targets=targets,
            target_mask=target_mask.astype(np.int64),
        )


def _rest(row_length: int, share: float) -> int:
    return min(max(1, round(row_length * share)), row_length - 1)
