"""Rows of raw tokens, read by mmap: packed rows of a dataset folder, its token stream cut into rows, or several folders as one.

Only the manifest and the headers are read at the start, so a folder of 10^9 tokens opens in milliseconds. Files are read
through the page cache and never written.

Shapes: B rows, L tokens of a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.dataset.indexed_dataset import TokenFileError, sequence_offsets
from data_prep.dataset.manifest import Manifest, load_manifest
from data_prep.dataset.packing import PackedRows, rows_file
from data_prep.files import canonical_json, sha256_bytes

Ints = NDArray[np.int64]

NO_ROW = -1  # an empty row, with weight 0: fills the last micro-batch of a validation set


class RowSource(ABC):
    """Rows 0 … len - 1. `fingerprint` is a hash of everything that they depend on."""

    row_length: int
    fingerprint: str

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Tokens of all rows together."""

    @abstractmethod
    def lengths(self, rows: Ints) -> Ints:
        """Tokens in each row (B,) int64; 0 for NO_ROW."""

    @abstractmethod
    def read(self, rows: Ints) -> tuple[Ints, Ints]:
        """Token ids (B, row_length) padded with 0 at their end, and the lengths (B,); both int64."""


class Rows(RowSource):
    """The packed rows of one split of a dataset folder."""

    def __init__(self, folder: Path, split: str, row_length: int, manifest: Manifest | None = None) -> None:
        self.tokens, manifest = open_tokens(folder, split, manifest)
        index = folder / rows_file(split, row_length)
        if not index.is_file():
            made = sorted(path.stem.rpartition("_")[2] for path in folder.glob(f"{split}.rows_*.npy"))
            raise ValueError(
                f"{folder} has no {split} rows of {row_length} tokens (data.objective at data.encoder_length and "
                f"data.decoder_length); it has {', '.join(made) or 'none'}: make them with "
                f"`fnet-t5 data pack {folder} {row_length}`, prepare with packing.lengths=[{row_length}], change the "
                "lengths, or set data.layout=stream"
            )
        check_size(folder, manifest, index.name)
        self.packed = PackedRows.load(index)
        self.row_length, self.fingerprint = row_length, manifest.fingerprint(row_length)

    def __len__(self) -> int:
        return int(self.packed.num_rows)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)  # every token is in exactly one row

    def lengths(self, rows: Ints) -> Ints:
        return np.where(rows == NO_ROW, 0, self.packed.lengths_of(np.maximum(rows, 0)))

    def read(self, rows: Ints) -> tuple[Ints, Ints]:
        return read_packed(self.packed, self.tokens, rows)


