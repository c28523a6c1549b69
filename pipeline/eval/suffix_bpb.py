"""The one measure that objectives and architectures share: bits per byte of the same suffixes given the same prefixes.

An encoder-decoder reads the prefix with its encoder, a decoder alone reads it as the start of its text; both are scored on the
suffix only, on exactly the same bytes. A digest of the text that was scored goes with every result, so that a comparison of
results on different text can be refused. Losses of different objectives are not comparable; this is.

Shapes: B rows, M target places.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.files import write_json_atomically
from pipeline.data.rows import RowSource
from pipeline.objectives.catalogue import form_of
from pipeline.objectives.causal_lm import DecoderOnlyAdapter
from pipeline.objectives.interface import AnyBatch, Objective
from pipeline.objectives.prefix_lm import PrefixLM

Nll = Callable[[AnyBatch], NDArray[np.floating]]
"""Negative log-likelihood in nats of every target place (B, M) of a batch; what it says where no loss is taken is not read."""


@dataclass(frozen=True)
class Score:
    """A model's result on one set of rows."""

    nll: float
    """Nats, of all target tokens together."""
    target_tokens: int
    target_bytes: int
    text_sha256: str
    """Of every prefix and suffix: results with equal digests were measured on the same text."""

    @property
    def loss(self) -> float:
        """Nats per target token."""
        return self.nll / self.target_tokens

    @property
    def bits_per_byte(self) -> float:
        """Over the UTF-8 bytes of the suffixes."""
        return self.nll / math.log(2) / self.target_bytes


def suffix_bpb_objective(
    architecture: str, encoder_length: int, prefix_length: int, suffix_length: int, start_id: int
) -> Objective:
    """Rows of prefix and suffix as the architecture reads them; an encoder pads the prefix to its own length.

    Raises ValueError for an encoder alone, which writes no text, and for a prefix that the encoder cannot hold.
    """
    form = form_of(architecture)
    if form == "encoder_only":
        raise ValueError(f"model.architecture {architecture} writes no text: bits per byte of a suffix are not defined for it")
    row_length = prefix_length + suffix_length
    if form == "decoder_only":
        pair = PrefixLM(prefix_length, suffix_length, start_id, (prefix_length,), row_length)
        return DecoderOnlyAdapter(pair, start_id, bidirectional_prefix=architecture == "prefix_decoder")
    if prefix_length > encoder_length:
        raise ValueError(f"a prefix of {prefix_length} tokens exceeds data.encoder_length {encoder_length}: shorten the prefix")
    return PrefixLM(encoder_length, suffix_length, start_id, (prefix_length,), row_length)


def score(
    sets: Mapping[str, RowSource], objective: Objective, nll: Nll, byte_lengths: NDArray[np.integer], batch_size: int
) -> dict[str, Score]:
    """Measure every set. byte_lengths (ids,): UTF-8 bytes of each token. Rows too short to have a suffix count for nothing."""
    return {name: _score_rows(rows, objective, nll, byte_lengths, batch_size) for name, rows in sets.items()}


def overall(scores: Mapping[str, Score]) -> Score:
    """All sets as one: sources weigh by their bytes."""
    digests = "".join(f"{name}:{scores[name].text_sha256};" for name in sorted(scores))
    return Score(
        math.fsum(one.nll for one in scores.values()),
        sum(one.target_tokens for one in scores.values()),
        sum(one.target_bytes for one in scores.values()),
        hashlib.sha256(digests.encode()).hexdigest(),
    )


def _score_rows(rows: RowSource, objective: Objective, nll: Nll, byte_lengths: NDArray[np.integer], batch_size: int) -> Score:
    digest = hashlib.sha256()
    total, num_tokens, num_bytes = 0.0, 0, 0
    for chosen in _portions(len(rows), batch_size):
        tokens, lengths = rows.read(chosen)
        batch = objective(tokens, lengths, chosen)
        targets, mask = batch.losses[0]
        taken = mask.astype(bool)
        total += float(nll(batch)[taken].sum(dtype=np.float64))
        num_tokens += int(taken.sum())
        num_bytes += int(byte_lengths[targets[taken]].sum())
        # Row by row, so that the portions leave no trace: how many tokens, how many of them are scored, and which they are.
        digest.update(np.column_stack([lengths, mask.sum(1), tokens]).astype("<i8").tobytes())
    if not num_bytes:
        raise ValueError(
            f"no row of the set holds text behind a prefix: prepare longer documents than {rows.row_length} tokens"
        )
    return Score(total, num_tokens, num_bytes, digest.hexdigest())


def _portions(num_rows: int, batch_size: int) -> Iterator[NDArray[np.int64]]:
    for first in range(0, num_rows, batch_size):
        yield np.arange(first, min(first + batch_size, num_rows), dtype=np.int64)


SUFFIX_BPB_FILE = "yardstick.json"
ALL = "all"


def write_suffix_bpb(run_folder: Path, prefix: int, suffix: int, scores: dict[str, Score]) -> None:
    """Keep what a finished run scores on each source and on all together, beside its checkpoints."""
    parts = {**scores, ALL: overall(scores)}
    values = {
        name: {
            "bits_per_byte": one.bits_per_byte,
            "nll": one.nll,
            "target_tokens": one.target_tokens,
            "target_bytes": one.target_bytes,
            "text_sha256": one.text_sha256,
        }
        for name, one in parts.items()
    }
    write_json_atomically(run_folder / SUFFIX_BPB_FILE, {"prefix": prefix, "suffix": suffix, "sources": values})


def read_suffix_bpb(run_folder: Path) -> dict[str, dict[str, float | str]]:
    """By source, and `all`. Raises FileNotFoundError where the run was not measured."""
    found: dict[str, dict[str, float | str]] = json.loads((run_folder / SUFFIX_BPB_FILE).read_bytes())["sources"]
    return found
