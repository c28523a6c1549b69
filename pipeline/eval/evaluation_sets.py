"""Held-out text by source: the same rows for every run.

Each document of a split is cut into windows of a row's length, every window inside one document. Of the windows that are long
enough, a fixed number of each source is chosen by a permutation that does not depend on a run's seed. So a set is a function of
the dataset folder, the row length and the number of rows only.

The source of each document is in `<split>.sources.npy` beside the tokens: uint16, one number a document, an index into the
sorted names of the split's sources in the manifest. A split with one source needs no such file. Without it, all documents form
one set.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.dataset.indexed_dataset import TokenFile, sequence_offsets
from data_prep.dataset.manifest import Manifest, sources_file
from data_prep.dataset.packing import pack
from data_prep.files import canonical_json, sha256_bytes
from pipeline.data.permutation import permute
from pipeline.data.rows import ChosenRows, open_tokens, stream_fingerprint

ALL = "all"


def evaluation_sets(
    folder: Path, split: str, row_length: int, rows_per_source: int, shortest: int = 1, required: bool = True
) -> dict[str, ChosenRows]:
    """At most `rows_per_source` windows of each source, of `shortest` to `row_length` tokens. Sources without one are left out.

    Raises ValueError if no window is long enough (unless `required` is false), or if `<split>.sources.npy` does not fit.
    """
    tokens, manifest = open_tokens(folder, split)
    lengths = TokenFile(folder / split).lengths
    names, source_of_document = document_sources(folder, split, manifest, len(lengths))
    windows = pack(lengths, row_length, "document")
    document = np.searchsorted(sequence_offsets(lengths), windows.start, side="right") - 1
    source_of_window = source_of_document[document]
    base = {"tokens": stream_fingerprint(manifest), "split": split, "row_length": row_length}
    sets = {}
    for number, name in enumerate(names):
        found = np.flatnonzero((source_of_window == number) & (windows.length >= shortest))
        if not len(found):
            continue
        count = min(rows_per_source, len(found))
        chosen = np.sort(found[permute(np.arange(count, dtype=np.int64), len(found), f"evaluation/{name}")])
        starts, sizes = windows.start[chosen], windows.length[chosen]
        fingerprint = sha256_bytes(canonical_json({**base, "starts": starts.tolist(), "lengths": sizes.tolist()}))
        sets[name] = ChosenRows(tokens, starts, sizes, row_length, fingerprint)
    if not sets and required:
        raise ValueError(
            f"no document of {folder}'s {split} split has {shortest} tokens: prepare longer text, or shorten the row"
        )
    return sets


def document_sources(folder: Path, split: str, manifest: Manifest, num_documents: int) -> tuple[list[str], NDArray[np.integer]]:
    """The names of a split's sources, and each document's index into them. One name, ALL, if sources are not recorded."""
    names = sorted(manifest.splits[split].sources)
    path = folder / sources_file(split)
    if len(names) == 1 or not path.is_file():
        return names if len(names) == 1 else [ALL], np.zeros(num_documents, dtype=np.uint16)
    numbers = np.load(path, mmap_mode="r", allow_pickle=False)
    if numbers.dtype != np.uint16 or numbers.shape != (num_documents,) or int(numbers.max(initial=0)) >= len(names):
        raise ValueError(
            f"{path}: {numbers.dtype}{numbers.shape} does not number the sources of {num_documents} documents from "
            f"{len(names)} names as uint16; prepare again"
        )
    return names, numbers
