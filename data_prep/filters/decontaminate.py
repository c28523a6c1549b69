"""Decontamination: find training documents that share an n-gram with reference texts, as GPT-3 did for its test sets.

The references' n-gram hashes are stored sorted in a folder that every worker memory-maps, so all workers of a node share
one copy. A bit table rejects most n-grams of a corpus by one bit each. With 10^11 n-grams in the corpus and 10^7 in the
references, the probability of one false match is 5 %; it costs one document.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from data_prep.files import write_json_atomically
from data_prep.filters.ngrams import Hashes, ngram_hashes, text_of_ngram, within_texts
from data_prep.readers.input_files import ChangedInputError, InputFile, expand, input_files
from data_prep.readers.locations import sha256_location
from data_prep.readers.records import Document, read_records

_ENTRY = np.dtype([("hash", "<u8"), ("file", "<u4")])
_NUM_BUCKETS = 64
_BUCKET_SHIFT = np.uint64(64 - (_NUM_BUCKETS - 1).bit_length())
_BATCH_BYTES = 1 << 20
_BITS_PER_NGRAM = 16
_SMALLEST_BITS = 16


class DecontaminationError(ValueError):
    """References without an n-gram, or that cannot be read completely."""


@dataclass(frozen=True)
class ReferenceFile:
    """Counts of one reference file: its records, and those that are too `short` to have an n-gram."""

    name: str
    records: int
    short: int


def reference_files(globs: Sequence[str]) -> list[InputFile]:
    """The reference files that `globs` match. Raises InputError."""
    paths = expand(globs)
    return input_files(paths, [None] * len(paths))


def identity(files: Sequence[InputFile], n: int) -> dict[str, object]:
    """The part of the references that outputs depend on, as JSON values; reads all files."""
    return {"ngram": n, "against": [[file.name, sha256_location(file.path)] for file in files]}


def build(files: Sequence[InputFile], n: int, max_record_bytes: int, folder: Path) -> list[ReferenceFile]:
    """Write the references' n-gram hashes to `folder`, with one bucket of hashes in memory at a time.

    Raises DecontaminationError for a record that cannot be read, because its text would not be searched for, and if no
    record has `n` words.
    """
    folder.mkdir(exist_ok=True)
    buckets = [folder / f"bucket.{number:02d}" for number in range(_NUM_BUCKETS)]
    for bucket in buckets:
        bucket.write_bytes(b"")
    found = [_scatter(file, n, max_record_bytes, buckets) for file in files]
    num_hashes = 0
    with open(folder / "hashes", "wb") as hashes, open(folder / "files", "wb") as numbers:
        for bucket in buckets:  # buckets are by the top bits, so their concatenation is sorted
            entries = np.fromfile(bucket, dtype=_ENTRY)
            entries = entries[np.argsort(entries["hash"], kind="stable")]  # stable: of equal hashes the first file is kept
            first = np.ones(len(entries), dtype=np.bool_)
            first[1:] = entries["hash"][1:] != entries["hash"][:-1]
            hashes.write(entries["hash"][first].tobytes())
            numbers.write(entries["file"][first].tobytes())
            num_hashes += int(first.sum())
            bucket.unlink()
    if not num_hashes:
        raise DecontaminationError(f"decontaminate: no reference record has {n} words; give other files or a smaller ngram")
    num_bits = max(_SMALLEST_BITS, (num_hashes * _BITS_PER_NGRAM - 1).bit_length())
    _write_bits(folder, num_bits)
    write_json_atomically(folder / "about.json", {"n": n, "bits": num_bits, "names": [file.name for file in files]})
    return found


def _scatter(file: InputFile, n: int, max_record_bytes: int, buckets: Sequence[Path]) -> ReferenceFile:
    records = short = batch_bytes = 0
    batch: list[bytes] = []

    def flush() -> int:
        hashes, num_words = ngram_hashes(batch, n)
        entries = np.empty(int(within_texts(num_words, n).sum()), dtype=_ENTRY)
        entries["hash"], entries["file"] = np.sort(hashes[within_texts(num_words, n)]), file.index
        bounds = np.searchsorted(entries["hash"], np.arange(1, _NUM_BUCKETS, dtype=np.uint64) << _BUCKET_SHIFT)
        for bucket, part in zip(buckets, np.split(entries, bounds), strict=True):
            if len(part):
                with open(bucket, "ab") as rest:
                    rest.write(part.tobytes())
        return int((num_words < n).sum())

    for record in read_records(file.path, file.name, max_record_bytes):
        if not isinstance(record, Document):
            raise DecontaminationError(
                f"decontaminate: {file.path} line {record.line}: {record.reason}; fix it, or its text is not searched for"
            )
        batch.append(record.text.encode("utf-8"))
        batch_bytes += len(batch[-1])
        records += 1
        if batch_bytes >= _BATCH_BYTES:
            short += flush()
            batch, batch_bytes = [], 0
    if batch:
        short += flush()
    file.validate_unchanged()
    if file.was_touched():
        raise ChangedInputError(f"{file.path}: changed during the job; leave it as it is and rerun the same command")
    return ReferenceFile(file.name, records, short)


def _write_bits(folder: Path, num_bits: int) -> None:
    hashes = np.memmap(folder / "hashes", dtype="<u8", mode="r")
    bits = np.memmap(folder / "bits", dtype=np.uint8, mode="w+", shape=(1 << num_bits >> 3,))
    for begin in range(0, len(hashes), _BATCH_BYTES):
        places = hashes[begin : begin + _BATCH_BYTES] >> np.uint64(64 - num_bits)
        np.bitwise_or.at(bits, places >> np.uint64(3), np.left_shift(1, places & np.uint64(7)).astype(np.uint8))
    bits.flush()


class References:
    """The n-gram hashes that `build` wrote, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        about = orjson.loads((folder / "about.json").read_bytes())
        self.names: list[str] = about["names"]
        self._n: int = about["n"]
        self._shift = np.uint64(64 - about["bits"])
        self._bits = np.memmap(folder / "bits", dtype=np.uint8, mode="r")
        self._hashes = np.memmap(folder / "hashes", dtype="<u8", mode="r")
        self._files = np.memmap(folder / "files", dtype="<u4", mode="r")

    def matches(self, texts: Sequence[bytes]) -> dict[int, str]:
        """The texts (UTF-8) that share an n-gram with a reference, by number, with the file name of the first shared n-gram."""
        hashes, num_words = ngram_hashes(texts, self._n)
        places, files = self._find(hashes)
        found: dict[int, str] = {}
        for text, file in zip(text_of_ngram(places, num_words).tolist(), files.tolist(), strict=True):
            found.setdefault(text, self.names[file])
        return found

    def _find(self, hashes: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
        places = hashes >> self._shift
        possible = np.flatnonzero(self._bits[places >> np.uint64(3)] >> (places & np.uint64(7)).astype(np.uint8) & 1)
        wanted = hashes[possible]
        at = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        equal = self._hashes[at] == wanted
        return possible[equal], np.asarray(self._files[at[equal]])


@lru_cache(maxsize=1)
def cached_references(folder: Path, sha256: str) -> References:
    """The references in `folder`. `sha256` is part of the cache key, because a worker may outlive a run."""
    return References(folder)


def notes(found: Sequence[ReferenceFile], n: int) -> list[str]:
    """Remarks for the user: one line per reference file with records that are too short."""
    return [
        f"decontaminate: {file.short} of {file.records} records of {file.name} have fewer than {n} words and are not compared"
        for file in found
        if file.short
    ]
