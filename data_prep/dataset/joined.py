"""What several parts of a split have together: counts and lengths by source, and the source of each document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.dataset.manifest import SourceCounts


@dataclass(frozen=True)
class SourceNumbers:
    """The source of each document of a part: uint16 (documents,), an index into the sorted `names`."""

    names: Sequence[str]
    of_document: npt.NDArray[np.uint16]


def joined_source_numbers(parts: Sequence[SourceNumbers]) -> npt.NDArray[np.uint16]:
    """The source of each document of all parts, one part after another: uint16, an index into all their names, sorted."""
    places = {name: place for place, name in enumerate(sorted({name for part in parts for name in part.names}))}
    return np.concatenate(
        [np.array([places[name] for name in part.names], dtype=np.uint16)[part.of_document] for part in parts]
    )


def summed_counts(tables: Sequence[Mapping[str, SourceCounts]]) -> dict[str, SourceCounts]:
    """The counts of each source in all tables together."""
    sources: dict[str, SourceCounts] = {}
    for table in tables:
        for source, counts in table.items():
            sources[source] = sources.get(source, SourceCounts()) + counts
    return sources


def summed_histograms(tables: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, list[int]]:
    """The histogram of each source in all tables together; a shorter one has no long documents."""
    histograms: dict[str, list[int]] = {}
    for table in tables:
        for source, bins in table.items():
            before = histograms.get(source, [])
            size = max(len(before), len(bins))
            padded = [[*values, *[0] * (size - len(values))] for values in (before, bins)]
            histograms[source] = [a + b for a, b in zip(*padded, strict=True)]
    return histograms
