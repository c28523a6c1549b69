"""Held-out rows that all arms of a comparison are scored on, and the losses of a model on them with other encoder inputs.

Every row lies inside one document. Rows are batches of an encoder-decoder; a decoder alone takes the same rows in its form,
and is scored on the same targets. Losses here are nats per target token of text: sentinels, end tokens and other marks that an
objective adds do not count.

Shapes: R rows, L tokens of a row, B rows of a batch, N encoder length, M decoder length, T scored tokens, V ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.dataset.indexed_dataset import TokenFile, sequence_offsets
from pipeline.config import DataConfig
from pipeline.data.rows import ChosenRows
from pipeline.eval.floors import Pairs, join, target_contexts
from pipeline.eval.input_probes import Change as EncoderChange
from pipeline.eval.input_probes import Swap, changes
from pipeline.eval.row_losses import RowLosses
from pipeline.eval.suffix_bpb import Nll
from pipeline.objectives.causal_lm import DecoderOnlyAdapter
from pipeline.objectives.interface import AnyBatch, Batch, Ints, Objective

Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]
Change = Callable[[int, Batch], tuple[Ints, Ints]]
"""Other encoder ids and mask (B, N) for the batch whose first row has this number."""


@dataclass(frozen=True, kw_only=True)
class ProbeLosses:
    """Nats per text target token with other encoder inputs (`input_probes`)."""

    swapped_loss: float
    """The encoder reads another row."""
    shuffled_loss: float
    """The text tokens of each row in random order."""
    far_half_shuffled_loss: float
    """The first half of each row's text tokens in random order."""
    no_input_loss: float
    """The encoder reads one end token."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoredRows:
    """The rows as batches in both forms, and what each scored token is."""

    pairs: tuple[Batch, ...]
    """As an encoder-decoder takes them."""
    own: tuple[AnyBatch, ...]
    """As the model takes them: the same, or those of a decoder alone."""
    is_text_id: Bools
    """(V,)"""
    sources: tuple[str, ...]
    source_of_row: Ints
    """(R,) index into `sources`."""
    document_of_row: Ints
    """(R,)"""

    @property
    def sha256(self) -> str:
        """Of everything that the encoder reads and the decoder must write, without padding."""
        digest = hashlib.sha256()
        for ids, mask in (("encoder_ids", "encoder_mask"), ("targets", "target_mask")):
            taken = [getattr(batch, mask) > 0 for batch in self.pairs]
            texts = [getattr(batch, ids)[chosen] for batch, chosen in zip(self.pairs, taken, strict=True)]
            for part in (np.concatenate([chosen.sum(1) for chosen in taken]), np.concatenate(texts)):
                digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()

    def is_text(self, batch: Batch) -> Bools:
        """(B, M) true at the targets that are text."""
        return self.is_text_id[batch.targets] & (batch.target_mask > 0)

    def contexts(self, follows_prefix: bool) -> Pairs:
        """Contexts and targets of all text targets, for n-gram tables."""
        return join(
            target_contexts("encoder_decoder", batch.inputs, batch.targets, self.is_text(batch), follows_prefix)
            for batch in self.pairs
        )

    def losses(self, nats: Floats, follows_prefix: bool) -> RowLosses:
        """The table of losses, from the nats (T,) of all targets in order."""
        first, rows, positions, text, recalled = 0, [], [], [], []
        for batch in self.pairs:
            taken = batch.target_mask > 0
            row, _ = np.nonzero(taken)
            rows.append(row + first)
            positions.append((taken.cumsum(1) - 1)[taken])
            text.append(self.is_text(batch)[taken])
            recalled.append(bigram_in_prefix(batch, self.is_text_id, follows_prefix)[taken])
            first += len(batch.targets)
        row = np.concatenate(rows)
        return RowLosses(
            row=row.astype(np.int32),
            document=self.document_of_row[row].astype(np.int32),
            source=np.array(self.sources, dtype=object)[self.source_of_row[row]],
            position=np.concatenate(positions).astype(np.int16),
            nats=nats.astype(np.float32),
            is_text=np.concatenate(text),
            in_prefix=np.concatenate(recalled),
        )


def scored_rows(
    sets: Mapping[str, ChosenRows], data: DataConfig, split: str, objective: Objective, is_text_id: Bools, batch_size: int
) -> ScoredRows:
    """The rows of evaluation sets, numbered one set after the other. `objective` is of an encoder-decoder, or its adapter."""
    pair = objective.pair if isinstance(objective, DecoderOnlyAdapter) else objective
    read = [rows.read(np.arange(len(rows), dtype=np.int64)) for rows in sets.values()]
    tokens, lengths = np.concatenate([ids for ids, _ in read]), np.concatenate([sizes for _, sizes in read])
    starts = np.concatenate([rows.packed.start for rows in sets.values()])
    offsets = sequence_offsets(TokenFile(data.path / split).lengths)
    parts = [slice(first, first + batch_size) for first in range(0, len(tokens), batch_size)]
    samples = np.arange(len(tokens), dtype=np.int64)

    def batches(of: Objective) -> Iterator[AnyBatch]:
        return (of(tokens[part], lengths[part], samples[part]) for part in parts)

    pairs = tuple(batch for batch in batches(pair) if isinstance(batch, Batch))
    return ScoredRows(
        pairs=pairs,
        own=pairs if pair is objective else tuple(batches(objective)),
        is_text_id=is_text_id,
        sources=tuple(sets),
        source_of_row=np.repeat(np.arange(len(sets)), [len(rows) for rows in sets.values()]),
        document_of_row=np.searchsorted(offsets, starts, side="right") - 1,
    )


def bigram_in_prefix(batch: Batch, is_text_id: Bools, follows_prefix: bool) -> Bools:
    """(B, M) true where a target and the token before it, both text, stand side by side in the encoder's input.

    The token before the first target is the last of the prefix if the decoder's text continues it, else there is none.
    """
    ids, mask, targets = batch.encoder_ids, batch.encoder_mask > 0, batch.targets
    before = np.full_like(targets, -1)
    before[:, 1:] = targets[:, :-1]
    if follows_prefix:
        last = np.maximum(mask.sum(1) - 1, 0)
        before[:, 0] = ids[np.arange(len(ids)), last]
    num_ids = len(is_text_id)
    text = is_text_id[ids] & mask
    in_input = np.where(text[:, :-1] & text[:, 1:], ids[:, :-1] * num_ids + ids[:, 1:], -1)  # (B, N - 1)
    is_pair = (before >= 0) & is_text_id[before] & is_text_id[targets] & (batch.target_mask > 0)
    wanted = np.where(is_pair, before * num_ids + targets, -2)  # (B, M)
    return np.stack([np.isin(row, known) for row, known in zip(wanted, in_input, strict=True)])


def target_nats(batches: Sequence[AnyBatch], nll: Nll) -> Floats:
    """The loss (T,) of every target of the batches, by row and position."""
    return np.concatenate([nll(batch)[batch.losses[0][1] > 0] for batch in batches])


def probe_losses(rows: ScoredRows, nll: Nll, end: int) -> ProbeLosses:
    """The losses of an encoder-decoder with other encoder inputs. `end` is the id of the end token."""
    batches = [(tuple(torch.from_numpy(part) for part in batch.inputs), ()) for batch in rows.pairs]
    swap = Swap(batches)

    def swapped(first: int, batch: Batch) -> tuple[Ints, Ints]:
        index = first // len(rows.pairs[0].targets)
        ids, mask, *_ = swap(index, batches[index][0])
        return ids.numpy(), mask.numpy()

    def loss(change: EncoderChange) -> float:
        def changed(first: int, batch: Batch) -> tuple[Ints, Ints]:
            ids, mask = change(first, torch.from_numpy(batch.encoder_ids), torch.from_numpy(batch.encoder_mask))
            return ids.numpy(), mask.numpy()

        return _text_loss(rows, nll, changed)

    others = {name: loss(change) for name, change in changes(rows.is_text_id, end).items()}
    return ProbeLosses(swapped_loss=_text_loss(rows, nll, swapped), **others)


def _text_loss(rows: ScoredRows, nll: Nll, change: Change) -> float:
    total, count, first = 0.0, 0, 0
    for batch in rows.pairs:
        ids, mask = change(first, batch)
        changed = Batch(
            encoder_ids=ids,
            encoder_mask=mask,
            decoder_ids=batch.decoder_ids,
            targets=batch.targets,
            target_mask=batch.target_mask,
        )
        chosen = rows.is_text(batch)
        total += float(nll(changed)[chosen].sum(dtype=np.float64))
        count += int(chosen.sum())
        first += len(batch.targets)
    return total / count
