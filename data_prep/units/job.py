"""The work folder of a run: enough state to resume after a kill at any time, and to refuse to resume as a different run.

`.work/job.json` describes the job, `units/` has the committed units, `files/` a record of every file that was read to its
end, and `attempts` gets one byte for every unit that is started, so that repeated work can be counted.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from data_prep.config import PrepareConfig
from data_prep.dataset.manifest import QUARANTINE_FILE
from data_prep.files import sha256_bytes, write_json_atomically
from data_prep.readers.input_files import InputFile
from data_prep.readers.locations import sha256_location
from data_prep.tokenization.tokenizer import TOKENIZER_FILE, read_given_tokenizer
from data_prep.units.reader import FileEnd, plain_block
from data_prep.units.store import UnitKey, UnitRecord, UnitStore
from data_prep.units.tokenize_unit import raw_sha256

_THREADS = 4


class PrepareError(ValueError):
    """A run that cannot start or must not finish; the message names the file and the remedy."""


def different_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys, sorted, whose values differ or that only one of the two has."""
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


class Job:
    """The work folder of one run. `decisions` are the settings that the output depends on; `base_sha256` identifies the dataset
    that the run adds to."""

    def __init__(self, folder: Path, decisions: dict[str, Any], base_sha256: str | None = None) -> None:
        self.folder = folder
        self.decisions = decisions
        self.base_sha256 = base_sha256
        self.tokenizer_file = folder / TOKENIZER_FILE
        self.quarantine_file = folder / QUARANTINE_FILE
        self.store = UnitStore(folder / "units")
        self.records: dict[UnitKey, UnitRecord] = {}
        self.ends: dict[int, FileEnd] = {}
        self.bundle_of: dict[int, UnitKey] = {}  # by file, for the files of bundles
        self._description: dict[str, Any] = {}

    @property
    def exists(self) -> bool:
        """Whether a run was begun here. `resume` checks that it was this one."""
        return self._path.is_file()

    @property
    def fast(self) -> bool:
        """Whether the fast backend has agreed with the reference so far."""
        return bool(self._description["fast"])

    @property
    def why_reference(self) -> str | None:
        """Why the reference backend is used; None if the fast one is."""
        reason: str | None = self._description["why_reference"]
        return reason

    @property
    def num_attempts(self) -> int:
        """Units started by this and earlier runs of the job, repetitions included."""
        return (self.folder / "attempts").stat().st_size

    def make_folders(self) -> None:
        """Make the folders of an empty work folder."""
        self.store.folder.mkdir()
        (self.folder / "files").mkdir()
        (self.folder / "attempts").touch()

    def begin(
        self, config: PrepareConfig, files: Sequence[InputFile], tokenizer_sha256: str, why_reference: str | None
    ) -> None:
        """Write the description of the job; from now on it can be resumed."""
        self._description = {
            **self._identity(config, files),
            "tokenizer_sha256": tokenizer_sha256,
            "versions": [file.version for file in files],
            "fast": why_reference is None,
            "why_reference": why_reference,
        }
        write_json_atomically(self._path, self._description)

    def resume(self, config: PrepareConfig, files: Sequence[InputFile]) -> int:
        """Load the committed units and discard damaged ones; returns the number of damaged units.

        Raises PrepareError, naming what differs, if another run was begun here.
        """
        self._description = orjson.loads(self._path.read_bytes())
        self._validate_same_run(config, files)
        for path in (self.folder / "files").iterdir():
            if path.suffix == ".json":
                end = orjson.loads(path.read_bytes())
                self.ends[end["file"]] = FileEnd(**{**end, "blocks": tuple(end["blocks"])})
        records = list(self.store.records())
        with ThreadPoolExecutor(_THREADS) as threads:
            whole = list(threads.map(self.store.is_whole, records))
        for record, is_whole in zip(records, whole, strict=True):
            if is_whole and not _has_gap(record):
                self.add_record(record)
            else:
                self.store.discard(record.key)
        self._validate_unchanged_inputs(files, config)
        return whole.count(False)

    def fall_back(self, reason: str) -> None:
        """Discard all units and use the reference backend from now on, because the fast one gave a different result."""
        self.store.discard_all()
        self.records.clear()
        for file in self.bundle_of:
            self.ends.pop(file, None)
        self.bundle_of.clear()
        self._description |= {"fast": False, "why_reference": reason}
        write_json_atomically(self._path, self._description)

    def count_attempt(self) -> None:
        """Append one byte for a started unit. Appends survive the death of the process and do not mix with other appends."""
        descriptor = os.open(self.folder / "attempts", os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, b".")
        finally:
            os.close(descriptor)

    def uncount_attempt(self) -> None:
        """Take back the attempt of a bundle without a file, which has no unit."""
        os.truncate(self.folder / "attempts", max(0, self.num_attempts - 1))

    def add_record(self, record: UnitRecord) -> list[FileEnd]:
        """Count a unit as committed; returns the ends of the files that it has completely, which are those of a bundle."""
        self.records[record.key] = record
        ends = [FileEnd(file=member.file, bytes=member.bytes, sha256=member.sha256, blocks=()) for member in record.members]
        for end in ends:
            self.ends[end.file] = end
            self.bundle_of[end.file] = record.key
        return ends

    def add_end(self, end: FileEnd) -> None:
        """Record that a file was read to its end."""
        self.ends[end.file] = end
        write_json_atomically(self.folder / "files" / f"{end.file:05d}.json", asdict(end))

    def forget_file(self, file: int) -> None:
        """Discard all units of a file that is skipped; the other files of its bundle are to be done again."""
        if file in self.bundle_of:
            key = self.bundle_of[file]
            self._discard(key)
            for other in [other for other, bundle in self.bundle_of.items() if bundle == key]:
                del self.bundle_of[other]
                self.ends.pop(other, None)
        for key in [key for key, record in self.records.items() if key.file == file and not record.members]:
            self._discard(key)
        self.ends.pop(file, None)
        (self.folder / "files" / f"{file:05d}.json").unlink(missing_ok=True)

    def _discard(self, key: UnitKey) -> None:
        del self.records[key]
        self.store.discard(key)

    def is_finished(self, file: int) -> bool:
        """True if the file was read to its end and all its units are committed."""
        return file in self.ends and all(UnitKey(file, block) in self.records for block in self.ends[file].blocks)

    @property
    def units_in_plan_order(self) -> list[UnitRecord]:
        """The units of all files that were read to their end."""
        keys = {UnitKey(file, block) for file, end in self.ends.items() for block in end.blocks} | {*self.bundle_of.values()}
        return [self.records[key] for key in sorted(keys)]

    def block_hashes(self, file: int) -> dict[int, str]:
        """The hashes (`raw_sha256`) of a file's committed units, by block; none for a file of a bundle."""
        blocks = self.ends[file].blocks if file in self.ends else ()
        return {block: self.records[UnitKey(file, block)].raw_sha256 for block in blocks}

    def done(self) -> dict[int, dict[int, str]]:
        """The hashes (`raw_sha256`) of committed units, by file and block."""
        done: dict[int, dict[int, str]] = {}
        for key, record in self.records.items():
            if record.members:
                continue
            done.setdefault(key.file, {})[key.block] = record.raw_sha256
        return done

    @property
    def _path(self) -> Path:
        return self.folder / "job.json"

    def _validate_same_run(self, config: PrepareConfig, files: Sequence[InputFile]) -> None:
        there, here = self._description, self._identity(config, files)
        differences = [
            f"{key} was {there['config'].get(key)!r} and is {here['config'].get(key)!r}"
            for key in different_keys(there["config"], here["config"])
        ]
        if there["unit_bytes"] != here["unit_bytes"]:
            differences.append(f"unit_bytes was {there['unit_bytes']} and is {here['unit_bytes']}")
        if there.get("base") != here.get("base"):
            differences.append("--base is not the dataset that it was begun with")
        if config.tokenizer and sha256_bytes(read_given_tokenizer(config.tokenizer)) != there["tokenizer_sha256"]:
            differences.append(f"the tokenizer differs from {config.tokenizer}")
        before = {name: (split, size) for name, split, size in there["inputs"]}
        now = {name: (split, size) for name, split, size in here["inputs"]}
        differences += [f"input {name} is gone" for name in before.keys() - now.keys()]
        differences += [f"input {name} is new" for name in now.keys() - before.keys()]
        differences += [
            f"input {name} was {before[name][1]} bytes for {before[name][0]} and is {now[name][1]} bytes for {now[name][0]}"
            for name in before.keys() & now.keys()
            if before[name] != now[name]
        ]
        self._validate_no_differences(sorted(differences))

    def _validate_unchanged_inputs(self, files: Sequence[InputFile], config: PrepareConfig) -> None:
        """Check files whose version (size, time or token) changed against the hashes of what was read from them.

        A file that is only partly read and must be streamed is checked by its reader instead.
        """
        differences = []
        for file, version in zip(files, self._description["versions"], strict=True):
            if file.version == version:
                continue
            if file.index in self.ends:
                if sha256_location(file.path) != self.ends[file.index].sha256:
                    differences.append(f"input {file.name} has other bytes")
            elif file.is_plain:
                differences += [
                    f"input {file.name} has other bytes in unit {key.block}"
                    for key, record in self.records.items()
                    if key.file == file.index
                    and not record.members
                    and raw_sha256(plain_block(file, key.block, config.unit_bytes, config.max_record_bytes))
                    != record.raw_sha256
                ]
        self._validate_no_differences(differences)

    def _validate_no_differences(self, differences: Sequence[str]) -> None:
        if differences:
            raise PrepareError(
                f"{self.folder} has the unfinished work of another run: {'; '.join(differences)}. "
                "Rerun with the old settings, give another --output, or delete the folder"
            )

    def _identity(self, config: PrepareConfig, files: Sequence[InputFile]) -> dict[str, Any]:
        inputs = [[file.name, file.split or "hash", file.bytes] for file in files]
        # Not the mixture: it is applied to finished units, so a missing weight can be added and the run resumed.
        decisions = {key: value for key, value in self.decisions.items() if key != "mixture"}
        base = {"base": self.base_sha256} if self.base_sha256 else {}
        return {"config": decisions, "unit_bytes": config.unit_bytes, "inputs": inputs, **base}


def _has_gap(record: UnitRecord) -> bool:
    """True for a bundle from which a file was skipped: that file may be readable now, and belongs among the others."""
    return any(after.file != before.file + 1 for before, after in pairwise(record.members))
