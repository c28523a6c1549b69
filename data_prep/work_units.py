"""The deterministic plan of a run: which input files there are, in which order, and which split their documents go to.

Files are cut into units by `blocks`; everything behind the plan only knows that units, in the order of their keys,
give the corpus in order.
"""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from data_prep.config import PrepareConfig
from data_prep.streams import PLAIN_SUFFIX, SUFFIXES

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class InputError(ValueError):
    """Input globs that name nothing, something unreadable, or one file for two splits."""


class ChangedInputError(InputError):
    """An input file that is not what it was when the job began."""


@dataclass(frozen=True)
class InputFile:
    """One input file: `split` is where all its documents go, or None where a hash of each text decides.

    `name` is the path below the folder that all inputs share: it is what outputs mention, so that moving a corpus
    changes no byte of them. `bytes` and `mtime_ns` are those of the start of the job: a file that differs later changed.
    """

    index: int
    split: Split | None
    path: Path
    name: str
    bytes: int
    mtime_ns: int

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_plain(self) -> bool:
        """True where a worker can read any range of it without what lies before."""
        return self.path.name.lower().endswith(PLAIN_SUFFIX)

    def refuse_change(self) -> None:
        """Raise ChangedInputError, or the OSError of a file that is gone, unless size and time are as they were."""
        status = os.stat(self.path)
        if (status.st_size, status.st_mtime_ns) != (self.bytes, self.mtime_ns):
            raise ChangedInputError(f"{self.path}: changed during the job ({self.bytes} bytes before, {status.st_size} now)")


@dataclass(frozen=True)
class HashSplit:
    """Sends documents to splits by a keyed hash of their text alone, so that exact duplicates stay on one side."""

    val_share: float
    test_share: float
    seed: int

    def __call__(self, text: bytes) -> Split:
        """The split of a document, from its text in UTF-8."""
        digest = blake2b(text, digest_size=8, salt=self.seed.to_bytes(16, "little")).digest()
        share = int.from_bytes(digest, "little") / 2**64
        if share < self.test_share:
            return "test"
        return "val" if share < self.test_share + self.val_share else "train"


def plan(config: PrepareConfig) -> list[InputFile]:
    """All files of a run: train files sorted by path, then val's, then test's. Raises InputError; reads no file."""
    groups: list[tuple[Split | None, list[Path]]] = [(None if config.splits_by_hash else "train", expand(config.input))]
    if config.val:
        groups.append(("val", expand(config.val)))
    if config.test:
        groups.append(("test", expand(config.test)))
    seen: dict[Path, str] = {}
    for split, paths in groups:
        for path in paths:
            if path in seen:
                raise InputError(f"{path} is matched for both {seen[path]} and {split}; narrow one of the globs")
            seen[path] = str(split)
    shared = Path(os.path.commonpath([path.parent for path in seen]))
    return [
        input_file(index, split, path, path.relative_to(shared).as_posix())
        for index, (split, path) in enumerate((split, path) for split, paths in groups for path in paths)
    ]


def input_file(index: int, split: Split | None, path: Path, name: str) -> InputFile:
    """An InputFile with its size and time as they are now; raises InputError where it is gone."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; it was there a moment ago") from error
    return InputFile(index, split, path, name, status.st_size, status.st_mtime_ns)


def expand(globs: Sequence[str]) -> list[Path]:
    """The files that globs match (`**` crosses folders), absolute, each once, sorted. Raises InputError for a glob
    that matches none and for a file in no format that we read."""
    paths: set[Path] = set()
    for pattern in globs:
        found = glob.glob(os.path.expanduser(pattern), recursive=True)
        matches = [Path(os.path.abspath(match)) for match in found if os.path.isfile(match)]
        if not matches:
            raise InputError(f"no file matches {pattern!r} (looked from {os.getcwd()})")
        paths.update(matches)
    for path in paths:
        if not path.name.lower().endswith(SUFFIXES):
            raise InputError(f"{path}: cannot tell the format from the name; known endings: {', '.join(SUFFIXES)}")
    return sorted(paths, key=Path.as_posix)
