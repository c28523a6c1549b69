"""BART's noise: sentences in random order, then spans of text each replaced by one mask; the decoder writes the whole original.

(Lewis et al. 2020, arXiv:1910.13461, section 2.2.) Span lengths are Poisson(3), 0 among them: a mask is then inserted between
two tokens. Lengths are drawn until they cover round(L * mask_share) tokens, and the last one is cut to cover exactly that
number. All arrangements of kept tokens and masks are equally likely. Sentences are permuted inside their document, before its
end token.
The decoder's cost is that of the whole row, so a raw token costs more than under span corruption.

Shapes: B rows, L raw tokens, S most spans of a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.objectives.counter_rng import CounterRNG
from pipeline.objectives.interface import Batch, Cost, FittedConfig, Ints, Objective, by_length, shift_right, valid
from pipeline.objectives.vocabulary import Vocabulary

_DEVIATIONS = 7.0
"""Standard deviations above its mean up to which the number of spans has positions. Less than one of 10^10 rows needs more: its
last span then covers the rest."""

_LONGEST_ROW = 0xFFFF  # documents and places in a row are numbered in 16 bits
_BEHIND_SENTENCES = np.uint64(0xFFFFFFFF)


class TextInfillingConfig(FittedConfig):
    name: Literal["text_infilling"] = "text_infilling"
    mask_share: float = Field(default=0.3, ge=0, lt=1)
    """Share of tokens that are covered by spans."""
    mean_span_length: float = Field(default=3.0, ge=1)
    """Mean of the Poisson distribution that span lengths in tokens are drawn from."""
    permute_sentences: bool = True
    """Whether the sentences of the encoder's text change places."""

    def needs(self, row_length: int) -> tuple[int, int]:
        num_masked = round(row_length * self.mask_share)
        return row_length - num_masked + most_spans(num_masked, self.mean_span_length), row_length

    def build(
        self, row_length: int, encoder_length: int, decoder_length: int, vocabulary: Vocabulary, seed: str
    ) -> TextInfilling:
        self.check_fit(row_length, encoder_length, decoder_length)
        if row_length > _LONGEST_ROW:
            raise ValueError(
                f"{self.name} takes rows of at most {_LONGEST_ROW} tokens, not {row_length}: shorten data.decoder_length"
            )
        mask_id = vocabulary.token("[MASK]", self.name)
        return TextInfilling(
            row_length=row_length,
            encoder_length=encoder_length,
            decoder_length=decoder_length,
            config=self,
            vocabulary=vocabulary,
            mask_id=mask_id,
            seed=seed,
        )


def most_spans(num_masked: int, mean_span_length: float) -> int:
    """Number of spans whose Poisson lengths cover `num_masked` tokens in practically all rows."""
    if not num_masked:
        return 0
    mean = num_masked / mean_span_length
    return math.ceil(mean + _DEVIATIONS * math.sqrt(mean / mean_span_length) + _DEVIATIONS**2 / mean_span_length)


