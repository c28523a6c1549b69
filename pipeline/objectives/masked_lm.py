"""Masked language modelling with sentence-order prediction, as FNet was trained.

(Devlin et al. 2019 for the masking; `f_net/input_pipeline.py` of google-research for the rest.) A row becomes [CLS] A [SEP] B
[SEP], with A and B in their order or swapped, both equally likely, and the model predicts which. The repository calls this
next-sentence prediction, but both segments always come from one document. They are split at the end of a line if there is one.
Of all positions but the three specials, int(rate * tokens) are predicted (`tokens` includes the specials): 80 % show [MASK],
10 % a random token, 10 % the token itself.

A packed row may hold several documents: the split is then inside the longest one, so that both segments have a part of it.

Shapes: B rows, L raw tokens, N encoder length, P predicted positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from models.cost.flops import Lengths
from pipeline.objectives.counter_rng import CounterRNG
from pipeline.objectives.interface import Cost, EncoderBatch, Form, Ints, Objective, ObjectiveConfig, valid
from pipeline.objectives.vocabulary import Vocabulary

_SPECIALS = 3


class MaskedLMConfig(ObjectiveConfig):
    """The decoder length is not used: rows have data.encoder_length - 3 tokens."""

    name: Literal["masked_lm"] = "masked_lm"
    form: ClassVar[Form] = "encoder_only"
    rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of a row's tokens that are predicted."""
    mask_share: float = Field(default=0.8, ge=0, le=1)
    """Share of the predicted tokens that are replaced by [MASK]."""
    random_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the predicted tokens that are replaced by a random token; the rest stay as they are."""
    max_predictions: PositiveInt | None = None
    """Most predictions of a row. Default: as many as a full row has. FNet's 80 for 512 tokens leave 4 unused."""
    sentence_order: bool = True
    """Whether the model also predicts if the row's two segments were swapped."""

    @model_validator(mode="after")
    def _shares(self) -> MaskedLMConfig:
        if self.mask_share + self.random_share > 1:
            raise ValueError(
                f"mask_share {self.mask_share} and random_share {self.random_share} add up to more than 1: lower one of them"
            )
        return self

    def row_length(self, encoder_length: int, decoder_length: int) -> int:
        if encoder_length <= _SPECIALS + 1:
            raise ValueError(
                f"data.encoder_length {encoder_length} has no room for tokens beside [CLS] and two [SEP]: raise it"
            )
        return encoder_length - _SPECIALS

    def default_decoder_length(self, encoder_length: int) -> int:
        return 1

    def num_predictions(self, row_length: int) -> int:
        """P: number of predicted positions in a row of `row_length` raw tokens."""
        return self.max_predictions or max(1, int((row_length + _SPECIALS) * self.rate))

    def lengths(self, encoder_length: int, decoder_length: int) -> Lengths:
        return Lengths(encoder_length, self.num_predictions(encoder_length - _SPECIALS))

    def build(self, row_length: int, encoder_length: int, decoder_length: int, vocabulary: Vocabulary, seed: str) -> MaskedLM:
        if row_length + _SPECIALS > encoder_length:
            raise ValueError(
                f"rows of {row_length} tokens and 3 specials exceed data.encoder_length {encoder_length}: raise it"
            )
        cls_id, sep_id, mask_id = (vocabulary.token(name, self.name) for name in ("[CLS]", "[SEP]", "[MASK]"))
        return MaskedLM(
            row_length=row_length,
            encoder_length=encoder_length,
            config=self,
            vocabulary=vocabulary,
            cls_id=cls_id,
            sep_id=sep_id,
            mask_id=mask_id,
            seed=seed,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskedLM(Objective):
    row_length: int
    encoder_length: int
    config: MaskedLMConfig
    vocabulary: Vocabulary
    cls_id: int
    sep_id: int
    mask_id: int
    seed: str

    @property
    def num_predictions(self) -> int:
        """P: number of predicted positions of a row in a batch."""
        return self.config.num_predictions(self.row_length)

    @property
    def cost(self) -> Cost:
        full = np.array([self.row_length])
        return Cost(raw=self.row_length, encoder=self.encoder_length, decoder=0, target=int(self.num_targets(full, full)[0]))

    def num_targets(self, row_lengths: Ints, samples: Ints) -> Ints:
        wanted = np.maximum(1, ((row_lengths + _SPECIALS) * self.config.rate).astype(np.int64))
        return np.minimum(np.minimum(wanted, self.num_predictions), row_lengths)

    def loss_counts(self, row_lengths: Ints, samples: Ints) -> tuple[int, ...]:
        return int(self.num_targets(row_lengths, samples).sum()), int(self._has_order(row_lengths).sum())

    def _has_order(self, row_lengths: Ints) -> Ints:
        return ((row_lengths > 1) & self.config.sentence_order).astype(np.int64)

    def __call__(self, rows: Ints, row_lengths: Ints, samples: Ints) -> EncoderBatch:
        ids, type_ids, swapped = self._segments(rows, row_lengths, samples)
        mask = valid(np.where(row_lengths > 0, row_lengths + _SPECIALS, 0), self.encoder_length)
        draws = CounterRNG(self.seed, "masking", samples)
        num_targets = self.num_targets(row_lengths, samples)
        # Candidates are all positions but the specials, numbered from 1 on without the middle [SEP].
        middle = np.argmax(ids == self.sep_id, axis=1)  # (B,)
        chosen = draws.subsets(num_targets, row_lengths, self.row_length)
        target_mask = valid(num_targets, self.num_predictions)
        positions = np.zeros(target_mask.shape, dtype=np.int64)
        candidates = np.nonzero(chosen)
        positions[target_mask] = candidates[1] + 1 + (candidates[1] + 1 >= middle[candidates[0]])
        targets = np.take_along_axis(ids, positions, axis=1) * target_mask
        shown = self._shown(targets, draws)
        np.put_along_axis(ids, np.where(target_mask, positions, 0), np.where(target_mask, shown, ids[:, :1]), axis=1)
        return EncoderBatch(
            ids=ids * mask,
            mask=mask.astype(np.int64),
            type_ids=type_ids,
            positions=positions,
            targets=targets,
            target_mask=target_mask.astype(np.int64),
            order=swapped,
            order_mask=self._has_order(row_lengths),
        )

    def _shown(self, targets: Ints, draws: CounterRNG) -> Ints:
        """The token that the encoder reads at each predicted position (B, P)."""
        kind = draws.uniform(targets.shape[1])
        ordinary = self.vocabulary.ordinary
        random = ordinary[draws.below(np.full(len(targets), len(ordinary)), targets.shape[1])]
        masked = self.config.mask_share
        shown = np.where(kind < masked + self.config.random_share, random, targets)
        return np.where(kind < masked, self.mask_id, shown)

    def _segments(self, rows: Ints, row_lengths: Ints, samples: Ints) -> tuple[Ints, Ints, Ints]:
        """[CLS] A [SEP] B [SEP] (B, N), its segment ids, and 1 where A is the later half of the row."""
        draws = CounterRNG(self.seed, "segments", samples)
        seam = seams(rows, row_lengths, self.vocabulary, draws)  # (B,)
        swapped = (draws.below(np.full(len(rows), 2))[:, 0] == 1) & (row_lengths > 1) & self.config.sentence_order
        num_first = np.where(swapped, row_lengths - seam, seam)
        place = np.arange(self.encoder_length)
        in_first = place <= num_first[:, None]
        # Position p of A is token p - 1 of A, position p of B token p - 2 of both; if swapped, A starts at the split.
        source = place - np.where(in_first, 1, 2)
        source = np.where(swapped[:, None], np.where(in_first, source + seam[:, None], source - num_first[:, None]), source)
        ids = np.take_along_axis(rows, np.clip(source, 0, self.row_length - 1), axis=1)
        ids[:, 0] = self.cls_id
        number = np.arange(len(rows))
        ids[number, num_first + 1] = ids[number, row_lengths + 2] = self.sep_id
        type_ids = (place > num_first[:, None] + 1) & valid(row_lengths + _SPECIALS, self.encoder_length)
        return ids, type_ids.astype(np.int64), swapped.astype(np.int64)


def seams(rows: Ints, row_lengths: Ints, vocabulary: Vocabulary, draws: CounterRNG) -> Ints:
    """(B,) tokens before the split: at a line end inside the row's longest document, else anywhere inside it."""
    width = rows.shape[1]
    places = np.arange(width)
    used = valid(row_lengths, width)
    is_end = (rows == vocabulary.end) & used
    document = np.cumsum(is_end, axis=1) - is_end  # (B, L)
    flat = document + np.arange(len(rows))[:, None] * width
    lengths = np.bincount(flat[used], minlength=len(rows) * width).reshape(len(rows), width)
    longest = (document == lengths.argmax(1)[:, None]) & used
    # The split is before token p, and token p - 1 is of the same document.
    inside = np.zeros_like(longest)
    inside[:, 1:] = longest[:, 1:] & longest[:, :-1]
    after_line = np.zeros_like(inside)
    after_line[:, 1:] = inside[:, 1:] & vocabulary.ends_line[rows[:, :-1]]
    candidates: NDArray[np.bool_] = np.where(after_line.any(1)[:, None], after_line, inside)
    number = draws.below(np.maximum(candidates.sum(1), 1))[:, 0]
    nth = (np.cumsum(candidates, axis=1) == number[:, None] + 1) & candidates
    return np.where(candidates.any(1), (nth * places).sum(1), row_lengths)
