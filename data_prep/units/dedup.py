"""Exact deduplication of the whole corpus in bounded memory: digests are spread over buckets on disk and sorted by bucket.

Of equal texts one copy is kept: the one in test, else in val, else in train, so that no training text is in evaluation; in
that split the first. A digest has 128 bits: among 10^9 texts the probability of a false match is 10^-21.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.units.store import DIGESTS, DOCUMENT_DTYPE, DOCUMENTS, UnitKey, UnitRecord, UnitStore
from data_prep.units.tokenize_unit import DIGEST_BYTES

_ENTRY = np.dtype([("high", ">u8"), ("low", ">u8"), ("document", "<i8"), ("split", "u1")])
_BUCKET_DOCUMENTS = 2_000_000  # about 66 MB of entries, and as much again to sort them


def kept_documents(records: Sequence[UnitRecord], store: UnitStore, scratch: Path) -> dict[UnitKey, npt.NDArray[np.uint8]]:
    """For each unit, whether each document is kept: 1 or 0, uint8 (documents,).

    Memory: one byte per document and the entries of one bucket. The buckets are written to the folder `scratch` and deleted.
    """
    num_documents = sum(record.documents for record in records)
    num_buckets = -(-num_documents // _BUCKET_DOCUMENTS) or 1
    buckets = [scratch / f"digests.{number:05d}" for number in range(num_buckets)]
    for bucket in buckets:
        bucket.unlink(missing_ok=True)
    try:
        begin = 0
        for record in records:
            _scatter(record, store, begin, buckets)
            begin += record.documents
        kept = np.ones(num_documents, dtype=np.uint8)
        for bucket in buckets:
            if bucket.exists():
                _drop_duplicates(np.fromfile(bucket, dtype=_ENTRY), kept)
    finally:
        for bucket in buckets:
            bucket.unlink(missing_ok=True)
    bounds = np.cumsum([record.documents for record in records])[:-1]
    return {record.key: mask for record, mask in zip(records, np.split(kept, bounds), strict=True)}


def _scatter(record: UnitRecord, store: UnitStore, begin: int, buckets: Sequence[Path]) -> None:
    digests = store.section(record, DIGESTS, np.uint8).reshape(-1, DIGEST_BYTES).view(">u8")  # (documents, 2)
    entries = np.empty(len(digests), dtype=_ENTRY)
    entries["high"], entries["low"] = digests[:, 0], digests[:, 1]
    entries["document"] = np.arange(begin, begin + len(digests))
    entries["split"] = store.section(record, DOCUMENTS, DOCUMENT_DTYPE)["split"]
    place = digests[:, 0].astype(np.uint64) % np.uint64(len(buckets))
    for number in np.unique(place).tolist():
        with open(buckets[number], "ab") as file:
            file.write(entries[place == number].tobytes())


def _drop_duplicates(entries: npt.NDArray[np.void], kept: npt.NDArray[np.uint8]) -> None:
    """Set `kept` to 0 for all but the first document of each digest, in the order test, val, train."""
    order = np.lexsort((entries["document"], -entries["split"].astype(np.int8), entries["low"], entries["high"]))
    entries = entries[order]
    repeated = (entries["high"][1:] == entries["high"][:-1]) & (entries["low"][1:] == entries["low"][:-1])
    kept[entries["document"][1:][repeated]] = 0
