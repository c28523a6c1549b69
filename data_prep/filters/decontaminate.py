"""Training documents that share an n-gram with given reference texts, as GPT-3 and The Pile's users look for test sets.

The references' n-gram hashes lie sorted in a folder that every worker maps: memory is that of the system's cache, and
most n-grams of a corpus are turned away by one bit each. Among 10^11 n-grams and 10^7 of the references a false match has
a chance of 5 %, and then costs one document.
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
from data_prep.readers.input_files import InputFile, expand, input_files
from data_prep.readers.locations import sha256_location
from data_prep.readers.records import Document, read_records

_ENTRY = np.dtype([("hash", "<u8"), ("file", "<u4")])
_NUM_BUCKETS = 64
_BUCKET_SHIFT = np.uint64(64 - (_NUM_BUCKETS - 1).bit_length())
_BATCH_BYTES = 1 << 20
_BITS_PER_NGRAM = 16
_SMALLEST_BITS = 16


class DecontaminationError(ValueError):
    """References that hold nothing to compare with, or that cannot be read whole."""


@dataclass(frozen=True)
class ReferenceFile:
    """What was found in one file of references: records, and those too short to have an n-gram."""

    name: str
    records: int
    short: int


def reference_files(globs: Sequence[str]) -> list[InputFile]:
    """The files that references are in. Raises InputError."""
    paths = expand(globs)
    return input_files(paths, [None] * len(paths))


def identity(files: Sequence[InputFile], n: int) -> dict[str, object]:
    """What outputs depend on, as JSON values: reads all files."""
    return {"ngram": n, "against": [[file.name, sha256_location(file.path)] for file in files]}


def build(files: Sequence[InputFile], n: int, max_record_bytes: int, folder: Path) -> list[ReferenceFile]:
    """Write the references' n-grams to `folder`, one bucket of hashes in memory at a time.

    Raises DecontaminationError for a record that cannot be read, because what it holds would go unseen, and where no
    record has `n` words.
    """
    folder.mkdir(exist_ok=True)
    buckets = [folder / f"bucket.{number:02d}" for number in range(_NUM_BUCKETS)]
    for bucket in buckets:
        bucket.write_bytes(b"")
    found = [_scatter(file, n, max_record_bytes, buckets) for file in files]
    num_hashes = 0
    with open(folder / "hashes", "wb") as hashes, open(folder / "files", "wb") as numbers:
        for bucket in buckets:  # by the top bits, so that bucket after bucket is sorted
            entries = np.fromfile(bucket, dtype=_ENTRY)
            entries = entries[np.argsort(entries["hash"], kind="stable")]  # of equal ones the first file's stays first
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
                f"decontaminate: {file.path} line {record.line}: {record.reason}; mend it, or what it holds goes unseen"
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
    return ReferenceFile(file.name, records, short)


def _write_bits(folder: Path, num_bits: int) -> None:
    hashes = np.memmap(folder / "hashes", dtype="<u8", mode="r")
    bits = np.memmap(folder / "bits", dtype=np.uint8, mode="w+", shape=(1 << num_bits >> 3,))
    for begin in range(0, len(hashes), _BATCH_BYTES):
        places = hashes[begin : begin + _BATCH_BYTES] >> np.uint64(64 - num_bits)
        np.bitwise_or.at(bits, places >> np.uint64(3), np.left_shift(1, places & np.uint64(7)).astype(np.uint8))
    bits.flush()


class References:
    """The n-grams that `build` wrote, mapped."""

    def __init__(self, folder: Path) -> None:
        about = orjson.loads((folder / "about.json").read_bytes())
        self.names: list[str] = about["names"]
        self._n: int = about["n"]
        self._shift = np.uint64(64 - about["bits"])
        self._bits = np.memmap(folder / "bits", dtype=np.uint8, mode="r")
        self._hashes = np.memmap(folder / "hashes", dtype="<u8", mode="r")
        self._files = np.memmap(folder / "files", dtype="<u4", mode="r")

    def matches(self, texts: Sequence[bytes]) -> dict[int, str]:
        """Numbers of the texts (UTF-8) that share an n-gram with a reference, and the file of the first one shared."""
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
    """The references of a run; `sha256` names them, because a worker may outlive a run."""
    return References(folder)


def notes(found: Sequence[ReferenceFile], n: int) -> list[str]:
    """What a person should know of the references, one sentence a file whose records are not all looked for."""
    return [
        f"decontaminate: {file.short} of {file.records} records of {file.name} have fewer than {n} words and are not looked for"
        for file in found
        if file.short
    ]
