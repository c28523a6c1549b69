"""The progress of a preparation: stages are timed, finished units are counted, and a listener is notified."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from data_prep.dataset.manifest import SourceCounts
from data_prep.readers.input_files import InputFile
from data_prep.units.reader import FileEnd
from data_prep.units.store import UnitRecord

# The usual compression ratio of text, to estimate the number of units of a file that was not read to its end yet.
_COMPRESSION = 3
_SECONDS_BETWEEN = 0.2


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a run.

    `num_units` is an estimate until every file was read to its end. `total` counts finished units; `resumed_bytes` of its
    bytes are from earlier runs. `seconds` count from the start of this run. `note` is a message for the user.
    """

    stage: str
    units_done: int
    num_units: int
    total: SourceCounts
    rejected: int
    seconds: float
    resumed_bytes: int = 0
    note: str | None = None


class Clock:
    """Times the stages of a run, counts finished units and notifies the listener."""

    def __init__(self, files: Sequence[InputFile], unit_bytes: int, listener: Callable[[Progress], None] | None) -> None:
        self.stage_seconds: dict[str, float] = {}
        self.note: str | None = None
        self._resumed_bytes = 0
        self._unit_bytes = unit_bytes
        self._listener = listener
        self._begin = time.perf_counter()
        self._done = 0
        self._total = SourceCounts()
        self._rejected = 0
        # Of a file that was read to its end the true number, else an estimate; their sum is kept, not computed again.
        self._num_units = {file.index: self._estimate(file) for file in files}
        self._sum = sum(self._num_units.values())
        self._stage = ""
        self._told: tuple[str, str | None] = ("", None)
        self._next_time = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block under `name`; a block that raises is not recorded."""
        begin = time.perf_counter()
        self._stage = name
        self.notify()
        yield
        self.stage_seconds[name] = round(time.perf_counter() - begin, 3)

    def add(self, records: Iterable[UnitRecord], resumed: bool = False) -> None:
        """Count finished units, each file of a bundle as one; `resumed`: they were finished by earlier runs."""
        for record in records:
            self._done += max(1, len(record.members))
            self._total += SourceCounts(documents=record.documents, tokens=record.tokens, bytes=record.text_bytes)
            self._rejected += sum(record.rejected.values())
        if resumed:
            self._resumed_bytes = self._total.bytes

    def start_over(self) -> None:
        """Forget all finished units: they are done again."""
        self._done = self._rejected = self._resumed_bytes = 0
        self._total = SourceCounts()

    def add_end(self, end: FileEnd) -> None:
        """Record the true number of units of a file."""
        num_units = max(1, len(end.blocks))
        self._sum += num_units - self._num_units[end.file]
        self._num_units[end.file] = num_units

    def notify(self) -> None:
        """Call the listener with the current progress: at once for a new stage or note, else a few times a second."""
        now = time.perf_counter()
        if self._listener is None or (now < self._next_time and self._told == (self._stage, self.note)):
            return
        self._told = (self._stage, self.note)
        self._next_time = now + _SECONDS_BETWEEN
        self._listener(
            Progress(
                stage=self._stage,
                units_done=self._done,
                num_units=max(self._sum, self._done),
                total=self._total,
                rejected=self._rejected,
                seconds=now - self._begin,
                resumed_bytes=self._resumed_bytes,
                note=self.note,
            )
        )

    def _estimate(self, file: InputFile) -> int:
        raw_bytes = file.bytes if file.is_plain else file.bytes * _COMPRESSION
        return max(1, -(-raw_bytes // self._unit_bytes))