@dataclass(frozen=True, eq=False, kw_only=True)
class TextInfilling(Objective):
    row_length: int
    encoder_length: int
    decoder_length: int
    config: TextInfillingConfig
    vocabulary: Vocabulary
    mask_id: int
    seed: str

    @property
    def cost(self) -> Cost:
        return Cost(raw=self.row_length, encoder=self.encoder_length, decoder=self.decoder_length, target=self.row_length)

    def num_targets(self, row_lengths: Ints, samples: Ints) -> Ints:
        return row_lengths

    def __call__(self, rows: Ints, row_lengths: Ints, samples: Ints) -> Batch:
        encoder_ids, encoder_mask = np.zeros((2, len(rows), self.encoder_length), dtype=np.int64)
        source = self._permuted(rows, row_lengths, samples) if self.config.permute_sentences else rows
        for length, chosen in by_length(row_lengths):
            ids, used = self._infilled(source[chosen, :length], CounterRNG(self.seed, "infilling", samples[chosen]))
            encoder_ids[chosen, : ids.shape[1]], encoder_mask[chosen, : ids.shape[1]] = ids, used
        target_mask = valid(row_lengths, self.decoder_length).astype(np.int64)
        targets = np.zeros_like(target_mask)
        targets[:, : self.row_length] = rows[:, : self.row_length]
        targets *= target_mask
        return Batch(
            encoder_ids=encoder_ids,
            encoder_mask=encoder_mask,
            decoder_ids=shift_right(targets, self.vocabulary.start),
            targets=targets,
            target_mask=target_mask,
        )

    def _permuted(self, rows: Ints, row_lengths: Ints, samples: Ints) -> Ints:
        """The rows (B, L) with the sentences of each document in random order."""
        is_end = rows == self.vocabulary.end  # (B, L)
        document = np.cumsum(is_end, axis=1, dtype=np.int64) - is_end
        closes = self.vocabulary.ends_sentence[rows] | is_end
        sentence = np.cumsum(closes, axis=1, dtype=np.int64) - closes
        drawn = CounterRNG(self.seed, "sentences", samples).keys(rows.shape[1])
        # Sorted by document, then by the sentence's random number, then by position, which keeps a sentence's tokens in order.
        key = np.take_along_axis(drawn, sentence, axis=1).astype(np.uint64)
        key[is_end] = _BEHIND_SENTENCES
        document[~valid(row_lengths, rows.shape[1])] = _LONGEST_ROW
        key |= document.astype(np.uint64) << np.uint64(32)
        key = (key << np.uint64(16)) | np.arange(rows.shape[1], dtype=np.uint64)
        order = (np.sort(key, axis=1) & np.uint64(_LONGEST_ROW)).astype(np.int64)
        return np.take_along_axis(rows, order, axis=1)

    def _infilled(self, rows: Ints, draws: CounterRNG) -> tuple[Ints, NDArray[np.bool_]]:
        """Rows (B, L) of one length → encoder ids (B, W), and a mask of those that are used."""
        num_rows, length = rows.shape
        num_masked = round(length * self.config.mask_share)
        if not num_masked:
            return rows, np.ones(rows.shape, dtype=bool)
        covered = span_ends(draws, num_masked, self.config.mean_span_length)  # (B, S)
        num_spans = (covered < num_masked).sum(1) + 1  # (B,)
        width = length - num_masked + covered.shape[1]
        num_places = length - num_masked + num_spans
        is_mask = draws.subsets(num_spans, num_places, width)
        before = np.cumsum(is_mask, axis=1, dtype=np.int64)  # masks up to and including each position
        skipped = np.concatenate([np.zeros((num_rows, 1), dtype=np.int64), covered], axis=1)
        used = valid(num_places, width)
        place = np.arange(width) - before + np.take_along_axis(skipped, before, axis=1)
        ids = np.take_along_axis(rows, np.clip(place, 0, length - 1), axis=1)
        return np.where(is_mask, self.mask_id, ids) * used, used


def span_ends(draws: CounterRNG, num_masked: int, mean_span_length: float) -> Ints:
    """(B, S) tokens that the first 1, 2, … spans cover: never more than `num_masked`, which the last span reaches."""
    lengths = poisson(draws.uniform(most_spans(num_masked, mean_span_length)), mean_span_length)
    covered = np.minimum(np.cumsum(lengths, axis=1), num_masked)
    covered[:, -1] = num_masked
    return covered


def poisson(uniform: NDArray[np.float64], mean: float) -> Ints:
    """Poisson numbers of that mean at the given quantiles, of the same shape."""
    counts = np.arange(int(mean + 20 * math.sqrt(mean) + 20))
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.maximum(counts[1:], 1)))])
    cumulative = np.cumsum(np.exp(counts * math.log(mean) - mean - log_factorials))
    return np.searchsorted(cumulative, uniform, side="right").astype(np.int64)
