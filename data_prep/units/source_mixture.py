"""How often each source is read in training: epochs, given directly or computed from weights.

With 2.5 epochs each training document of a source appears twice, and half of them, chosen by a hash, a third time. The
corpus is written in passes, each in the order of the files, so that copies of a document are far apart.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from data_prep.config import SourceMixtureConfig
from data_prep.dataset.manifest import SourceCounts
from data_prep.filters import pile
from data_prep.readers.input_files import SPLITS, InputFile
from data_prep.readers.records import Document, read_records
from data_prep.splitmix64 import outputs, unit_interval
from data_prep.units.assemble import Copies
from data_prep.units.job import PrepareError
from data_prep.units.store import DOCUMENT_DTYPE, DOCUMENTS, UnitKey, UnitRecord, UnitStore

_TRAIN = SPLITS.index("train")
_LOOKED_AT_DOCUMENTS = 1000
_LOOKED_AT_BYTES = 16_000_000


def validate_unmixed_files(files: Sequence[InputFile], mixture: SourceMixtureConfig, max_record_bytes: int) -> None:
    """Raise PrepareError if the official mixture is configured and the start of a file shows that it is already mixed.

    The Pile's own shards are mixed: each has all components, repeated by their epochs and shuffled.
    """
    if not mixture.is_official:
        return
    for file in files:
        if file.may_hold_training_text:
            found = _components_at_start(file, max_record_bytes)
            if len(found) > 1:
                shown = ", ".join(sorted(found)[:3]) + ("…" if len(found) > 3 else "")
                raise PrepareError(
                    f"{file}: its first documents come from {len(found)} components of The Pile ({shown}), so it was "
                    "already mixed by the official weights; applying them again would square them. Remove `mixture`, or give "
                    "each component as a separate file"
                )


def epochs_by_source(mixture: SourceMixtureConfig, sources: Mapping[str, SourceCounts]) -> dict[str, float]:
    """The epochs of each source of the training split.

    With weights (shares of bytes), epochs are proportional to weight / bytes. They are scaled so that every document is
    read at least once, unless a source would then be read more than `max_epochs` times: in that case they are scaled so
    that the largest is `max_epochs`. With epochs, a source that is not in the table is read once. Raises PrepareError if a
    source has no weight.
    """
    if mixture.epochs is not None:
        epochs = pile.EPOCHS if mixture.epochs == "pile" else mixture.epochs
        return {source: float(epochs.get(source, 1.0)) for source in sources}
    weights = pile.WEIGHTS if mixture.weights == "pile" else mixture.weights or {}
    if without := sorted(sources.keys() - weights.keys()):
        raise PrepareError(
            f"mixture.weights has no weight for {', '.join(map(repr, without))}: add one, or exclude the source with "
            "exclude_sources. Tokenized units are kept: rerun with a weight for every source to resume"
        )
    rates = {source: weights[source] / counts.bytes for source, counts in sources.items()}
    scale = min(1 / min(rates.values()), mixture.max_epochs / max(rates.values()))
    return {source: rate * scale for source, rate in rates.items()}


def training_sources(records: Sequence[UnitRecord], store: UnitStore, copies: Copies) -> dict[str, SourceCounts]:
    """Counts of the training split by source: each document once, documents with 0 copies not at all."""
    sources: dict[str, SourceCounts] = {}
    for record in records:
        documents = store.section(record, DOCUMENTS, DOCUMENT_DTYPE)
        mine = documents["split"] == _TRAIN
        if record.key in copies:
            mine = mine & (copies[record.key] > 0)
        for number in np.unique(documents["source"][mine]).tolist():
            rows = documents[mine & (documents["source"] == number)]
            counts = SourceCounts(
                documents=len(rows), tokens=int(rows["tokens"].sum(dtype=np.int64)), bytes=int(rows["bytes"].sum())
            )
            source = record.sources[number]
            sources[source] = sources.get(source, SourceCounts()) + counts
    return sources


def mixed_copies(
    records: Sequence[UnitRecord], store: UnitStore, kept: Copies, epochs: Mapping[str, float], seed: int
) -> dict[UnitKey, npt.NDArray[np.uint8]]:
    """For each unit, the number of copies of each document, uint8 (documents,): by `epochs` for training documents, 1 for
    others, 0 for documents with 0 copies in `kept`."""
    copies: dict[UnitKey, npt.NDArray[np.uint8]] = {}
    first = 0
    for record in records:
        documents = store.section(record, DOCUMENTS, DOCUMENT_DTYPE)
        wanted = np.array([epochs.get(source, 1.0) for source in record.sources] or [1.0])[documents["source"]]
        whole = np.floor(wanted)
        extra = _uniform(np.arange(first, first + len(documents)), seed) < wanted - whole
        number = np.where(documents["split"] == _TRAIN, whole + extra, 1).astype(np.uint8)
        if record.key in kept:
            number = number * (kept[record.key] > 0)
        copies[record.key] = number
        first += len(documents)
    return copies


def _components_at_start(file: InputFile, max_record_bytes: int) -> set[str]:
    found: set[str] = set()
    seen_bytes = seen = 0
    try:
        for record in read_records(file.path, file.name, max_record_bytes):
            if isinstance(record, Document):
                found |= {record.source} & pile.COMPONENTS.keys()
                seen, seen_bytes = seen + 1, seen_bytes + len(record.text)
            if seen >= _LOOKED_AT_DOCUMENTS or seen_bytes >= _LOOKED_AT_BYTES:
                break
    except OSError:
        pass  # a file that cannot be read is reported or skipped by the run itself
    return found


def _uniform(numbers: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.float64]:
    """A uniform number in [0, 1) for each document number, from SplitMix64: float64, same shape."""
    key = outputs(np.array([seed], dtype=np.uint64), np.zeros(1, dtype=np.int64))
    return unit_interval(outputs(key, numbers))
