"""The work on one unit, in one process and without Ray: read, check, split, tokenize, and leave part files.

For unit 7 the parts are `00007.<split>.tokens` (ids in the dataset's dtype), `00007.<split>.lengths` (int32) for each
split that got documents, and `00007.quarantine`. They depend on the unit alone, so doing one twice is harmless.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tokenizers import Tokenizer

from data_prep.files import canonical_json, sha256_file
from data_prep.indexed_dataset import token_dtype
from data_prep.manifest import SourceCounts
from data_prep.records import Document, RecordReader, Rejected
from data_prep.tokenizer import TokenizerError, eos_id, load_tokenizer, num_ids
from data_prep.work_units import HashSplit, Split, WorkUnit

# One call to the tokenizer: enough to amortise it, little enough that its bookkeeping (about 100 bytes a token) is small.
_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class UnitSettings:
    """What every unit of a run shares. `folder` is where parts go; it must be on a disk that all workers see."""

    tokenizer: Path
    tokenizer_sha256: str
    hash_split: HashSplit
    max_record_bytes: int
    folder: Path


@dataclass
class UnitResult:
    """What a unit found; its parts are on disk."""

    unit: WorkUnit
    bytes: int
    sha256: str
    sources: dict[Split, dict[str, SourceCounts]] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    blank_lines: int = 0

    @property
    def total(self) -> SourceCounts:
        """Counts over all splits and sources."""
        return sum((counts for split in self.sources.values() for counts in split.values()), SourceCounts())


def part_path(folder: Path, unit: WorkUnit, part: str) -> Path:
    """Where a unit leaves a part: "train.tokens", "train.lengths", …, "quarantine"."""
    return folder / f"{unit.index:05d}.{part}"


def tokenize_unit(unit: WorkUnit, settings: UnitSettings) -> UnitResult:
    """Do one unit, overwriting parts that an earlier attempt left."""
    tokenizer = _cached_tokenizer(settings.tokenizer, settings.tokenizer_sha256)
    dtype, eos = token_dtype(num_ids(tokenizer)), eos_id(tokenizer)
    result = UnitResult(unit, bytes=unit.path.stat().st_size, sha256=sha256_file(unit.path))
    reader = RecordReader(unit.path, unit.name, settings.max_record_bytes)
    with ExitStack() as stack:
        parts: dict[Split, _Part] = {}
        quarantine = stack.enter_context(open(part_path(settings.folder, unit, "quarantine"), "wb"))
        for batch in _batches(_documents(reader, quarantine, result)):
            encodings = tokenizer.encode_batch_fast([document.text for document in batch], add_special_tokens=False)
            for document, encoding in zip(batch, encodings, strict=True):
                text = document.text.encode("utf-8")
                split = unit.split or settings.hash_split(text)
                if split not in parts:
                    parts[split] = stack.enter_context(_Part(settings.folder, unit, split, dtype))
                ids = [*encoding.ids, eos]
                parts[split].add(ids)
                counts = result.sources.setdefault(split, {})
                seen = SourceCounts(documents=1, tokens=len(ids), bytes=len(text))
                counts[document.source] = counts.get(document.source, SourceCounts()) + seen
    result.blank_lines = reader.num_blank_lines
    return result


class _Part:
    """The open part files of one split."""

    def __init__(self, folder: Path, unit: WorkUnit, split: Split, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._lengths = array("i")
        self._tokens = open(part_path(folder, unit, f"{split}.tokens"), "wb")  # noqa: SIM115 (closed in __exit__)
        self._lengths_path = part_path(folder, unit, f"{split}.lengths")

    def add(self, ids: list[int]) -> None:
        self._tokens.write(np.array(ids, dtype=self._dtype).data)
        self._lengths.append(len(ids))

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, *_: object) -> None:
        self._tokens.close()
        self._lengths_path.write_bytes(np.array(self._lengths, dtype="<i4").tobytes())


def _documents(reader: RecordReader, quarantine: BinaryIO, result: UnitResult) -> Iterator[Document]:
    """Pass documents on; count rejected records and write them down."""
    for record in reader:
        if isinstance(record, Rejected):
            quarantine.write(canonical_json(vars(record)) + b"\n")
            result.rejected[record.reason] += 1
        else:
            yield record


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@lru_cache(maxsize=1)
def _cached_tokenizer(path: Path, sha256: str) -> Tokenizer:
    # The hash belongs to the key: a worker may outlive a run, and the next one may have another file at this path.
    if sha256_file(path) != sha256:
        raise TokenizerError(f"{path}: not the file that the run started with; workers need one shared disk")
    return load_tokenizer(path)
