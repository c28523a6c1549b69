"""One input file to blocks, in a process of its own and without Ray: what was done before is checked and passed over.

Decompression is sequential, and several times faster than tokenizing: one reader feeds several workers, and a restart
inside a compressed file costs its decompression up to there, but no tokenizing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import numpy.typing as npt

from data_prep.readers.blocks import Block, cut_blocks, num_ranges, read_range
from data_prep.readers.huggingface import DatasetRows
from data_prep.readers.input_files import ChangedInputError, InputFile
from data_prep.readers.locations import sha256_location
from data_prep.readers.streams import read_chunks
from data_prep.units.store import UnitRecord
from data_prep.units.tokenize_unit import UnitSettings, raw_sha256, tokenize_unit

EMPTY_FILE = "empty file"
_NOTHING: npt.NDArray[np.uint8] = np.empty(0, dtype=np.uint8)


@dataclass(frozen=True)
class BlockHeader:
    """A block without its bytes, which go another way."""

    index: int
    too_long: tuple[int, ...]
    damage: str | None


@dataclass(frozen=True, kw_only=True)
class FileEnd:
    """A file that was read to its end: `bytes` and `sha256` are of what lies on disk, or of the lines that a dataset
    became; `blocks` are the numbers of its units."""

    file: int
    bytes: int
    sha256: str
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Unreadable:
    """A file that cannot be read, or that changed meanwhile."""

    file: int
    reason: str


class BlockReader:
    """Gives the blocks of one file one by one. `done` maps blocks to pass over to their hash, None for no check; `only`
    names those to give where not all the others are wanted."""

    def __init__(
        self,
        file: InputFile,
        unit_bytes: int,
        max_record_bytes: int,
        done: Mapping[int, str | None],
        only: frozenset[int] | None = None,
    ) -> None:
        self._file = file
        self._only = only
        self._steps = self._read(unit_bytes, max_record_bytes, done)

    def next(self) -> tuple[BlockHeader | FileEnd | Unreadable, npt.NDArray[np.uint8]]:
        """The next block's header and bytes; after the last one FileEnd, or Unreadable, with no bytes."""
        return next(self._steps)

    def _read(
        self, unit_bytes: int, max_record_bytes: int, done: Mapping[int, str | None]
    ) -> Iterator[tuple[BlockHeader | FileEnd | Unreadable, npt.NDArray[np.uint8]]]:
        file, digest, blocks = self._file, _Digest(), []
        try:
            file.refuse_change()
            for block in _never_none(cut_blocks(read_chunks(file.path, digest.add), unit_bytes, max_record_bytes)):
                blocks.append(block.index)
                if block.index not in done:
                    if self._only is None or block.index in self._only:
                        yield BlockHeader(block.index, block.too_long, block.damage), block.data
                elif done[block.index] not in (None, raw_sha256(block)):
                    raise ChangedInputError(f"{file.path}: other bytes in unit {block.index} than when it was committed")
                del block  # not to be held while the next one is read
            file.refuse_change()
        except (OSError, ChangedInputError) as error:
            yield Unreadable(file.index, describe(error)), _NOTHING
            return
        yield FileEnd(file=file.index, bytes=digest.bytes, sha256=digest.hexdigest(), blocks=tuple(blocks)), _NOTHING


class _Digest:
    """A hash and the number of bytes that went into it."""

    def __init__(self) -> None:
        self.bytes = 0
        self._sha256 = sha256()

    def add(self, data: bytes) -> None:
        self.bytes += len(data)
        self._sha256.update(data)

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def tokenize_block(
    file: InputFile, header: BlockHeader, data: npt.NDArray[np.uint8], settings: UnitSettings
) -> UnitRecord | Unreadable:
    """Do the unit that a reader cut."""
    return tokenize_unit(file, Block(index=header.index, data=data, too_long=header.too_long, damage=header.damage), settings)


def tokenize_range(file: InputFile, index: int, settings: UnitSettings) -> UnitRecord | Unreadable:
    """Read and do unit `index` of a plain file."""
    try:
        file.refuse_change()
        block = plain_block(file, index, settings.unit_bytes, settings.max_record_bytes)
        file.refuse_change()
    except (OSError, ChangedInputError) as error:
        return Unreadable(file.index, describe(error))
    return tokenize_unit(file, block, settings)


def plain_block(file: InputFile, index: int, unit_bytes: int, max_record_bytes: int) -> Block:
    """Unit `index` of a plain file; the one unit of an empty file says so."""
    if not file.bytes:
        return Block(index=0, data=_NOTHING, damage=EMPTY_FILE)
    assert not isinstance(file.path, DatasetRows), "rows cannot be entered anywhere"
    return read_range(file.path, index, unit_bytes, max_record_bytes)


def hash_plain(file: InputFile, unit_bytes: int) -> FileEnd | Unreadable:
    """What a reader would have said at the end of a plain file."""
    try:
        file.refuse_change()
        digest = sha256_location(file.path)
        blocks = tuple(range(max(1, num_ranges(file.bytes, unit_bytes))))
        file.refuse_change()
    except (OSError, ChangedInputError) as error:
        return Unreadable(file.index, describe(error))
    return FileEnd(file=file.index, bytes=file.bytes, sha256=digest, blocks=blocks)


def describe(error: Exception) -> str:
    """One line naming the file, whichever way it failed."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or error}"
    return str(error)


def _never_none(blocks: Iterator[Block]) -> Iterator[Block]:
    """The blocks, or where there are none one that says that the file is empty."""
    found = False
    for block in blocks:
        found = True
        yield block
        del block
    if not found:
        yield Block(index=0, data=_NOTHING, damage=EMPTY_FILE)
