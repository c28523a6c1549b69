"""The work on one unit, without Ray: a block of lines becomes parsed, filtered, split and tokenized documents."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from data_prep.dataset.indexed_dataset import token_dtype
from data_prep.files import canonical_json, sha256_file
from data_prep.filters.rules import Filters
from data_prep.readers.blocks import Block, lines_of
from data_prep.readers.input_files import SPLITS, HashSplit, InputFile
from data_prep.readers.records import Document, Rejected, records_of_line
from data_prep.tokenization.backends import Backend, BackendMismatchError, FastBackend, ReferenceBackend, check_same_ids
from data_prep.tokenization.tokenizer import TokenizerError, eos_id, load_tokenizer, num_ids
from data_prep.units.store import DIGESTS, DOCUMENT_DTYPE, DOCUMENTS, QUARANTINE, Member, UnitRecord, UnitStore

DIGEST_BYTES = 16

# One call to the tokenizer: large enough to amortise its cost, small enough for its memory (with the reference up to 100
# bytes per token).
_BATCH_DOCUMENTS = 512
_BATCH_BYTES = 1 << 20
# In every 16th batch, the start of one document is also encoded by the reference: about 0.1 % of the text. The reference
# has about 1/40 of the fast backend's speed.
_CHECKED_BATCHES = 16
_CHECKED_CHARACTERS = 16_384


@dataclass(frozen=True, kw_only=True)
class UnitSettings:
    """The settings that all units of a run share. `units`: the folder of committed units, on a disk that all workers share."""

    tokenizer: Path
    tokenizer_sha256: str
    fast: bool
    hash_split: HashSplit
    max_record_bytes: int
    unit_bytes: int
    units: Path
    filters: Filters
    digests: bool = False


@dataclass(kw_only=True)
class _Unit:
    """The content of a unit so far. `tokens`: by split, in document order."""

    documents: list[tuple[int, int, int, int]] = field(default_factory=list)  # tokens, bytes, source, split
    tokens: dict[int, list[npt.NDArray[Any]]] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    digests: list[bytes] = field(default_factory=list)
    quarantine: list[bytes] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    num_lines: int = 0
    blank_lines: int = 0
    extra_records: int = 0
    checked_documents: int = 0


def raw_sha256(block: Block) -> str:
    """The hash by which a resumed run recognises a block: of its bytes, its too long lines and its damage."""
    digest = sha256(block.data.data)
    digest.update(repr((block.too_long, block.damage)).encode())
    return digest.hexdigest()


def tokenize_unit(file: InputFile, block: Block, settings: UnitSettings) -> UnitRecord:
    """Do one unit and commit it. Line numbers in its quarantine count from 1 at the first line of the unit.

    Raises BackendMismatchError if the fast backend gives a wrong result, OSError if the disk is full.
    """
    builder = UnitBuilder(file, settings)
    builder.add(file, block)
    return builder.commit(block.index, raw_sha256(block))


class UnitBuilder:
    """Collects the documents of a unit: of one block, or of several small files that go to the same split as `file`."""

    def __init__(self, file: InputFile, settings: UnitSettings) -> None:
        tokenizer = _cached_tokenizer(settings.tokenizer, settings.tokenizer_sha256)
        self._backends = _cached_backends(settings.tokenizer, settings.tokenizer_sha256, settings.fast)
        self._dtype, self._eos = token_dtype(num_ids(tokenizer)), eos_id(tokenizer)
        self._file = file
        self._settings = settings
        self._unit = _Unit()
        self._batch: list[tuple[bytes, int]] = []
        self._batch_bytes = self._num_batches = 0
        self.raw_bytes = 0

    def add(self, file: InputFile, block: Block) -> None:
        """Add the records of a block of `file`."""
        unit = self._unit
        self.raw_bytes += block.data.nbytes
        for line in lines_of(block, self._settings.max_record_bytes):
            unit.num_lines += 1
            records = records_of_line(line, file.name, starts_file=block.index == 0 and line.number == 1)
            unit.blank_lines += not records
            unit.extra_records += max(0, len(records) - 1)
            for record in records:
                self._add_record(record)

    def _add_record(self, record: Document | Rejected) -> None:
        unit = self._unit
        if not isinstance(record, Document):
            unit.quarantine.append(canonical_json(record.as_json()) + b"\n")
            unit.rejected[record.reason] += 1
        elif reason := self._settings.filters.why_dropped(record):
            unit.dropped[reason] += 1
        else:
            text = record.text.encode("utf-8")
            self._batch.append((text, unit.sources.setdefault(record.source, len(unit.sources))))
            self._batch_bytes += len(text)
            if len(self._batch) >= _BATCH_DOCUMENTS or self._batch_bytes >= _BATCH_BYTES:
                self._flush()

    def _flush(self) -> None:
        batch = _without_contaminated(self._batch, self._unit, self._file, self._settings)
        if batch:
            sampled = self._num_batches % _CHECKED_BATCHES == 0
            _encode(batch, self._unit, self._file, self._settings, self._backends, self._dtype, self._eos, sampled)
        self._batch, self._batch_bytes, self._num_batches = [], 0, self._num_batches + 1

    def commit(self, index: int, sha256: str, members: Sequence[Member] = ()) -> UnitRecord:
        """Commit the unit as number `index` of its file, or as the bundle of `members`. `sha256` identifies its input."""
        self._flush()
        unit = self._unit
        documents = np.array(unit.documents, dtype=DOCUMENT_DTYPE)
        sections: dict[str, npt.NDArray[Any] | bytes] = {
            f"{SPLITS[split]}.tokens": np.concatenate(parts) for split, parts in sorted(unit.tokens.items())
        }
        sections[DOCUMENTS] = documents
        if self._settings.digests:
            sections[DIGESTS] = b"".join(unit.digests)
        sections[QUARANTINE] = b"".join(unit.quarantine)
        fields = {
            "file": members[0].file if members else self._file.index,
            "block": index,
            "raw_bytes": self.raw_bytes,
            "raw_sha256": sha256,
            "lines": unit.num_lines,
            "blank_lines": unit.blank_lines,
            "extra_records": unit.extra_records,
            "documents": len(documents),
            "tokens": int(documents["tokens"].sum(dtype=np.int64)),
            "text_bytes": int(documents["bytes"].sum()),
            "sources": list(unit.sources),
            "rejected": dict(unit.rejected),
            "dropped": dict(unit.dropped),
            "checked_documents": unit.checked_documents,
            "members": tuple(members),
        }
        return UnitStore(self._settings.units).commit(fields, sections)


def _without_contaminated(
    batch: list[tuple[bytes, int]], unit: _Unit, file: InputFile, settings: UnitSettings
) -> list[tuple[bytes, int]]:
    if settings.filters.references is None or not file.may_hold_training_text:
        return batch
    training = [number for number, (text, _) in enumerate(batch) if file.split or settings.hash_split(text) == "train"]
    reasons = settings.filters.contaminated([batch[number][0] for number in training])
    unit.dropped.update(reasons.values())
    dropped = {training[number] for number in reasons}
    return [document for number, document in enumerate(batch) if number not in dropped]


def _encode(
    batch: list[tuple[bytes, int]],
    unit: _Unit,
    file: InputFile,
    settings: UnitSettings,
    backends: tuple[Backend, Backend],
    dtype: np.dtype[Any],
    eos: int,
    sampled: bool,
) -> None:
    texts = [text for text, _ in batch]
    backend, reference = backends
    ids, lengths = backend.encode(texts)
    if sampled and backend is not reference:
        _check_one(texts, ids, lengths, backend, reference)
        unit.checked_documents += 1
    ends = np.cumsum(lengths)
    tokens = np.insert(ids.astype(dtype), ends, eos)
    lengths = lengths + 1
    if file.split:
        splits = np.full(len(batch), SPLITS.index(file.split), dtype=np.uint8)
    else:
        splits = np.array([SPLITS.index(settings.hash_split(text)) for text in texts], dtype=np.uint8)
    present = np.unique(splits).tolist()
    for split in present:
        mine = tokens if len(present) == 1 else tokens[np.repeat(splits == split, lengths)]
        unit.tokens.setdefault(split, []).append(mine)
    for (text, source), length, split in zip(batch, lengths.tolist(), splits.tolist(), strict=True):
        unit.documents.append((length, len(text), source, split))
    if settings.digests:
        unit.digests += [blake2b(text, digest_size=DIGEST_BYTES).digest() for text in texts]


def _check_one(
    texts: list[bytes], ids: npt.NDArray[Any], lengths: npt.NDArray[np.int64], backend: Backend, reference: Backend
) -> None:
    """Compare the ids of one document of a batch, the median by size, with the reference; of a long document only its start."""
    number = sorted(range(len(texts)), key=lambda i: len(texts[i]))[len(texts) // 2]
    text = texts[number]
    if len(text) > _CHECKED_CHARACTERS:
        check_same_ids(backend, reference, [text.decode("utf-8")[:_CHECKED_CHARACTERS].encode("utf-8")])
        return
    start = int(lengths[:number].sum())
    if not np.array_equal(ids[start : start + lengths[number]], reference.encode([text])[0]):
        raise BackendMismatchError(f"{backend.name} and {reference.name} differ on {text[:100]!r}")


@lru_cache(maxsize=1)
def _cached_tokenizer(path: Path, sha256: str) -> Tokenizer:
    # The hash is part of the key: a worker may outlive a run, and the next run may have another file at this path.
    if sha256_file(path) != sha256:
        raise TokenizerError(f"{path}: not the file that the run started with; workers need a shared disk")
    return load_tokenizer(path)


@lru_cache(maxsize=1)
def _cached_backends(path: Path, sha256: str, fast: bool) -> tuple[Backend, Backend]:
    reference = ReferenceBackend(_cached_tokenizer(path, sha256))
    return (FastBackend(_cached_tokenizer(path, sha256)) if fast else reference), reference
