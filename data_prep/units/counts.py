"""What became of every record that a run read, and the checks that stop a run before it makes a bad dataset."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from data_prep.dataset.manifest import SplitRecord
from data_prep.units.job import PrepareError
from data_prep.units.store import UnitRecord

_SHOWN_REJECTIONS = 3
MAX_SOURCES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class RecordCounts:
    """Counts over all units: `records` that were read (blank lines are none), of which `rejected` and `dropped` by reason."""

    records: int
    blank_lines: int
    rejected: Counter[str]
    dropped: Counter[str]


def count_records(units: Sequence[UnitRecord]) -> RecordCounts:
    """The counts of all units, summed."""
    return RecordCounts(
        records=sum(unit.lines - unit.blank_lines + unit.extra_records for unit in units),
        blank_lines=sum(unit.blank_lines for unit in units),
        rejected=sum((Counter(unit.rejected) for unit in units), Counter()),
        dropped=sum((Counter(unit.dropped) for unit in units), Counter()),
    )


def validate_bad_share(counts: RecordCounts, max_bad_share: float, quarantine: Path, work_folder: Path) -> None:
    """Raise PrepareError, showing the first rejected records, if their share is above `max_bad_share`."""
    num_rejected = counts.rejected.total()
    if num_rejected <= max_bad_share * counts.records:
        return
    with open(quarantine, "rb") as lines:
        first = [orjson.loads(line) for line, _ in zip(lines, range(_SHOWN_REJECTIONS), strict=False)]
    shown = "; ".join(f"{bad['file']} line {bad['line']}: {bad['reason']} {bad['first_bytes'][:60]!r}" for bad in first)
    raise PrepareError(
        f"{num_rejected} of {counts.records} records are bad, above max_bad_share {max_bad_share}: {shown}. "
        f"All of them are in {quarantine}. Raise max_bad_share and rerun the same command to resume; or fix the input, "
        f"delete {work_folder} and start over"
    )


def validate_num_sources(sources: Collection[str]) -> None:
    """Raise PrepareError if there are more sources than the dataset's format can number."""
    if len(sources) > MAX_SOURCES:
        raise PrepareError(
            f"more than {MAX_SOURCES:,} sources, one of them {max(sources, key=len)!r}: meta.pile_set_name names kinds of "
            "text, not single documents; remove it from the input"
        )


def validate_training_split(splits: Mapping[str, SplitRecord], left_out: Counter[str]) -> None:
    """Raise PrepareError, naming the most frequent reasons in `left_out`, if no document is left to train on."""
    if "train" in splits:
        return
    named = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common(5))
    remedy = f"relax the settings that left documents out ({named})" if named else "add input or lower val_share and test_share"
    raise PrepareError(f"the input has no document for the train split; {remedy}")
