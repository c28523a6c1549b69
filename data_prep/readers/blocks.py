r"""Raw bytes to blocks of whole lines, the units of work. Where a file is cut depends on its bytes and `unit_bytes` alone.

Decompressed bytes are divided into cells of U = `unit_bytes`: 0 to U, U to 2U, … A line belongs to the block of the cell in
which it starts. So workers that see only their own range of a plain file and a reader that streams a compressed file cut
the same blocks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.readers.locations import Location, open_location
from data_prep.readers.remote import RemoteFile
from data_prep.readers.streams import DamagedStreamError, read_chunks

_SHOWN_BYTES = 1024
_READ_BYTES = 1 << 20
_NEWLINE = b"\n"
DEFAULT_UNIT_BYTES = 64_000_000


@dataclass(frozen=True)
class Line:
    """One line without its newline, numbered from 1. If it is `too_long`, `data` has only its first bytes."""

    number: int
    data: bytes
    too_long: bool = False


@dataclass(frozen=True)
class LostTail:
    """The end of a damaged file: the number and first bytes of the line at which reading stopped, and the reason.

    `detail`: what the decoder said.
    """

    number: int
    data: bytes
    reason: str
    detail: str | None = None


@dataclass(frozen=True, kw_only=True)
class Block:
    """The lines that start in cell `index` of a file. `data`: uint8, whole lines with their newlines.

    `too_long`: the lines, numbered from 0 in this block, of which `data` has only the first bytes. `damage`: why the file
    ended in this block, and `detail`, what the decoder said; then the last line is incomplete, perhaps empty, and never a
    record.
    """

    index: int
    data: npt.NDArray[np.uint8]
    too_long: tuple[int, ...] = ()
    damage: str | None = None
    detail: str | None = None


def cut_blocks(chunks: Iterable[bytes], unit_bytes: int, max_record_bytes: int) -> Iterator[Block]:
    """Cut a file's decompressed bytes into blocks. Memory is at most `unit_bytes` + `max_record_bytes` + one chunk.

    A DamagedStreamError that `chunks` raises becomes the `damage` of the last block.
    """
    builder = _BlockBuilder(unit_bytes=unit_bytes, max_record_bytes=max_record_bytes, position=0)
    try:
        for chunk in chunks:
            yield from builder.add(chunk)
    except DamagedStreamError as error:
        yield builder.close(error.reason, error.detail)
        return
    if builder.holds_bytes:
        yield builder.close()


def read_range(path: Path | RemoteFile, index: int, unit_bytes: int, max_record_bytes: int) -> Block:
    """Block `index` of a plain file of lines, perhaps empty. Earlier blocks are not read."""
    first, end = index * unit_bytes, (index + 1) * unit_bytes
    with open_location(path) as file:
        position = first
        if first:
            position = first - 1  # a newline just before the cell means that a line starts at its first byte
            file.seek(position)
            while tail := file.readline(_READ_BYTES):
                position += len(tail)
                if tail.endswith(_NEWLINE):
                    break
            else:
                position = end
        if position < end:
            builder = _BlockBuilder(unit_bytes=unit_bytes, max_record_bytes=max_record_bytes, position=position)
            while chunk := file.read(_READ_BYTES):
                for block in builder.add(chunk):
                    return block
            if builder.holds_bytes:
                return builder.close()
    return Block(index=index, data=np.empty(0, dtype=np.uint8))


def lines_of(block: Block, max_record_bytes: int, first_number: int = 1) -> Iterator[Line | LostTail]:
    r"""The lines of a block. Only b"\n" ends a line: U+2028, U+0085 and a lone CR are text."""
    too_long = set(block.too_long)
    view = block.data.data
    start = 0
    ends = _newlines(block.data)
    for number, end in enumerate(ends):
        over = number in too_long or end - start > max_record_bytes
        shown = min(end, start + _SHOWN_BYTES) if over else end
        yield Line(first_number + number, bytes(view[start:shown]), over)
        start = end + 1
    if block.damage:
        yield LostTail(first_number + len(ends), bytes(view[start : start + _SHOWN_BYTES]), block.damage, block.detail)
    elif start < len(view):
        over = len(ends) in too_long or len(view) - start > max_record_bytes
        shown = start + _SHOWN_BYTES if over else len(view)
        yield Line(first_number + len(ends), bytes(view[start:shown]), over)


def _newlines(data: npt.NDArray[np.uint8]) -> list[int]:
    # In chunks that fit the processor's cache: twice as fast as all at once.
    starts = range(0, len(data), _READ_BYTES)
    return [start + end for start in starts for end in np.flatnonzero(data[start : start + _READ_BYTES] == 0x0A).tolist()]


def read_lines(path: Location, max_record_bytes: int, unit_bytes: int = DEFAULT_UNIT_BYTES) -> Iterator[Line | LostTail]:
    """All lines of a file in order. A damaged file gives the lines before the damage, then one LostTail."""
    number = 1
    for block in cut_blocks(read_chunks(path), unit_bytes, max_record_bytes):
        for line in lines_of(block, max_record_bytes, number):
            yield line
            number += 1


def num_ranges(num_bytes: int, unit_bytes: int) -> int:
    """The number of blocks of a plain file of `num_bytes`: 0 for an empty file."""
    return -(-num_bytes // unit_bytes)


@dataclass(kw_only=True)
class _BlockBuilder:
    """Collects one block after another. `position`: the offset in the file of the next byte; initially a line starts there."""

    unit_bytes: int
    max_record_bytes: int
    position: int
    held: bytearray = field(default_factory=bytearray)
    line_bytes: int = 0
    skipping: bool = False
    too_long: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.index = self.position // self.unit_bytes

    @property
    def holds_bytes(self) -> bool:
        return bool(self.held)

    def add(self, chunk: bytes) -> Iterator[Block]:
        while chunk:
            # The line that contains the last byte of the cell is the last line of the block.
            last = (self.index + 1) * self.unit_bytes - 1
            end = chunk.find(_NEWLINE, max(0, last - self.position)) + 1
            taken = chunk[: end or len(chunk)]
            self._keep(taken)
            self.position += len(taken)
            chunk = chunk[len(taken) :]
            if end:
                yield self.close()

    def close(self, damage: str | None = None, detail: str | None = None) -> Block:
        # The block takes the buffer without a copy.
        block = Block(
            index=self.index,
            data=np.frombuffer(self.held, dtype=np.uint8),
            too_long=tuple(self.too_long),
            damage=damage,
            detail=detail,
        )
        self.held, self.too_long, self.line_bytes, self.skipping = bytearray(), [], 0, False
        self.index = self.position // self.unit_bytes
        return block

    def _keep(self, data: bytes) -> None:
        if self.skipping:
            newline = data.find(_NEWLINE)
            if newline < 0:
                return
            data, self.skipping = data[newline:], False
        self.held += data
        newline = data.rfind(_NEWLINE)
        self.line_bytes = len(data) - newline - 1 if newline >= 0 else self.line_bytes + len(data)
        if self.line_bytes > self.max_record_bytes:
            self._skip_line()

    def _skip_line(self) -> None:
        shown = min(self.line_bytes, _SHOWN_BYTES)
        del self.held[len(self.held) - self.line_bytes + shown :]
        self.too_long.append(self.held.count(_NEWLINE))
        self.line_bytes, self.skipping = shown, True
