"""Causal language modelling for decoder-only models (GPT-2): every token of the row is a target.

`DecoderOnlyAdapter` turns any encoder-decoder batch into a decoder-only one: the encoder's text becomes a prefix without loss
(Raffel et al. 2020, figure 4, "prefix LM").

Shapes: B rows, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from pipeline.objectives.interface import Batch, Cost, Form, Ints, Objective, ObjectiveConfig, TextBatch, shift_right, valid
from pipeline.objectives.vocabulary import Vocabulary


class CausalLMConfig(ObjectiveConfig):
    """Rows have data.encoder_length + data.decoder_length tokens, as those of the prefix-LM that it is compared with."""

    name: Literal["causal_lm"] = "causal_lm"
    form: ClassVar[Form] = "decoder_only"

    def row_length(self, encoder_length: int, decoder_length: int) -> int:
        return encoder_length + decoder_length

    def default_decoder_length(self, encoder_length: int) -> int:
        return 128

    def build(self, row_length: int, encoder_length: int, decoder_length: int, vocabulary: Vocabulary, seed: str) -> CausalLM:
        return CausalLM(row_length, vocabulary.start)


@dataclass(frozen=True)
class CausalLM(Objective):
    row_length: int
    start_id: int

    @property
    def cost(self) -> Cost:
        return Cost(raw=self.row_length, encoder=0, decoder=self.row_length, target=self.row_length)

    def num_targets(self, row_lengths: Ints, samples: Ints) -> Ints:
        return row_lengths

    def __call__(self, rows: Ints, row_lengths: Ints, samples: Ints) -> TextBatch:
        mask = valid(row_lengths, self.row_length).astype(np.int64)
        targets = rows * mask
        return TextBatch(ids=shift_right(targets, self.start_id) * mask, mask=mask, targets=targets, target_mask=mask)


@dataclass(frozen=True)
class DecoderOnlyAdapter(Objective):
    """An encoder-decoder's objective in decoder-only form."""

    pair: Objective
    start_id: int
    bidirectional_prefix: bool = False
    """Whether attention reads the prefix in both directions (a prefix decoder) or causally (GPT-2)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "row_length", self.pair.row_length)

    @property
    def cost(self) -> Cost:
        cost = self.pair.cost
        return Cost(raw=cost.raw, encoder=0, decoder=cost.encoder + cost.decoder, target=cost.target)

    def num_targets(self, row_lengths: Ints, samples: Ints) -> Ints:
        return self.pair.num_targets(row_lengths, samples)

    def __call__(self, rows: Ints, row_lengths: Ints, samples: Ints) -> TextBatch:
        batch = self.pair(rows, row_lengths, samples)
        assert isinstance(batch, Batch)
        num_prefix, num_targets = batch.encoder_mask.sum(1), batch.target_mask.sum(1)  # (B,)
        width = batch.encoder_mask.shape[1] + batch.target_mask.shape[1]
        used = valid(num_prefix + num_targets, width)
        text = np.zeros(used.shape, dtype=np.int64)
        both = np.concatenate([batch.encoder_mask, batch.target_mask], axis=1).astype(bool)
        text[used] = np.concatenate([batch.encoder_ids, batch.targets], axis=1)[both]
        target_mask = used & ~valid(num_prefix, width)
        mask = used.astype(np.int64)
        if self.bidirectional_prefix:
            # The start token comes first, so the prefix ends one place later than in the text.
            mask += used & valid(num_prefix + 1, width)
        return TextBatch(
            ids=shift_right(text, self.start_id) * used,
            mask=mask,
            targets=text * target_mask,
            target_mask=target_mask.astype(np.int64),
        )
