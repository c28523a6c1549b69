"""Many small files as one unit: one call, one commit and one record for up to a thousand of them.

The files of a bundle are consecutive in the plan, so that its documents are in the order of the corpus.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from data_prep.readers.blocks import Block, cut_blocks
from data_prep.readers.huggingface import DatasetRows
from data_prep.readers.input_files import ChangedInputError, InputFile
from data_prep.readers.remote import RemoteFile
from data_prep.readers.streams import read_chunks
from data_prep.units.reader import Digest, Unreadable, describe, empty_block, validate_format
from data_prep.units.store import Member, UnitRecord
from data_prep.units.tokenize_unit import UnitBuilder, UnitSettings

# Fewer files are units of their own, so that all workers get some.
_MIN_FILES = 16
_MAX_FILES = 1024
# A file is small if it is expected to have at most this share of a unit's bytes.
_SMALL_SHARE = 1 / 8
_COMPRESSION = 4


@dataclass(frozen=True)
class BundleResult:
    """The record of a bundle, None if it has no file, the files that cannot be read, and how many of its files were done.

    The first file that was not done is too large for a bundle.
    """

    record: UnitRecord | None
    unreadable: list[Unreadable]
    num_done: int


def bundled(files: Sequence[InputFile], unit_bytes: int) -> tuple[list[list[InputFile]], list[InputFile]]:
    """Bundles of small files, and the other files."""
    bundles: list[list[InputFile]] = []
    others: list[InputFile] = []
    for run in _runs(files, unit_bytes):
        if len(run) < _MIN_FILES:
            others += run
            continue
        bundles.append([])
        num_bytes = 0
        for file in run:
            if bundles[-1] and (len(bundles[-1]) == _MAX_FILES or num_bytes + _raw_bytes(file) > unit_bytes // 2):
                bundles.append([])
                num_bytes = 0
            bundles[-1].append(file)
            num_bytes += _raw_bytes(file)
    return bundles, others


def _runs(files: Sequence[InputFile], unit_bytes: int) -> Iterator[list[InputFile]]:
    """Consecutive small files of one split; every other file alone."""
    run: list[InputFile] = []
    for file in files:
        if run and not (_is_small(file, unit_bytes) and _follows(run[-1], file)):
            yield run
            run = []
        if _is_small(file, unit_bytes):
            run.append(file)
        else:
            yield [file]
    if run:
        yield run


def _follows(before: InputFile, file: InputFile) -> bool:
    return before.split == file.split and file.index == before.index + 1


def _is_small(file: InputFile, unit_bytes: int) -> bool:
    if isinstance(file.path, DatasetRows) or (isinstance(file.path, RemoteFile) and not file.bytes):
        return False  # its size is not known
    return _raw_bytes(file) <= unit_bytes * _SMALL_SHARE


def _raw_bytes(file: InputFile) -> int:
    return file.bytes if file.is_plain else _COMPRESSION * file.bytes


def tokenize_bundle(files: Sequence[InputFile], settings: UnitSettings) -> BundleResult:
    """Read and do all files of a bundle up to the first one that is too large; commit them as one unit."""
    builder = UnitBuilder(files[0], settings)
    members: list[Member] = []
    unreadable: list[Unreadable] = []
    num_done = 0
    for file in files:
        try:
            found = _read_whole(file, settings, settings.unit_bytes - builder.raw_bytes)
        except (OSError, ChangedInputError) as error:
            unreadable.append(Unreadable(file.index, describe(error)))
        else:
            if found is None:
                break
            block, member = found
            builder.add(file, block)
            members.append(member)
        num_done += 1
    if not members:
        return BundleResult(None, unreadable, num_done)
    identity = sha256("".join(member.sha256 for member in members).encode()).hexdigest()
    return BundleResult(builder.commit(0, identity, members), unreadable, num_done)


def _read_whole(file: InputFile, settings: UnitSettings, max_bytes: int) -> tuple[Block, Member] | None:
    """The only block of a file; None if it has several or more than `max_bytes`."""
    file.validate_unchanged()
    digest = Digest()
    blocks = cut_blocks(read_chunks(file.path, digest.add), settings.unit_bytes, settings.max_record_bytes)
    block = next(blocks, None) or empty_block()
    if block.data.nbytes > max_bytes or next(blocks, None) is not None:
        return None
    validate_format(file, block)
    file.validate_unchanged()
    return block, Member(file=file.index, bytes=digest.bytes, sha256=digest.hexdigest())
