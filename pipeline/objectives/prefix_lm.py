"""Prefix language modelling with a fixed split: the encoder reads a row's first N tokens, the decoder writes the next M.

(Raffel et al. 2020, section 3.2.1, with a constant split point, so that every shape is constant.)
Shapes: B rows, N encoder length, M decoder length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Rows as a model takes them, all int64. Padding has mask 0; its ids are 0 and never read."""

    encoder_ids: Ints  # (B, N)
    encoder_mask: Ints  # (B, N)
    decoder_ids: Ints  # (B, M), the targets shifted right behind the start token
    targets: Ints  # (B, M)
    target_mask: Ints  # (B, M), 1 where the loss is taken


@dataclass(frozen=True)
class PrefixLM:
    encoder_length: int
    decoder_length: int
    start_id: int

    @property
    def row_length(self) -> int:
        """Raw tokens that one row spends."""
        return self.encoder_length + self.decoder_length

    def num_targets(self, row_lengths: Ints) -> Ints:
        """Target tokens of rows that hold so many tokens: known without reading them."""
        return np.clip(row_lengths - self.encoder_length, 0, self.decoder_length)

    def __call__(self, rows: Ints, row_lengths: Ints) -> Batch:
        """rows (B, N + M) padded at their end, row_lengths (B,)."""
        n = self.encoder_length
        positions = np.arange(self.row_length)
        mask = (positions < row_lengths[:, None]).astype(np.int64)
        rows = rows * mask
        targets = rows[:, n:]
        decoder_ids = np.empty_like(targets)
        decoder_ids[:, 0] = self.start_id
        decoder_ids[:, 1:] = targets[:, :-1]
        return Batch(rows[:, :n], mask[:, :n], decoder_ids, targets, mask[:, n:])
