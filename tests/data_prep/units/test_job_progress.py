"""Progress costs the same for any number of files, and is told a few times a second."""

from pathlib import Path

import pytest

from data_prep.readers.input_files import InputFile
from data_prep.units import job_progress
from data_prep.units.job_progress import Clock, Progress
from data_prep.units.reader import FileEnd
from data_prep.units.store import UnitRecord


class _Files(list[InputFile]):
    """Counts how often it is read as a whole."""

    reads = 0

    def __iter__(self):  # type: ignore[no-untyped-def]
        self.reads += 1
        return super().__iter__()


def _files(number: int) -> _Files:
    return _Files(
        InputFile(index=i, split=None, path=Path(f"/{i}.jsonl"), name=str(i), bytes=150, version="") for i in range(number)
    )


def test_the_number_of_units_is_summed_once_and_corrected_by_every_end() -> None:
    told: list[Progress] = []
    files = _files(100)
    clock = Clock(files, 100, told.append)
    for i in range(40):
        clock.add_end(FileEnd(file=i, bytes=1, sha256="", blocks=(0, 1, 2)))
        clock.notify()
    assert told[-1].num_units == 40 * 3 + 60 * 2
    clock.add_end(FileEnd(file=0, bytes=1, sha256="", blocks=()))
    clock.notify()
    assert told[-1].num_units == 1 + 39 * 3 + 60 * 2
    assert files.reads == 1


def test_a_listener_is_told_new_stages_and_notes_at_once_and_the_rest_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_progress, "_SECONDS_BETWEEN", 1000)
    told: list[Progress] = []
    clock = Clock(_files(3), 100, told.append)
    with clock.stage("tokenize"):
        for _ in range(1000):
            clock.notify()
        clock.note = "slow"
        for _ in range(1000):
            clock.notify()
    with clock.stage("pack"):
        clock.notify()
    assert [(progress.stage, progress.note) for progress in told] == [
        ("tokenize", None),
        ("tokenize", "slow"),
        ("pack", "slow"),
    ]


def test_units_of_earlier_runs_count_as_done_and_not_for_the_rate() -> None:
    told: list[Progress] = []
    clock = Clock(_files(10), 100, told.append)
    clock.add([_record(0, 1000), _record(1, 500)], resumed=True)
    clock.notify()
    clock.add([_record(2, 70)])
    clock.notify()
    seen = [(progress.units_done, progress.total.bytes, progress.resumed_bytes, progress.rejected) for progress in told]
    assert seen[-1] == (3, 1570, 1500, 6)
    assert seen[0] == (2, 1500, 1500, 4)


def _record(file: int, text_bytes: int) -> UnitRecord:
    fields = {"file": file, "block": 0, "raw_bytes": text_bytes, "raw_sha256": "", "lines": 3, "blank_lines": 0}
    fields |= {"documents": 1, "tokens": 1, "text_bytes": text_bytes, "sources": ["a"], "rejected": {"empty text": 2}}
    return UnitRecord.model_validate(
        {**fields, "dropped": {}, "checked_documents": 0, "sections": {}, "bytes": 0, "sha256": ""}
    )
