"""The plan of a run: the input files, their order, and the split that their documents go to.

`blocks` cuts files into units. The order of the files, and of the units in each, is the order of the corpus.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from data_prep.config import PrepareConfig
from data_prep.readers.formats import PLAIN_SUFFIX, SUFFIXES, unknown_name
from data_prep.readers.huggingface import DatasetRows
from data_prep.readers.locations import Location, LocationState, can_enter, find, names, state, states
from data_prep.readers.remote import RemoteError, RemoteFile

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class InputError(ValueError):
    """Input globs that match nothing, something that is no input file, or one file for two splits."""


class ChangedInputError(InputError):
    """An input file that changed after the job began."""


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One input file. All its documents go to `split`; if that is None, a hash of each text decides.

    `name` is the path below the folder that all inputs share. Outputs use this name, so that moving a corpus does not change
    them. `bytes` (0 if unknown before reading) and `version` (time or checksum) were taken when the job began.
    """

    index: int
    split: Split | None
    path: Location
    name: str
    bytes: int
    version: str

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_plain(self) -> bool:
        """True if a worker can read any byte range without reading what comes before."""
        return can_enter(self.path) and self.is_named(PLAIN_SUFFIX)

    def is_named(self, suffix: str) -> bool:
        """True for a file whose name ends in `suffix`."""
        return not isinstance(self.path, DatasetRows) and _is_named(self.path, suffix)

    @property
    def may_hold_training_text(self) -> bool:
        """False if all documents go to val or test."""
        return self.split in (None, "train")

    def validate_unchanged(self) -> None:
        """Raise ChangedInputError if size or version changed since the job began, OSError if the file is gone."""
        now = state(self.path)
        if now != LocationState(self.bytes, self.version):
            raise ChangedInputError(f"{self.path}: changed during the job ({self.bytes} bytes before, {now.bytes} now)")


@dataclass(frozen=True)
class HashSplit:
    """Assigns documents to splits by a keyed hash of their text, so that exact duplicates are in the same split."""

    val_share: float
    test_share: float
    seed: int

    def __call__(self, text: bytes) -> Split:
        """The split of a document with the given text (UTF-8)."""
        digest = blake2b(text, digest_size=8, salt=self.seed.to_bytes(16, "little")).digest()
        share = int.from_bytes(digest, "little") / 2**64
        if share < self.test_share:
            return "test"
        return "val" if share < self.test_share + self.val_share else "train"


def plan(config: PrepareConfig) -> list[InputFile]:
    """All files of a run: train files sorted by path, then those of val, then those of test. No file is read.

    Raises InputError and the errors of `find`.
    """
    groups: list[tuple[Split | None, list[Location]]] = [(None if config.splits_by_hash else "train", expand(config.input))]
    if config.val:
        groups.append(("val", expand(config.val)))
    if config.test:
        groups.append(("test", expand(config.test)))
    seen: dict[Location, str] = {}
    for split, paths in groups:
        for path in paths:
            if path in seen:
                raise InputError(f"{path} is matched for both {seen[path]} and {split}; narrow one of the globs")
            seen[path] = str(split)
    return input_files([path for _, paths in groups for path in paths], [split for split, paths in groups for _ in paths])


def input_files(paths: Sequence[Location], splits: Sequence[Split | None]) -> list[InputFile]:
    """InputFiles with their current sizes and versions. Raises InputError if two have one name or one is gone."""
    named = names(paths)
    for name, number in Counter(named).items():
        if number > 1:
            raise InputError(f"{number} inputs have the name {name}; rename all but one")
    try:
        now = states(paths)
    except RemoteError:
        raise
    except OSError as error:
        raise InputError(f"{error.filename or error}: {error.strerror}; it was there a moment ago") from error
    return [
        InputFile(index=index, split=split, path=path, name=name, bytes=found.bytes, version=found.version)
        for index, (split, path, name, found) in enumerate(zip(splits, paths, named, now, strict=True))
    ]


def expand(globs: Sequence[str]) -> list[Location]:
    """The locations that globs (`**` matches any number of folders), URLs and datasets name, sorted, without duplicates.

    Raises InputError for a pattern that matches nothing and for a file of unknown format.
    """
    paths: set[Location] = set()
    for pattern in globs:
        matches = find(pattern, SUFFIXES)
        if not matches:
            raise InputError(f"no file matches {pattern!r} (looked from {os.getcwd()})")
        paths.update(matches)
    for path in paths:
        if not isinstance(path, DatasetRows) and not _is_named(path, *SUFFIXES):
            raise InputError(str(unknown_name(path)))
    return sorted(paths, key=str)


def _is_named(path: Path | RemoteFile, *suffixes: str) -> bool:
    return path.name.lower().endswith(suffixes)
