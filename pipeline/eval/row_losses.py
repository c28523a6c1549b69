"""The losses of a model at every scored target token, kept in a run folder's losses.parquet.

Two runs that were scored on the same rows can be compared token by token: by position, by source, and by whether a target's
bigram occurs in the prefix (recall explains most of what attention is ahead, Arora et al. 2023, "Zoology", arXiv:2312.04927).
Tokens of one document are alike, so documents are the clusters of a bootstrap.

Shapes: T scored tokens, C documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.files import atomic_write

LOSSES_FILE = "losses.parquet"
FIRST_TOKENS = 4
FEWEST_DOCUMENTS = 10
"""With fewer clusters a bootstrap says nothing."""
NUM_DRAWS = 2000
_DRAWS_AT_ONCE = 100

Ints = NDArray[np.integer]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, kw_only=True)
class RowLosses:
    """One entry a scored target token (T,), by ascending row and position."""

    row: Ints
    document: Ints
    """The number of the row's document in its split: the cluster."""
    source: NDArray[np.object_]
    """Name of the document's source."""
    position: Ints
    """Place among the targets of its row, from 0."""
    nats: NDArray[np.float32]
    is_text: Bools
    """False at sentinels, end tokens and other marks of an objective."""
    in_prefix: Bools
    """Whether the token before it and it stand side by side in the encoder's text, both as text."""

    def __len__(self) -> int:
        return len(self.nats)

    @property
    def text_loss(self) -> float:
        """Nats per target token of text."""
        return float(self.nats[self.is_text].mean(dtype=np.float64))

    def is_on_rows_of(self, other: RowLosses) -> bool:
        """Whether both were scored on the same tokens."""
        return len(self) == len(other) and all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("row", "document", "position", "is_text", "in_prefix")
        )


@dataclass(frozen=True, kw_only=True)
class LossSlice:
    """The loss on a part of the text targets."""

    kind: str
    """text, place, recall, source or position."""
    name: str
    tokens: int
    text_loss: float


@dataclass(frozen=True)
class PairedDifference:
    """Nats per text target token of the second run minus the first, with the middle 95 % of a bootstrap over documents."""

    value: float
    low: float
    high: float
    num_documents: int


def slices_of(losses: RowLosses) -> Iterator[tuple[str, str, Bools]]:
    """Kind, name and entries (T,) of every slice of the text targets, the whole text first."""
    text = losses.is_text
    yield "text", "all", text
    first = losses.position < FIRST_TOKENS
    yield "place", f"first {FIRST_TOKENS} target tokens", text & first
    yield "place", "later target tokens", text & ~first
    yield "recall", "bigram occurs in the prefix", text & losses.in_prefix
    yield "recall", "bigram does not occur in the prefix", text & ~losses.in_prefix
    for name in sorted(set(losses.source.tolist())):
        yield "source", name, text & (losses.source == name)
    for position in np.unique(losses.position[text]).tolist():
        yield "position", str(position), text & (losses.position == position)


def slice_losses(losses: RowLosses) -> tuple[LossSlice, ...]:
    """The loss on every slice that has a token."""
    return tuple(
        LossSlice(kind=kind, name=name, tokens=int(chosen.sum()), text_loss=float(losses.nats[chosen].mean(dtype=np.float64)))
        for kind, name, chosen in slices_of(losses)
        if chosen.any()
    )


def paired_difference(
    first: RowLosses, second: RowLosses, chosen: Bools, generator: np.random.Generator, num_draws: int = NUM_DRAWS
) -> PairedDifference:
    """The difference of two runs on the same tokens, of which those at `chosen` (T,) count.

    Documents are drawn with replacement, each with all its tokens: the pairs cluster bootstrap of Cameron, Gelbach & Miller
    2008, "Bootstrap-Based Improvements for Inference with Clustered Errors". The interval is that of other text, not of other
    seeds.
    Raises ValueError if the runs were scored on other rows, or with less than 10 documents.
    """
    if not first.is_on_rows_of(second):
        raise ValueError("the two runs were scored on other rows: measure both with the same data and lengths")
    documents, cluster = np.unique(first.document[chosen], return_inverse=True)
    if len(documents) < FEWEST_DOCUMENTS:
        raise ValueError(f"{len(documents)} documents are too few for an interval: score {FEWEST_DOCUMENTS} or more")
    ahead = second.nats[chosen].astype(np.float64) - first.nats[chosen]
    sums, counts = np.bincount(cluster, weights=ahead), np.bincount(cluster).astype(np.float64)  # (C,)
    share = np.full(len(documents), 1 / len(documents))
    means = []
    for start in range(0, num_draws, _DRAWS_AT_ONCE):
        times = generator.multinomial(len(documents), share, min(_DRAWS_AT_ONCE, num_draws - start))
        means.append(times @ sums / (times @ counts))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return PairedDifference(float(sums.sum() / counts.sum()), float(low), float(high), len(documents))


def write_losses(run: Path, losses: RowLosses) -> Path:
    """Write losses.parquet of a run folder, compressed, with four bytes a loss."""
    table = pa.table(
        {
            "row": pa.array(losses.row, pa.int32()),
            "document": pa.array(losses.document, pa.int32()),
            "source": pa.array(losses.source, pa.string()).dictionary_encode(),
            "position": pa.array(losses.position, pa.int16()),
            "nats": pa.array(losses.nats, pa.float32()),
            "is_text": pa.array(losses.is_text),
            "in_prefix": pa.array(losses.in_prefix),
        }
    )
    path = run / LOSSES_FILE
    with atomic_write(path) as file:
        pq.write_table(table, file, compression="zstd")
    return path


def read_losses(run: Path) -> RowLosses | None:
    """The losses of a run folder; None if they were not kept. Raises ValueError for a damaged file."""
    path = run / LOSSES_FILE
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
        columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in RowLosses.__dataclass_fields__}
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}): delete it and measure the run again") from error
    return RowLosses(**columns)
