"""Remarks for the user on a finished dataset: missing sources, settings that matched nothing, damaged files."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

import orjson

from data_prep.config import PrepareConfig
from data_prep.dataset.manifest import SplitRecord
from data_prep.filters import pile
from data_prep.readers.streams import CORRUPT, DAMAGES, TRUNCATED


def missing_sources(config: PrepareConfig, splits: Mapping[str, SplitRecord], dropped: Mapping[str, int]) -> list[str]:
    """One line that names the expected sources without a document, and how many documents were excluded by name."""
    kept = {source for split in splits.values() for source in split.sources}
    expected = list(pile.COMPONENTS) if config.expected_sources == "pile" else config.expected_sources
    missing = [source for source in expected if source not in kept]
    if not missing:
        return []
    excluded = {source: dropped.get(f"source {source}", 0) for source in missing}
    named = [f"{source} ({count:,} documents excluded by name)" if count else source for source, count in excluded.items()]
    return [f"{len(missing)} of {len(expected)} expected sources are missing: {', '.join(named)}"]


def unknown_source_names(config: PrepareConfig, splits: Mapping[str, SplitRecord], dropped: Mapping[str, int]) -> list[str]:
    """One line per source name in the settings that no document of the input has: usually a typing mistake."""
    met = {source for split in splits.values() for source in split.sources}
    met |= {reason.removeprefix("source ") for reason in dropped if reason.startswith("source ")}
    epochs = config.mixture.epochs if config.mixture else None
    given = {
        "include_sources": config.include_sources or [],
        "exclude_sources": config.exclude_sources,
        "mixture.epochs": list(epochs) if isinstance(epochs, dict) else [],
    }
    lines = []
    for key, names in given.items():
        # Not for The Pile's components: its recipes name components that most copies no longer have.
        for name in [name for name in names if name not in met and name not in pile.COMPONENTS]:
            near = get_close_matches(name, met, n=1)
            lines.append(f"{key}: no document has source {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return lines


def damaged_files(quarantine: Path) -> list[str]:
    """One line per truncated or corrupt file, because its single quarantined record does not show how much is lost."""
    with open(quarantine, "rb") as lines:
        rejected = [orjson.loads(line) for line in lines if any(damage.encode() in line for damage in DAMAGES)]
    what = {
        TRUNCATED: "everything after line {line} is lost",
        # A checksum follows the bytes that it covers, so decoders notice wrong bits late.
        CORRUPT: "damage was noticed at line {line}; text before it may be wrong, text after it is lost: fetch the file again",
    }
    return [
        f"{bad['file']} is {bad['reason']}: {what[bad['reason']].format(line=bad['line'])}"
        + (f" ({bad['detail']})" if bad.get("detail") else "")
        for bad in rejected
        if bad["reason"] in DAMAGES
    ]
