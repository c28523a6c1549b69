"""Packing: documents to rows of one length. The result is an index of the spans of the token stream that form each row.

`best_fit` cuts documents into full rows and places the remainders by best-fit decreasing: almost no padding, and a document
that fits a row is not cut (arXiv 2404.10830, "Fewer Truncations Improve Language Modeling"). `concatenate` cuts the token
stream after every `row_length` tokens. `document` puts every document into separate rows. A piece is a span of one document
in one row; every token is in exactly one piece.
"""

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.config import PackingMethod
from data_prep.dataset.indexed_dataset import sequence_offsets

IntArray = npt.NDArray[np.integer[Any]]

_HEADER = 3
_PLACED_AT_ONCE = 1 << 20


class PackingError(ValueError):
    """A row index that is damaged, missing or impossible."""


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """The rows of one split at one length: R rows and P pieces. Row r has the pieces first_piece[r] to first_piece[r + 1] - 1.

    On disk it is one flat int64 array, so that all loader workers share one memory map:
    `[R, P, row_length, first_piece[R + 1], start[P], length[P]]`, starts and lengths in tokens of the split's `.bin`.
    """

    row_length: int
    first_piece: npt.NDArray[np.int64]  # (R + 1,)
    start: npt.NDArray[np.int64]  # (P,)
    length: npt.NDArray[np.int64]  # (P,)

    @property
    def num_rows(self) -> int:
        return len(self.first_piece) - 1

    @property
    def num_pieces(self) -> int:
        return len(self.start)

    @property
    def padding_share(self) -> float:
        """The share of the R · row_length positions without a token."""
        positions = self.num_rows * self.row_length
        return 1 - int(self.length.sum()) / positions if positions else 0.0

    def num_cut(self, lengths: IntArray, first_token: int = 0) -> int:
        """How many documents are in more than one piece. `lengths` (documents,) are those that these rows were packed from."""
        starts = sequence_offsets(lengths, first_token)
        document = np.searchsorted(starts, self.start, side="right") - 1
        return int((np.bincount(document, minlength=len(lengths)) > 1).sum())

    def pieces(self, row: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Starts and lengths (in tokens) of the pieces of `row`, in the order of the corpus: int64 (pieces,) each."""
        span = slice(self.first_piece[row], self.first_piece[row + 1])
        return self.start[span], self.length[span]

    def lengths_of(self, rows: IntArray) -> npt.NDArray[np.int64]:
        """Tokens in each of `rows`, padding not counted: int64 (B,). Reads only the pieces of these rows."""
        rows = np.asarray(rows, dtype=np.int64)
        first = self.first_piece[rows]
        num_pieces = self.first_piece[rows + 1] - first  # (B,)
        piece = np.repeat(first - sequence_offsets(num_pieces), num_pieces) + np.arange(num_pieces.sum())
        lengths = np.zeros(len(rows), dtype=np.int64)
        np.add.at(lengths, np.repeat(np.arange(len(rows)), num_pieces), self.length[piece])
        return lengths

    @classmethod
    def load(cls, path: Path | str) -> "PackedRows":
        """Memory-map an index; only its header is read. Raises PackingError for a missing or damaged file."""
        try:
            flat = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise PackingError(f"{path}: no readable row index ({error}); make one with `fnet-t5 data pack`") from error
        if flat.dtype != np.int64 or flat.ndim != 1 or len(flat) <= _HEADER:
            raise PackingError(f"{path}: {flat.dtype}{flat.shape} is not a flat int64 row index; pack again")
        num_rows, num_pieces, row_length = (int(value) for value in flat[:_HEADER])
        expected = _HEADER + num_rows + 1 + 2 * num_pieces
        if len(flat) != expected or min(num_rows, num_pieces) < 0 or row_length < 1:
            raise PackingError(
                f"{path}: {len(flat)} values, but {num_rows} rows and {num_pieces} pieces take {expected}; pack again"
            )
        first_piece, start, length = np.split(flat[_HEADER:], [num_rows + 1, num_rows + 1 + num_pieces])
        return cls(row_length=row_length, first_piece=first_piece, start=start, length=length)


def rows_file(split: str, row_length: int) -> str:
    """The file name of a row index in a dataset folder."""
    return f"{split}.rows_{row_length}.npy"


def pack(lengths: IntArray, row_length: int, method: PackingMethod = "best_fit", first_token: int = 0) -> PackedRows:
    """Pack documents of `lengths` tokens, stored one after another from `first_token` on, into rows of `row_length` tokens.

    Pieces in a row, and rows by their first piece, are in corpus order; the same lengths give the same rows. Needs about
    100 bytes of memory per piece; `row_index` packs large corpora in parts. Raises PackingError for a `row_length` below 1.
    """
    if row_length < 1:
        raise PackingError(f"row length {row_length} has no token; it must be at least 1")
    documents: npt.NDArray[np.int64] = np.asarray(lengths, dtype=np.int64)
    starts = sequence_offsets(documents, first_token)
    if method == "concatenate":
        start, length = _cut(starts, documents, row_length, phase=starts % row_length)
        row = start // row_length
    elif method == "document":
        start, length = _cut(starts, documents, row_length, phase=np.zeros_like(starts))
        row = np.arange(len(start))
    else:
        start, length = _cut(starts, documents, row_length, phase=np.zeros_like(starts))
        row = _best_fit_decreasing(length, row_length)
    return _in_corpus_order(row, start, length, row_length)


def _cut(
    starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], row_length: int, phase: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cut each document at every offset where (offset in the document + phase) is a multiple of the row length."""
    num_pieces = np.where(lengths > 0, -(-(phase + lengths) // row_length), 0)
    number = np.arange(num_pieces.sum()) - np.repeat(sequence_offsets(num_pieces), num_pieces)
    origin = np.repeat(starts - phase, num_pieces) + number * row_length
    start = np.maximum(origin, np.repeat(starts, num_pieces))
    end = np.minimum(origin + row_length, np.repeat(starts + lengths, num_pieces))
    return start, end - start


def _best_fit_decreasing(length: npt.NDArray[np.int64], row_length: int) -> npt.NDArray[np.int64]:
    """The row of each piece: longest first, each into the fullest row that has space for it, else into a new row.

    There is one stack of rows per free space. Bit s of the integer `spaces` is set if stack s is not empty, so the smallest
    free space >= x is given by the lowest set bit of `spaces >> x`.
    """
    row = np.empty(len(length), dtype=np.int64)
    order = np.argsort(-length, kind="stable")
    num_full = int((length == row_length).sum())
    row[order[:num_full]] = np.arange(num_full)
    num_rows = num_full
    stacks = [array("q") for _ in range(row_length)]
    spaces = 0
    for begin in range(num_full, len(order), _PLACED_AT_ONCE):
        batch = order[begin : begin + _PLACED_AT_ONCE]
        placed = array("q")
        for x in length[batch].tolist():
            fitting = spaces >> x
            if fitting:
                space = x + (fitting & -fitting).bit_length() - 1
                stack = stacks[space]
                chosen = stack.pop()
                if not stack:
                    spaces ^= 1 << space
                space -= x
            else:
                chosen = num_rows
                num_rows += 1
                space = row_length - x
            if space:
                stacks[space].append(chosen)
                spaces |= 1 << space
            placed.append(chosen)
        row[batch] = placed
    return row


def _in_corpus_order(
    row: npt.NDArray[np.int64], start: npt.NDArray[np.int64], length: npt.NDArray[np.int64], row_length: int
) -> PackedRows:
    # Pieces are in corpus order, so the first occurrence of a row is its first piece.
    _, first_occurrence, row, count = np.unique(row, return_index=True, return_inverse=True, return_counts=True)
    by_first = np.argsort(first_occurrence)
    rank = np.empty_like(by_first)
    rank[by_first] = np.arange(len(by_first))
    order = np.argsort(rank[row], kind="stable")
    first_piece = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(count[by_first], dtype=np.int64)])
    return PackedRows(row_length=row_length, first_piece=first_piece, start=start[order], length=length[order])
