"""Suffix bits per byte: the loss on the same suffixes given the same prefixes, for all objectives and architectures.

An encoder-decoder reads the prefix with its encoder, a decoder alone reads it as the start of its text. Both are scored on the
suffix only, on exactly the same bytes. Every result holds a digest of the text that was scored, so results on different text
can be told apart. Losses of different objectives are not comparable; suffix bits per byte are. A run folder keeps its result
in suffix_bpb.json.

Shapes: B rows, M target positions.
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
"""Negative log-likelihood in nats of every target position (B, M) of a batch. Positions without a loss may hold anything."""

SUFFIX_BPB_FILE = "suffix_bpb.json"
_EARLIER_FILE = "yardstick.json"  # its name in earlier versions
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Score:
    """A model's result on one set of rows."""

    nll: float
    """Negative log-likelihood of all target tokens together, in nats."""
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
    """The objective that splits rows into prefix and suffix for an architecture. An encoder pads the prefix to its own length.

    All lengths are in tokens. Raises ValueError for an encoder alone, which writes no text, and for a prefix longer than
    `encoder_length`.
    """
    form = form_of(architecture)
    if form == "encoder_only":
        raise ValueError(f"model.architecture {architecture} writes no text: bits per byte of a suffix are not defined for it")
    row_length = prefix_length + suffix_length
    if form == "decoder_only":
        pair = PrefixLM(
            encoder_length=prefix_length,
            decoder_length=suffix_length,
            start_id=start_id,
            prefix_lengths=(prefix_length,),
            row_length=row_length,
        )
        return DecoderOnlyAdapter(pair, start_id, bidirectional_prefix=architecture == "prefix_decoder")
    if prefix_length > encoder_length:
        raise ValueError(f"a prefix of {prefix_length} tokens exceeds data.encoder_length {encoder_length}: shorten the prefix")
    return PrefixLM(
        encoder_length=encoder_length,
        decoder_length=suffix_length,
        start_id=start_id,
        prefix_lengths=(prefix_length,),
        row_length=row_length,
    )


def score(
    sets: Mapping[str, RowSource], objective: Objective, nll: Nll, byte_lengths: NDArray[np.integer], batch_size: int
) -> dict[str, Score]:
    """The score of every set. byte_lengths (ids,): UTF-8 bytes of each token. Rows too short to have a suffix are ignored."""
    return {name: _score_rows(rows, objective, nll, byte_lengths, batch_size) for name, rows in sets.items()}


def overall(scores: Mapping[str, Score]) -> Score:
    """All sets as one: each source counts by its bytes."""
    digests = "".join(f"{name}:{scores[name].text_sha256};" for name in sorted(scores))
    return Score(
        nll=math.fsum(one.nll for one in scores.values()),
        target_tokens=sum(one.target_tokens for one in scores.values()),
        target_bytes=sum(one.target_bytes for one in scores.values()),
        text_sha256=hashlib.sha256(digests.encode()).hexdigest(),
    )


def _score_rows(rows: RowSource, objective: Objective, nll: Nll, byte_lengths: NDArray[np.integer], batch_size: int) -> Score:
    digest = hashlib.sha256()
    total, num_tokens, num_bytes = 0.0, 0, 0
    for chosen in _batches(len(rows), batch_size):
        tokens, lengths = rows.read(chosen)
        batch = objective(tokens, lengths, chosen)
        targets, mask = batch.losses[0]
        taken = mask.astype(bool)
        total += float(nll(batch)[taken].sum(dtype=np.float64))
        num_tokens += int(taken.sum())
        num_bytes += int(byte_lengths[targets[taken]].sum())
        # Row by row, so that batch_size changes nothing: number of tokens, number of scored tokens, and the tokens.
        digest.update(np.column_stack([lengths, mask.sum(1), tokens]).astype("<i8").tobytes())
    if not num_bytes:
        raise ValueError(f"no row of the set holds text after a prefix: prepare documents longer than {rows.row_length} tokens")
    return Score(nll=total, target_tokens=num_tokens, target_bytes=num_bytes, text_sha256=digest.hexdigest())


def _batches(num_rows: int, batch_size: int) -> Iterator[NDArray[np.int64]]:
    for first in range(0, num_rows, batch_size):
        yield np.arange(first, min(first + batch_size, num_rows), dtype=np.int64)


def write_suffix_bpb(run_folder: Path, prefix: int, suffix: int, scores: dict[str, Score]) -> None:
    """Keep what a finished run scores on each source and on all together, beside its checkpoints.

    `prefix` and `suffix` are in tokens.
    """
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


def suffix_bpb_file(run_folder: Path) -> Path | None:
    """The file with a run's scores, also under the name that earlier versions gave it; None if there is none."""
    return next((run_folder / name for name in (SUFFIX_BPB_FILE, _EARLIER_FILE) if (run_folder / name).is_file()), None)


def read_suffix_bpb(run_folder: Path) -> dict[str, dict[str, float | str]]:
    """The scores by source, and of all sources as `all`. Raises FileNotFoundError for a run that was not evaluated."""
    path = suffix_bpb_file(run_folder)
    if path is None:
        raise FileNotFoundError(f"{run_folder / SUFFIX_BPB_FILE} is missing: `fnet-t5 scaling measure {run_folder}` writes it")
    found: dict[str, dict[str, float | str]] = json.loads(path.read_bytes())["sources"]
    return found
