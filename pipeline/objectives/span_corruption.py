"""T5's span corruption: spans of a row are cut out, each replaced by a sentinel; the decoder writes sentinels and spans.

(Raffel et al. 2020, section 3.1.4.) The counts are not random: a row of L tokens loses n = round(L * noise_density) of them in
round(n / mean_span_length) spans. It begins with kept tokens and ends with a span; all such choices of spans are equally
likely. Encoder and decoder text each end with the end token. So lengths are exact, and rows that are cut to fit have no
padding: 568 raw tokens become 512 for the encoder and 114 for the decoder.

So T5's rule with one span is a prefix-LM. With `ends_with_span: false` there are kept tokens after the last span too: S spans
lie between S + 1 kept parts of at least one token, and all such choices are equally likely. `num_spans` sets S directly.

Shapes: B rows, L raw tokens, N encoder length, M decoder length, S spans of a row, K = S or S + 1 kept parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer

from pipeline.objectives.counter_rng import CounterRNG
from pipeline.objectives.interface import Batch, Cost, FittedConfig, Ints, Objective, by_length, shift_right, valid
from pipeline.objectives.vocabulary import Vocabulary


class SpanCorruptionConfig(FittedConfig):
    name: Literal["span_corruption"] = "span_corruption"
    noise_density: float = Field(default=0.15, gt=0, lt=1)
    """Share of tokens that are cut out of the encoder's text."""
    mean_span_length: float = Field(default=3.0, ge=1)
    """Mean length of the cut spans in tokens."""
    repeat_sentinels: bool = False
    """If a row has more spans than the tokenizer has sentinels, start again from the first; otherwise that is an error."""
    num_spans: PositiveInt | None = None
    """Number of spans of a full row, in place of `mean_span_length`; `noise_density` still sets the number of cut tokens. Rows
    too short for this number have as many as fit. Default: from `noise_density` and `mean_span_length`."""
    ends_with_span: bool = True
    """true: a row ends with a span, as T5's `random_spans_noise_mask` does. false: kept tokens follow the last span, so spans
    stand anywhere but at the very start and the very end."""

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `num_spans` and `ends_with_span` at their defaults: plans made before the keys existed keep their hash."""
        values: dict[str, Any] = dump(self)
        unset = {"num_spans": self.num_spans is None, "ends_with_span": self.ends_with_span}
        return {key: value for key, value in values.items() if not unset.get(key, False)}

    def needs(self, row_length: int) -> tuple[int, int]:
        num_noise, num_spans = self.counts(row_length)
        return row_length - num_noise + num_spans + 1, num_noise + num_spans + 1

    def counts(self, row_length: int) -> tuple[int, int]:
        """(cut tokens, spans) of a row of `row_length` tokens; see `span_counts`."""
        return span_counts(
            row_length,
            self.noise_density,
            self.mean_span_length,
            num_spans=self.num_spans,
            ends_with_span=self.ends_with_span,
        )

    def build(
        self, row_length: int, encoder_length: int, decoder_length: int, vocabulary: Vocabulary, seed: str
    ) -> SpanCorruption:
        self.check_fit(row_length, encoder_length, decoder_length)
        num_noise, num_spans = self.counts(row_length)
        self._check_spans(row_length, num_noise, num_spans)
        return SpanCorruption(
            config=self,
            row_length=row_length,
            encoder_length=encoder_length,
            decoder_length=decoder_length,
            sentinels=vocabulary.span_ids(num_spans, self.repeat_sentinels, self.name),
            start_id=vocabulary.start,
            end_id=vocabulary.end,
            seed=seed,
        )

    def _check_spans(self, row_length: int, num_noise: int, num_spans: int) -> None:
        """Raise ValueError if a full row has no room for `num_spans` spans, or with `ends_with_span: false` for any."""
        if self.num_spans is not None and num_spans < self.num_spans:
            kept = row_length - num_noise
            between = "kept tokens" if self.ends_with_span else "kept tokens less one (ends_with_span is false)"
            raise ValueError(
                f"{self.name}: num_spans {self.num_spans} does not fit rows of {row_length} tokens, of which noise_density "
                f"{self.noise_density} cuts {num_noise} and keeps {kept}: there are at most as many spans as cut tokens, and "
                f"as {between}. Lower num_spans to {num_spans}, change noise_density, or raise data.encoder_length"
            )
        if not num_spans and not self.ends_with_span:
            raise ValueError(
                f"{self.name} with ends_with_span false needs rows of at least 3 tokens (kept, cut, kept), and these have "
                f"{row_length}: raise data.encoder_length and data.decoder_length"
            )


def span_counts(
    num_tokens: int,
    noise_density: float,
    mean_span_length: float,
    *,
    num_spans: int | None = None,
    ends_with_span: bool = True,
) -> tuple[int, int]:
    """(tokens that a row of `num_tokens` loses, number of spans). At least one of each, and one kept token per span.

    Without `ends_with_span` one more kept token, after the last span. A row with fewer tokens than one span needs (2, or 3
    without `ends_with_span`) loses none. `num_spans` replaces `mean_span_length`; a row that is too short for it has as many
    spans as fit.
    """
    after_last = 0 if ends_with_span else 1
    if num_tokens < 2 + after_last:
        return 0, 0
    num_noise = min(max(round(num_tokens * noise_density), 1), num_tokens - 1 - after_last)
    wanted = max(round(num_noise / mean_span_length), 1) if num_spans is None else min(num_spans, num_noise)
    return num_noise, min(wanted, num_tokens - num_noise - after_last)


@dataclass(frozen=True, eq=False, kw_only=True)
class SpanCorruption(Objective):
    config: SpanCorruptionConfig
    row_length: int
    encoder_length: int
    decoder_length: int
    sentinels: Ints
    start_id: int
    end_id: int
    seed: str

    @property
    def cost(self) -> Cost:
        target = self._counts(self.row_length)[2]
        return Cost(raw=self.row_length, encoder=self.encoder_length, decoder=self.decoder_length, target=target)

    def num_targets(self, row_lengths: Ints, samples: Ints) -> Ints:
        lengths, inverse = np.unique(row_lengths, return_inverse=True)
        counts = np.array([self._counts(int(length))[2] for length in lengths], dtype=np.int64)
        return counts[inverse]

    def _counts(self, length: int) -> tuple[int, int, int]:
        """Encoder tokens, spans and target tokens of a row of `length`."""
        num_noise, num_spans = self.config.counts(length)
        if not num_spans:  # too short for a span: the encoder reads the row, and there is no target
            return length, 0, 0
        return length - num_noise + num_spans + 1, num_spans, num_noise + num_spans + 1

    def __call__(self, rows: Ints, row_lengths: Ints, samples: Ints) -> Batch:
        lengths = np.unique(row_lengths)
        if len(lengths) == 1 and self._counts(int(lengths[0]))[::2] == (self.encoder_length, self.decoder_length):
            # Full rows, as almost all are: nothing to pad, nothing to mask.
            encoder_ids, targets = self._corrupt(rows[:, : lengths[0]], CounterRNG(self.seed, "spans", samples))
            encoder_mask, target_mask = np.ones_like(encoder_ids), np.ones_like(targets)
            return Batch(
                encoder_ids=encoder_ids,
                encoder_mask=encoder_mask,
                decoder_ids=shift_right(targets, self.start_id),
                targets=targets,
                target_mask=target_mask,
            )
        encoder_ids = np.zeros((len(rows), self.encoder_length), dtype=np.int64)
        targets = np.zeros((len(rows), self.decoder_length), dtype=np.int64)
        num_encoder, num_targets = np.zeros((2, len(rows)), dtype=np.int64)
        for length, chosen in by_length(row_lengths):
            num_encoder[chosen], num_spans, num_targets[chosen] = counts = self._counts(length)
            if not num_spans:
                encoder_ids[chosen, :length] = rows[chosen, :length]
                continue
            kept, cut = self._corrupt(rows[chosen, :length], CounterRNG(self.seed, "spans", samples[chosen]))
            encoder_ids[chosen, : counts[0]], targets[chosen, : counts[2]] = kept, cut
        return Batch(
            encoder_ids=encoder_ids,
            encoder_mask=valid(num_encoder, self.encoder_length).astype(np.int64),
            decoder_ids=shift_right(targets, self.start_id),
            targets=targets,
            target_mask=valid(num_targets, self.decoder_length).astype(np.int64),
        )

    def _corrupt(self, rows: Ints, draws: CounterRNG) -> tuple[Ints, Ints]:
        """Rows (B, L) of one length → encoder ids and targets, of exact lengths."""
        num_noise, num_spans = self.config.counts(rows.shape[1])
        num_kept = rows.shape[1] - num_noise
        num_parts = num_spans if self.config.ends_with_span else num_spans + 1
        noise_before = _segment_starts(draws, num_noise, num_spans)  # (B, S + 1), in cut tokens
        kept_before = _segment_starts(draws, num_kept, num_parts)[:, : num_spans + 1]  # (B, S + 1), in kept tokens
        sentinels = self.sentinels[:num_spans]
        # Segment s is kept tokens, then a span. Encoder: its kept tokens, then sentinel s; targets: sentinel s, then its span.
        # A kept part after the last span follows the last sentinel in the encoder.
        number = np.arange(num_spans)
        encoder_places, target_places = kept_before[:, 1:] + number, noise_before[:, :-1] + number
        encoder_ids = _pick(rows, num_kept, encoder_places, np.diff(noise_before), sentinels, self.end_id)
        targets = _pick(rows, num_noise, target_places, np.diff(kept_before), sentinels, self.end_id)
        return encoder_ids, targets


def _segment_starts(draws: CounterRNG, num_items: int, num_segments: int) -> Ints:
    """(B, S + 1): where each of S non-empty segments starts, and the end. All such partitions are equally likely."""
    is_start = draws.subset(num_segments - 1, num_items - 1)  # of item 1, 2, …
    starts = np.zeros((len(is_start), num_segments + 1), dtype=np.int64)
    places = np.flatnonzero(is_start).reshape(len(is_start), num_segments - 1)  # in the flattened rows
    starts[:, 1:-1] = places - (np.arange(len(is_start)) * (num_items - 1) - 1)[:, None]
    starts[:, -1] = num_items
    return starts


def _pick(rows: Ints, num_tokens: int, places: Ints, left_out: Ints, sentinels: Ints, end_id: int) -> Ints:
    """Texts (B, W) of `num_tokens` tokens of `rows` (B, L) in order: sentinel s at places[:, s], where left_out[:, s] tokens
    are skipped; the end token last, so W = num_tokens + S + 1."""
    num_rows, length = rows.shape
    width = num_tokens + places.shape[1] + 1
    # Each token's position in the flattened rows as a running sum: 1 for every token, at a sentinel the skipped tokens.
    source = np.ones((num_rows, width), dtype=np.int64)
    first = np.arange(num_rows)
    flat_places = (places + first[:, None] * width).ravel()
    source.reshape(-1)[flat_places] = left_out.ravel()
    source[:, 0] += first * length - 1
    np.cumsum(source, axis=1, out=source)
    text = np.ravel(rows).take(source, mode="clip")  # the end token's position may lie after the last row
    text.reshape(-1)[flat_places] = np.tile(sentinels, num_rows)
    text[:, -1] = end_id
    return text