class StreamRows(RowSource):
    """One split as a single stream of tokens, cut every L tokens: row r has tokens rL to (r + 1)L, the last row the rest.

    Like Megatron's GPT data set, but there samples overlap by a token and the last, short one is dropped. Here every token is
    in exactly one row. Needs no row index.
    """

    def __init__(self, folder: Path, split: str, row_length: int, manifest: Manifest | None = None) -> None:
        self.tokens, manifest = open_tokens(folder, split, manifest)
        self.row_length = row_length
        self.fingerprint = sha256_bytes(canonical_json({"stream": row_length, "tokens": stream_fingerprint(manifest)}))

    def __len__(self) -> int:
        return -(-len(self.tokens) // self.row_length)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def lengths(self, rows: Ints) -> Ints:
        return np.where(rows == NO_ROW, 0, np.clip(len(self.tokens) - rows * self.row_length, 0, self.row_length))

    def read(self, rows: Ints) -> tuple[Ints, Ints]:
        places = np.maximum(rows, 0)[:, None] * self.row_length + np.arange(self.row_length)
        tokens = self.tokens[np.minimum(places, max(len(self.tokens) - 1, 0))].astype(np.int64)
        lengths = self.lengths(rows)
        if (lengths != self.row_length).any():
            tokens *= np.arange(self.row_length) < lengths[:, None]
        return tokens, lengths


class JoinedRows(RowSource):
    """The rows of several sources, numbered one source after the other."""

    def __init__(self, sources: Sequence[RowSource]) -> None:
        lengths = {source.row_length for source in sources}
        if len(lengths) != 1:
            raise ValueError(f"rows of different lengths cannot be joined: {sorted(lengths)}; read all folders with one")
        self.sources = tuple(sources)
        self.row_length = lengths.pop()
        self.first_row = np.concatenate([[0], np.cumsum([len(source) for source in sources])]).astype(np.int64)
        self.fingerprint = sha256_bytes(canonical_json([source.fingerprint for source in sources]))

    def __len__(self) -> int:
        return int(self.first_row[-1])

    @property
    def num_tokens(self) -> int:
        return sum(source.num_tokens for source in self.sources)

    def lengths(self, rows: Ints) -> Ints:
        result = np.zeros(len(rows), dtype=np.int64)
        for source, places, local in self._by_source(rows):
            result[places] = source.lengths(local)
        return result

    def read(self, rows: Ints) -> tuple[Ints, Ints]:
        tokens = np.zeros((len(rows), self.row_length), dtype=np.int64)
        lengths = np.zeros(len(rows), dtype=np.int64)
        for source, places, local in self._by_source(rows):
            tokens[places], lengths[places] = source.read(local)
        return tokens, lengths

    def _by_source(self, rows: Ints) -> list[tuple[RowSource, Ints, Ints]]:
        """For each source: the source, the positions of its rows in `rows`, and their numbers in it. NO_ROW belongs to none."""
        number = np.searchsorted(self.first_row, rows, side="right") - 1
        found = []
        for index, source in enumerate(self.sources):
            places = np.flatnonzero(number == index)
            if len(places):
                found.append((source, places, rows[places] - self.first_row[index]))
        return found


class ChosenRows(RowSource):
    """Chosen pieces of a split, each one a row: for evaluation sets."""

    def __init__(self, tokens: NDArray[Any], starts: Ints, lengths: Ints, row_length: int, fingerprint: str) -> None:
        number = np.arange(len(starts) + 1, dtype=np.int64)
        self.tokens, self.packed = tokens, PackedRows(row_length=row_length, first_piece=number, start=starts, length=lengths)
        self.row_length, self.fingerprint = row_length, fingerprint

    def __len__(self) -> int:
        return int(self.packed.num_rows)

    @property
    def num_tokens(self) -> int:
        return int(self.packed.length.sum())

    def lengths(self, rows: Ints) -> Ints:
        return np.where(rows == NO_ROW, 0, self.packed.length[np.maximum(rows, 0)])

    def read(self, rows: Ints) -> tuple[Ints, Ints]:
        return read_packed(self.packed, self.tokens, rows)


def open_tokens(folder: Path, split: str, manifest: Manifest | None = None) -> tuple[NDArray[Any], Manifest]:
    """The tokens of a split (T,), mapped, and the folder's manifest, which is read if it is not given.

    Raises ValueError where they are missing or not of it.
    """
    if not folder.is_dir():
        raise ValueError(f"data.path {folder} does not exist: make it with `fnet-t5 prepare --output {folder}`")
    manifest = manifest or load_manifest(folder)
    path = folder / f"{split}.bin"
    if split not in manifest.splits or not path.is_file():
        raise ValueError(f"{folder} has no {split} split (too little text fell to it): prepare with --{split}, or more text")
    check_size(folder, manifest, path.name)
    check_size(folder, manifest, f"{split}.idx")
    if not path.stat().st_size:
        raise TokenFileError(f"{path} holds no tokens: prepare more text")
    return np.memmap(path, dtype=np.dtype(manifest.token_dtype).newbyteorder("<"), mode="r"), manifest


def stream_fingerprint(manifest: Manifest) -> str:
    """A hash of the tokens and the tokenizer of a folder; its row indexes do not matter."""
    read = {
        name: record.sha256
        for name, record in manifest.files.items()
        if name.endswith((".bin", ".idx")) or name == "tokenizer.json"
    }
    return sha256_bytes(canonical_json(read))


def check_size(folder: Path, manifest: Manifest, name: str) -> None:
    """A fingerprint rests on the manifest; a size mismatch reveals a stale manifest without reading the file."""
    record, path = manifest.files.get(name), folder / name
    if record is None or not path.is_file() or path.stat().st_size != record.bytes:
        raise ValueError(
            f"{path} is not the file that {folder / 'manifest.json'} describes: check it with `fnet-t5 data verify {folder}`, "
            "and restore it or prepare again"
        )


def read_packed(packed: PackedRows, tokens: NDArray[Any], rows: Ints) -> tuple[Ints, Ints]:
    """The ids of `rows`, int64 (B, row_length) with zeros after each row's end, and the rows' lengths, int64 (B,).

    NO_ROW gives an empty row.
    """
    chosen = np.maximum(rows, 0)
    first, width = packed.first_piece[chosen], packed.row_length
    num_pieces = packed.first_piece[chosen + 1] - first  # (B,)
    first_of_row = sequence_offsets(num_pieces)  # (B,) among the pieces of these rows
    piece = np.repeat(first - first_of_row, num_pieces) + np.arange(num_pieces.sum())
    start, before = packed.start[piece], sequence_offsets(packed.length[piece])
    lengths = np.add.reduceat(packed.length[piece], first_of_row) if len(rows) else np.zeros(0, dtype=np.int64)
    lengths[rows == NO_ROW] = 0
    row = np.repeat(np.arange(len(rows)), num_pieces)
    place = row * width + before - before[first_of_row][row]  # where each piece begins in the flattened rows
    # Each token's position in the corpus as a running sum: steps of 1, at a piece's first token the distance from the last.
    source = np.ones(len(rows) * width, dtype=np.int64)
    source[place] = np.diff(start, prepend=0) - np.diff(place, prepend=0) + 1
    source[:1] -= 1
    np.cumsum(source, out=source)
    ids = (
        tokens.take(source, mode="clip").astype(np.int64).reshape(len(rows), width)
    )  # after a row's end stand the tokens that follow it
    if (lengths != width).any():
        ids *= np.arange(width) < lengths[:, None]
    return ids, lengths
