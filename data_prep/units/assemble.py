"""Committed units to the token files of a split: workers copy tokens to known offsets in parallel, the index is last."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson

from data_prep.dataset.indexed_dataset import write_index
from data_prep.dataset.manifest import SourceCounts, write_sources
from data_prep.executor.workers import Call, WorkerPool
from data_prep.files import atomic_write, canonical_json
from data_prep.readers.input_files import SPLITS, Split
from data_prep.units.store import DOCUMENT_DTYPE, DOCUMENTS, QUARANTINE, UnitKey, UnitRecord, UnitStore

NUM_HISTOGRAM_BINS = 32
_COPIED_AT_ONCE = 1 << 26  # tokens

# How often each document of a unit appears: uint8 (documents,). Documents of units without an entry appear once.
Copies = Mapping[UnitKey, npt.NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class TokenCopy:
    """The tokens that one unit contributes to one split, written to the `.bin` from token `offset` on.

    kept: bool, which of the unit's documents in this split are copied; None for all of them.
    lengths: int32, the tokens of all these documents; None if `kept` is None.
    """

    record: UnitRecord
    offset: int
    lengths: npt.NDArray[np.int32] | None
    kept: npt.NDArray[np.bool_] | None


@dataclass(frozen=True, kw_only=True)
class SplitContent:
    """One split of the corpus.

    lengths: int32 (documents,) in tokens. source_of: uint16 (documents,), an index into `sorted(sources)`.
    histogram: by source; bin i counts documents of 2^i to 2^(i+1) - 1 tokens.
    """

    lengths: npt.NDArray[np.int32]
    source_of: npt.NDArray[np.uint16]
    copies: list[TokenCopy]
    sources: dict[str, SourceCounts]
    histogram: dict[str, list[int]]


def split_content(records: Sequence[UnitRecord], split: Split, store: UnitStore, copies: Copies) -> SplitContent:
    """Collect a split: all units in plan order, then again in plan order the documents that appear a second time, and so on."""
    content = _Content()
    passes = max((int(number.max(initial=1)) for number in copies.values()), default=1)
    for number in range(passes):
        for record in records:
            if number and (record.key not in copies or copies[record.key].max(initial=0) <= number):
                continue
            documents = store.section(record, DOCUMENTS, DOCUMENT_DTYPE)
            in_split = documents["split"] == SPLITS.index(split)
            kept = copies[record.key][in_split] > number if record.key in copies else None
            content.add(record, documents[in_split], None if kept is None or kept.all() else kept)
    return content.collected()


class _Content:
    """Collects the content of a split."""

    def __init__(self) -> None:
        self._lengths: list[npt.NDArray[np.int32]] = [np.empty(0, dtype=np.int32)]
        self._source_of: list[npt.NDArray[np.uint16]] = [np.empty(0, dtype=np.uint16)]
        self._numbers: dict[str, int] = {}  # by source, in the order of their first document
        self._copies: list[TokenCopy] = []
        self._counts: dict[str, npt.NDArray[np.int64]] = {}  # (documents, tokens, bytes, bins…) by source
        self._offset = 0

    def add(self, record: UnitRecord, mine: npt.NDArray[np.void], kept: npt.NDArray[np.bool_] | None) -> None:
        """Append the `kept` documents (None for all) among `mine`, the documents of one unit in this split."""
        before = np.ascontiguousarray(mine["tokens"]) if kept is not None else None
        mine = mine if kept is None else mine[kept]
        if not len(mine):
            return
        self._copies.append(TokenCopy(record=record, offset=self._offset, lengths=before, kept=kept))
        self._lengths.append(np.ascontiguousarray(mine["tokens"]))
        self._offset += int(mine["tokens"].sum(dtype=np.int64))
        numbers = [self._numbers.setdefault(source, len(self._numbers)) for source in record.sources]
        self._source_of.append(np.array(numbers, dtype=np.uint16)[mine["source"]])
        for number in np.unique(mine["source"]).tolist():
            rows = mine[mine["source"] == number]
            bins = np.bincount(np.frexp(rows["tokens"])[1] - 1, minlength=NUM_HISTOGRAM_BINS)
            found = np.array([len(rows), rows["tokens"].sum(dtype=np.int64), rows["bytes"].sum(), *bins], dtype=np.int64)
            source = record.sources[number]
            self._counts[source] = self._counts[source] + found if source in self._counts else found

    def collected(self) -> SplitContent:
        """Everything that was added."""
        sources = {
            source: SourceCounts(documents=int(found[0]), tokens=int(found[1]), bytes=int(found[2]))
            for source, found in self._counts.items()
        }
        histogram = {source: np.trim_zeros(found[3:], "b").tolist() for source, found in self._counts.items()}
        places = {source: place for place, source in enumerate(sorted(sources))}
        # A source may occur in units of this split without a document that is kept; then it has no place.
        renumbered = np.array([places.get(source, 0) for source in self._numbers] or [0], dtype=np.uint16)
        source_of = renumbered[np.concatenate(self._source_of)]
        return SplitContent(
            lengths=np.concatenate(self._lengths),
            source_of=source_of,
            copies=self._copies,
            sources=sources,
            histogram=histogram,
        )


def join_tokens(
    content: SplitContent,
    split: Split,
    store: UnitStore,
    output: Path,
    dtype: np.dtype[Any],
    pool: WorkerPool,
    write_head: Callable[[BinaryIO], None] = lambda file: None,
) -> None:
    """Write `<split>.bin` with several workers at once, then the sources, then `.idx`.

    `write_head` writes the tokens that come before those of the units.
    """
    path = output / f"{split}.bin"
    with atomic_write(path) as file:
        write_head(file)
        file.truncate(int(content.lengths.sum(dtype=np.int64)) * dtype.itemsize)
        target = Path(file.name)
        for _ in pool.map(
            Call(function=copy_tokens, arguments=(copies, split, store.folder, target, dtype), name=f"{path}")
            for copies in _grouped(content.copies)
        ):
            pass
    write_sources(output, split, content.source_of)
    write_index(output / f"{split}.idx", content.lengths, dtype)


def copy_tokens(copies: Sequence[TokenCopy], split: Split, units: Path, target: Path, dtype: np.dtype[Any]) -> None:
    """Copy tokens of units to their offsets in `target` and sync it to disk."""
    store = UnitStore(units)
    with open(target, "r+b") as file:
        for copy in copies:
            tokens = store.section(copy.record, f"{split}.tokens", dtype)
            if copy.kept is not None and copy.lengths is not None:
                tokens = tokens[np.repeat(copy.kept, copy.lengths)]
            file.seek(copy.offset * dtype.itemsize)
            file.write(tokens.data)
        file.flush()
        os.fsync(file.fileno())


def join_quarantine(records: Sequence[UnitRecord], store: UnitStore, path: Path) -> None:
    """Write the rejected records of all units in plan order. Line numbers count from the first line of each input file."""
    file_number, lines_before = -1, 0
    with atomic_write(path) as file:
        for record in records:
            if record.file != file_number:
                file_number, lines_before = record.file, 0
            for line in store.section(record, QUARANTINE, np.uint8).tobytes().splitlines():
                rejected = orjson.loads(line)
                file.write(canonical_json({**rejected, "line": rejected["line"] + lines_before}) + b"\n")
            lines_before += record.lines


def _grouped(copies: Sequence[TokenCopy]) -> Iterator[list[TokenCopy]]:
    group: list[TokenCopy] = []
    tokens = 0
    for copy in copies:
        group.append(copy)
        tokens += copy.record.tokens
        if tokens >= _COPIED_AT_ONCE:
            yield group
            group, tokens = [], 0
    if group:
        yield group
