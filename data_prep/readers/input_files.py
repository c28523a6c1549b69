"""The plan of a run: the input files, their order, and the split that their documents go to.

`blocks` cuts files into units. The order of the files, and of the units in each, is the order of the corpus.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from data_prep.config import PrepareConfig
from data_prep.files import sha256_bytes
from data_prep.readers.formats import PLAIN_SUFFIX, SUFFIXES, unknown_name
from data_prep.readers.huggingface import DatasetRows
from data_prep.readers.locations import Location, LocationState, can_enter, find, names, sha256_location, state, states
from data_prep.readers.remote import RemoteError, RemoteFile, has_checksum

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

_COMPARED_BYTES = 1 << 16


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
        """Raise ChangedInputError if the size changed since the job began, OSError if the file is gone.

        A new version with the same size may have the same bytes, as after `touch` or a copy: see `was_touched`.
        """
        now = state(self.path)
        if now.bytes != self.bytes:
            raise ChangedInputError(
                f"{self.path}: changed during the job ({self.bytes} bytes before, {now.bytes} now); leave it as it is"
            )

    def was_touched(self) -> bool:
        """True if the version changed since the job began, so that the bytes must be compared. Raises OSError if it is gone."""
        return state(self.path) != LocationState(self.bytes, self.version)


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


@dataclass(frozen=True)
class InputPlan:
    """The input files of a run in their order, and remarks for the user."""

    files: list[InputFile]
    notes: list[str]


def plan(config: PrepareConfig) -> list[InputFile]:
    """The files of `make_plan`."""
    return make_plan(config).files


def make_plan(config: PrepareConfig, is_own: Callable[[Path], bool] = lambda path: False) -> InputPlan:
    """All files of a run: train files sorted by path, then those of val, then those of test. Each file is there once.

    Files that are `is_own`, outputs of this program, are left out. Raises InputError, also for a file in two splits under
    any name, and the errors of `find`.
    """
    groups: list[tuple[Split | None, list[str]]] = [(None if config.splits_by_hash else "train", config.input)]
    held_out: list[tuple[Split | None, list[str]]] = [("val", config.val), ("test", config.test)]
    groups += [group for group in held_out if group[1]]
    paths: list[Location] = []
    splits: list[Split | None] = []
    notes: list[str] = []
    seen: dict[object, tuple[Location, Split | None]] = {}
    for split, globs in groups:
        found, repeats = _distinct(_expanded(globs, is_own))
        if repeats:
            path, other = repeats[0]
            notes.append(f"{len(repeats)} names are links to other inputs and are not read again: {path} is {other}, …")
        for path in found:
            there, other_split = seen.setdefault(_identity(path), (path, split))
            if there == path and other_split != split:
                raise InputError(f"{path} is matched for both {other_split} and {split}; narrow one of the globs")
            if other_split != split:
                raise InputError(f"{path}, matched for {split}, is the same file as {there} of {other_split}; remove one")
        paths += found
        splits += [split] * len(found)
    files = input_files(paths, splits)
    if not config.deduplicate:
        _validate_no_copies(files)
    return InputPlan(files, notes)


def _identity(path: Location) -> object:
    """Equal for two names of one file: links to it, hard links, and other ways to its folder."""
    if not isinstance(path, Path):
        return path
    status = os.stat(path)
    # Some network file systems have no inode numbers; those of others are not unique.
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns) if status.st_ino else os.path.realpath(path)


def _distinct(paths: Sequence[Location]) -> tuple[list[Location], list[tuple[Location, Location]]]:
    """The paths without further names of the same files, and those further names, each with the one that is kept."""
    names_of: dict[object, list[Location]] = {}
    for path in paths:
        names_of.setdefault(_identity(path), []).append(path)
    kept = {}
    for same in names_of.values():
        chosen = min(same, key=_preference) if len(same) > 1 else same[0]
        kept[chosen] = [path for path in same if path != chosen]
    repeats = [(path, chosen) for chosen, others in kept.items() for path in others]
    return sorted(kept, key=str), repeats


def _preference(path: Location) -> tuple[bool, int, str]:
    """Of several names of a file, the real path comes first, then the shortest."""
    return isinstance(path, Path) and os.path.realpath(path) != str(path), len(str(path)), str(path)


def _validate_no_copies(files: Sequence[InputFile]) -> None:
    """Raise InputError if two splits have files with the same bytes: validation on training text shows nothing."""
    by_size: dict[int, list[InputFile]] = {}
    for file in files:
        if file.bytes:
            by_size.setdefault(file.bytes, []).append(file)
    for same_size in by_size.values():
        for hashes in (_head_token, _whole_token):
            if len({file.split for file in same_size}) < 2:
                break
            by_token: dict[str, list[InputFile]] = {}
            for file in same_size:
                by_token.setdefault(hashes(file), []).append(file)
            same_size = [file for group in by_token.values() if len({f.split for f in group}) > 1 for file in group]
        else:
            first, second = (next(f for f in same_size if (f.split == same_size[0].split) == same) for same in (True, False))
            raise InputError(
                f"{second.path}, matched for {second.split}, has the same bytes as {first.path} of {first.split}; remove one, "
                "or set deduplicate=true"
            )


def _head_token(file: InputFile) -> str:
    """The first bytes of a local file, or the checksum that a server gives for a remote one; else a token of its own."""
    if isinstance(file.path, Path):
        with suppress(OSError), open(file.path, "rb") as opened:
            return sha256_bytes(opened.read(_COMPARED_BYTES))
    elif isinstance(file.path, RemoteFile) and has_checksum(file.version):
        return file.version
    return f"file {file.index}"


def _whole_token(file: InputFile) -> str:
    with suppress(OSError):
        return sha256_location(file.path) if isinstance(file.path, Path) else _head_token(file)
    return f"file {file.index}"


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
    """The locations that globs (`**` matches any number of folders), URLs and datasets name, sorted, each file once.

    Raises InputError for a pattern that matches nothing and for a file of unknown format.
    """
    return _distinct(_expanded(globs, lambda path: False))[0]


def _expanded(globs: Sequence[str], is_own: Callable[[Path], bool]) -> list[Location]:
    paths: set[Location] = set()
    for pattern in globs:
        matches = find(pattern, SUFFIXES)
        if not matches:
            raise InputError(f"no file matches {pattern!r} (looked from {os.getcwd()})")
        foreign = [match for match in matches if not (isinstance(match, Path) and is_own(match))]
        if not foreign:
            raise InputError(f"{pattern!r} matches only files of a finished or begun dataset, such as {matches[0]}")
        paths.update(foreign)
    for path in paths:
        if not isinstance(path, DatasetRows) and not _is_named(path, *SUFFIXES):
            raise InputError(str(unknown_name(path)))
    return sorted(paths, key=str)


def _is_named(path: Path | RemoteFile, *suffixes: str) -> bool:
    return path.name.lower().endswith(suffixes)
