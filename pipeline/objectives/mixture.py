"""Objectives mixed by weight: each sample draws one, which a mode token before the encoder's text may name.

All parts read rows of one length, the longest that fits every part, so one row index serves them all and an epoch still visits
every token once. A sample's part is drawn by its index and not taken in turns: in turns, two folders blended half and half
with two objectives would form fixed pairs.

Shapes: B rows, N encoder length, M decoder length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.objectives.counter_rng import CounterRNG
from pipeline.objectives.interface import Batch, Cost, Ints, Objective, ObjectiveConfig


@dataclass(frozen=True)
class Part:
    """One objective of a mixture, on the mixture's rows and its lengths less the position of the mode token."""

    objective: Objective
    share: float
    mode_id: int | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Mixture(Objective):
    parts: tuple[Part, ...]
    encoder_length: int
    decoder_length: int
    seed: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "row_length", self.parts[0].objective.row_length)

    @property
    def cost(self) -> Cost:
        target = sum(part.share * part.objective.cost.target for part in self.parts)
        return Cost(raw=self.row_length, encoder=self.encoder_length, decoder=self.decoder_length, target=target)

    def part_of(self, samples: Ints) -> Ints:
        """(B,) the number of the part that each sample draws."""
        bounds = np.cumsum([part.share for part in self.parts])
        return np.searchsorted(bounds[:-1], CounterRNG(self.seed, "mixture", samples).uniform(1)[:, 0], side="right")

    def num_targets(self, row_lengths: Ints, samples: Ints) -> Ints:
        counts = np.zeros_like(row_lengths)
        drawn = self.part_of(samples)
        for number, part in enumerate(self.parts):
            chosen = np.flatnonzero(drawn == number)
            counts[chosen] = part.objective.num_targets(row_lengths[chosen], samples[chosen])
        return counts

    def __call__(self, rows: Ints, row_lengths: Ints, samples: Ints) -> Batch:
        encoder_ids, encoder_mask = np.zeros((2, len(rows), self.encoder_length), dtype=np.int64)
        decoder_ids, targets, target_mask = np.zeros((3, len(rows), self.decoder_length), dtype=np.int64)
        drawn = self.part_of(samples)
        for number, part in enumerate(self.parts):
            chosen = np.flatnonzero(drawn == number)
            if not len(chosen):
                continue
            batch = part.objective(rows[chosen], row_lengths[chosen], samples[chosen])
            assert isinstance(batch, Batch)
            first = 0 if part.mode_id is None else 1
            encoder_ids[chosen, first:], encoder_mask[chosen, first:] = batch.encoder_ids, batch.encoder_mask
            if part.mode_id is not None:
                encoder_mask[chosen, 0] = row_lengths[chosen] > 0
                encoder_ids[chosen, 0] = part.mode_id * encoder_mask[chosen, 0]
            decoder_ids[chosen], targets[chosen] = batch.decoder_ids, batch.targets
            target_mask[chosen] = batch.target_mask
        return Batch(
            encoder_ids=encoder_ids,
            encoder_mask=encoder_mask,
            decoder_ids=decoder_ids,
            targets=targets,
            target_mask=target_mask,
        )


@dataclass(frozen=True)
class PartConfig:
    """The settings of a part that `shared_row_length` needs."""

    config: ObjectiveConfig
    has_mode: bool = False


def shared_row_length(parts: Sequence[PartConfig], encoder_length: int, decoder_length: int) -> int:
    """The length in tokens of the longest rows that fit every part."""
    return min(part.config.row_length(encoder_length - part.has_mode, decoder_length) for part in parts)


def shares_of(weights: Sequence[float]) -> list[float]:
    """Weights scaled to add up to 1."""
    total = sum(weights)
    return [weight / total for weight in weights]
