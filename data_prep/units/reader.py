"""One input file to blocks, without Ray: blocks that were committed by an earlier run are checked and skipped.

Decompression is sequential and several times faster than tokenizing. So one reader feeds several workers, and resuming
inside a compressed file costs its decompression up to that place, but no tokenizing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import numpy.typing as npt

from data_prep.readers.blocks import Block, cut_blocks, num_ranges, read_range
from data_prep.readers.formats import HEAD_BYTES, PLAIN_SUFFIX, validate_lines
from data_prep.readers.huggingface import DatasetRows
from data_prep.readers.input_files import ChangedInputError, InputFile
from data_prep.readers.locations import sha256_location
from data_prep.readers.streams import read_chunks
from data_prep.units.store import UnitRecord
from data_prep.units.tokenize_unit import UnitSettings, raw_sha256, tokenize_unit

EMPTY_FILE = "empty file"
_NOTHING: npt.NDArray[np.uint8] = np.empty(0, dtype=np.uint8)


@dataclass(frozen=True, kw_only=True)
class BlockHeader:
    """A block without its bytes, which travel separately through the object store."""

    index: int
    too_long: tuple[int, ...]
    damage: str | None
    detail: str | None


@dataclass(frozen=True, kw_only=True)
class FileEnd:
    """A file that was read to its end. `bytes` and `sha256` are of the file on disk, or of the JSON lines of a dataset's rows;
    `blocks` are the numbers of its units."""

    file: int
    bytes: int
    sha256: str
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Unreadable:
    """A file that cannot be read, or that changed during the job."""

    file: int
    reason: str


class BlockReader:
    """Reads the blocks of one file one by one.

    `done`: blocks to skip, with the hash that each must have (None: not checked). `only`: if given, the blocks to return;
    all others are skipped.
    """

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
        """The header and bytes of the next block; after the last one FileEnd or Unreadable, with no bytes."""
        return next(self._steps)

    def _read(
        self, unit_bytes: int, max_record_bytes: int, done: Mapping[int, str | None]
    ) -> Iterator[tuple[BlockHeader | FileEnd | Unreadable, npt.NDArray[np.uint8]]]:
        file, digest, blocks = self._file, Digest(), []
        try:
            file.validate_unchanged()
            for block in _at_least_one(cut_blocks(read_chunks(file.path, digest.add), unit_bytes, max_record_bytes)):
                blocks.append(block.index)
                validate_format(file, block)
                if block.index not in done:
                    if self._only is None or block.index in self._only:
                        header = BlockHeader(
                            index=block.index, too_long=block.too_long, damage=block.damage, detail=block.detail
                        )
                        yield header, block.data
                elif done[block.index] not in (None, raw_sha256(block)):
                    raise ChangedInputError(f"{file.path}: unit {block.index} has other bytes than when it was committed")
                del block  # frees its memory before the next one is read
            file.validate_unchanged()
        except (OSError, ChangedInputError) as error:
            yield Unreadable(file.index, describe(error)), _NOTHING
            return
        yield FileEnd(file=file.index, bytes=digest.bytes, sha256=digest.hexdigest(), blocks=tuple(blocks)), _NOTHING


def validate_format(file: InputFile, block: Block) -> None:
    """Raise WrongFormatError if a file named `.jsonl` begins like one of another format."""
    if block.index == 0 and file.is_named(PLAIN_SUFFIX):
        validate_lines(file.path, block.data[:HEAD_BYTES].tobytes())


class Digest:
    """SHA-256 and the number of bytes that it covers."""

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
    """Do a unit from the block that a reader read."""
    return tokenize_unit(file, Block(data=data, **vars(header)), settings)


def tokenize_range(file: InputFile, index: int, settings: UnitSettings) -> UnitRecord | Unreadable:
    """Read and do unit `index` of a plain file of lines."""
    try:
        file.validate_unchanged()
        block = plain_block(file, index, settings.unit_bytes, settings.max_record_bytes)
        validate_format(file, block)
        file.validate_unchanged()
    except (OSError, ChangedInputError) as error:
        return Unreadable(file.index, describe(error))
    return tokenize_unit(file, block, settings)


def plain_block(file: InputFile, index: int, unit_bytes: int, max_record_bytes: int) -> Block:
    """Block `index` of a plain file of lines. An empty file has one block, marked as damaged because empty."""
    if not file.bytes:
        return empty_block()
    assert not isinstance(file.path, DatasetRows), "the rows of a dataset have no byte ranges"
    return read_range(file.path, index, unit_bytes, max_record_bytes)


def hash_plain(file: InputFile, unit_bytes: int) -> FileEnd | Unreadable:
    """The record of a plain file, as a reader gives it at the end of a compressed one; reads the whole file."""
    try:
        file.validate_unchanged()
        digest = sha256_location(file.path)
        blocks = tuple(range(max(1, num_ranges(file.bytes, unit_bytes))))
        file.validate_unchanged()
    except (OSError, ChangedInputError) as error:
        return Unreadable(file.index, describe(error))
    return FileEnd(file=file.index, bytes=file.bytes, sha256=digest, blocks=blocks)


def verify_touched(
    file: InputFile, end: FileEnd, blocks: Mapping[int, str], unit_bytes: int, max_record_bytes: int
) -> Unreadable | None:
    """Compare a file that has a new version with what was read from it: `blocks` are the hashes of its units."""
    try:
        changed = sha256_location(file.path) != end.sha256 or (
            file.is_plain
            and any(raw_sha256(plain_block(file, i, unit_bytes, max_record_bytes)) != found for i, found in blocks.items())
        )
    except OSError as error:
        return Unreadable(file.index, describe(error))
    reason = f"{file.path}: changed during the job, with the same size; leave it as it is"
    return Unreadable(file.index, reason) if changed else None


def describe(error: Exception) -> str:
    """One line that names the file, the error and the remedy."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or error}; restore it"
    return str(error)


def _at_least_one(blocks: Iterator[Block]) -> Iterator[Block]:
    """The blocks, or one block marked as damaged because the file is empty."""
    found = False
    for block in blocks:
        found = True
        yield block
        del block
    if not found:
        yield empty_block()


def empty_block() -> Block:
    """The block of an empty file, marked as damaged because empty."""
    return Block(index=0, data=_NOTHING, damage=EMPTY_FILE)
