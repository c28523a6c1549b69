"""Committed units on disk: a part file of sections, then a commit record with its size and hash, both written atomically.

Both depend only on the unit's bytes and the settings. So a unit that is done twice, even by two processes at once, gives
the same files.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from data_prep.files import atomic_write, readable_json, sha256_file

DOCUMENTS = "documents"
DIGESTS = "digests"
QUARANTINE = "quarantine"
DOCUMENT_DTYPE = np.dtype([("tokens", "<i4"), ("bytes", "<i8"), ("source", "<u4"), ("split", "u1")])

_RECORD = re.compile(r"(\d{5,})\.(\d{6,})\.json")


@dataclass(frozen=True, order=True)
class UnitKey:
    """A unit of work: block `block` of input file `file`. Sorted keys are the order of the corpus."""

    file: int
    block: int

    def __str__(self) -> str:
        return f"{self.file:05d}.{self.block:06d}"


class Member(BaseModel):
    """One file of a bundle: its number, and size and hash of its bytes on disk."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: int
    bytes: int
    sha256: str


class UnitRecord(BaseModel):
    """The content of a unit: its counts, and the byte offset and size of each of the `sections` of its part file.

    `raw_bytes` and `raw_sha256` are of the decompressed lines of the unit. The documents table refers to `sources` by index.
    `extra_records`: records beyond the first of their line. `members`: the files of a bundle (see `bundles`), whose key is that
    of its first file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: int
    block: int
    raw_bytes: int
    raw_sha256: str
    lines: int
    blank_lines: int
    documents: int
    tokens: int
    text_bytes: int
    sources: list[str]
    rejected: dict[str, int]
    dropped: dict[str, int]
    checked_documents: int
    sections: dict[str, tuple[int, int]]
    bytes: int
    sha256: str
    extra_records: int = 0
    members: tuple[Member, ...] = ()

    @property
    def key(self) -> UnitKey:
        return UnitKey(self.file, self.block)


class UnitStore:
    """The folder of committed units of a job, on a disk that all workers share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def part_path(self, key: UnitKey) -> Path:
        return self.folder / f"{key}.part"

    def record_path(self, key: UnitKey) -> Path:
        return self.folder / f"{key}.json"

    def commit(self, fields: Mapping[str, Any], sections: Mapping[str, npt.NDArray[Any] | bytes]) -> UnitRecord:
        """Write the part file, sync it to disk, and only then write its record."""
        key = UnitKey(fields["file"], fields["block"])
        digest = sha256()
        places: dict[str, tuple[int, int]] = {}
        end = 0
        with atomic_write(self.part_path(key)) as file:
            for name, section in sections.items():
                data = np.frombuffer(section, dtype=np.uint8).data
                digest.update(data)
                file.write(data)
                places[name] = (end, data.nbytes)
                end += data.nbytes
        record = UnitRecord(**fields, sections=places, bytes=end, sha256=digest.hexdigest())
        with atomic_write(self.record_path(key)) as file:
            file.write(readable_json(record.model_dump()))
        return record

    def records(self) -> Iterator[UnitRecord]:
        """The committed units in plan order. A record that does not parse counts as not committed."""
        for path in sorted(self.folder.iterdir()):
            if _RECORD.fullmatch(path.name):
                try:
                    yield UnitRecord.model_validate_json(path.read_bytes())
                except ValidationError:
                    continue

    def is_whole(self, record: UnitRecord) -> bool:
        """True if the part file still has the committed bytes; reads all of it."""
        path = self.part_path(record.key)
        return path.is_file() and path.stat().st_size == record.bytes and sha256_file(path) == record.sha256

    def discard(self, key: UnitKey) -> None:
        """Delete a unit: the record first, so that a record never exists without its part."""
        self.record_path(key).unlink(missing_ok=True)
        self.part_path(key).unlink(missing_ok=True)

    def discard_all(self) -> None:
        """Delete all units and the temporary files of interrupted writers."""
        for record in sorted(self.folder.glob("*.json")):
            record.unlink()
        for path in self.folder.iterdir():
            path.unlink(missing_ok=True)

    def section(self, record: UnitRecord, name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """One section of a unit's part file; empty if the unit has no section of that name."""
        offset, size = record.sections.get(name, (0, 0))
        if not size:
            return np.empty(0, dtype=dtype)
        count = size // np.dtype(dtype).itemsize
        return np.fromfile(self.part_path(record.key), dtype=dtype, count=count, offset=offset)
