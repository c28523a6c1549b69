"""Locations of inputs: local paths, URLs and datasets behind one set of functions."""

import glob
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from data_prep.files import sha256_stream
from data_prep.readers.huggingface import SCHEME, DatasetRows, parse_dataset
from data_prep.readers.remote import URL, RemoteFile, expand_url

Location = Path | RemoteFile | DatasetRows

_THREADS = 8


class LocationError(ValueError):
    """A path that is not a regular file."""


@dataclass(frozen=True)
class LocationState:
    """Size and version of a location. `bytes`: 0 if unknown before reading. `version`: changes whenever the bytes change."""

    bytes: int
    version: str


def find(pattern: str, suffixes: tuple[str, ...] = ()) -> list[Location]:
    """The locations that a glob, a URL or a dataset names, in any order; empty if a glob matches nothing.

    Local paths are made absolute. A match that ends in one of `suffixes` must be a file. Raises RemoteError, DatasetError or
    LocationError, all ValueErrors.
    """
    if pattern.startswith(SCHEME):
        dataset = parse_dataset(pattern)
        dataset.check()
        return [dataset]
    if pattern.lower().startswith("file://"):
        pattern = unquote(urlsplit(pattern).path)
    elif URL.match(pattern):
        return list(expand_url(pattern))
    pattern = os.path.expanduser(pattern)
    # What exists under a name is meant, also if the name could be read as a glob: data[1].jsonl.
    matches = [pattern] if os.path.lexists(pattern) else glob.glob(pattern, recursive=True)
    for match in matches:
        # `**` may match folders; a folder that is named explicitly, or named like an input file, is a mistake.
        if (match == pattern or match.lower().endswith(suffixes)) and not os.path.isfile(match):
            if os.path.isdir(match):
                raise LocationError(f"{match}: a folder; name the files in it, as {match.rstrip('/')}/*.jsonl.zst")
            if _is_in_a_circle(match):
                continue  # found on a shorter way, too
            raise LocationError(f"{match}: a broken link, or no regular file; fix it or narrow the glob")
    return [Path(os.path.abspath(match)) for match in matches if os.path.isfile(match)]


def _is_in_a_circle(path: str) -> bool:
    """True if the way to a file passes a folder twice, because a link leads back; `**` follows it up to the system's limit."""
    folders = [os.path.realpath(folder) for folder in Path(path).parents]
    return len(set(folders)) < len(folders)


def state(location: Location) -> LocationState:
    """Current size and version. Raises OSError if it is gone; RemoteError and DatasetError are OSErrors."""
    if isinstance(location, Path):
        status = os.stat(location)
        return LocationState(status.st_size, str(status.st_mtime_ns))
    size, version = location.state()
    return LocationState(size or 0, version)


def states(locations: Sequence[Location]) -> list[LocationState]:
    """The states of many locations, several at a time, because each may need a network request."""
    if all(isinstance(location, Path) for location in locations):
        return [state(location) for location in locations]
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(state, locations))


def open_location(location: Path | RemoteFile) -> BinaryIO:
    """A binary reader of the stored bytes."""
    return open(location, "rb") if isinstance(location, Path) else location.open()


def sha256_location(location: Location) -> str:
    """SHA-256 in hexadecimal of a file's bytes, or of a dataset's rows as JSON lines."""
    if isinstance(location, DatasetRows):
        digest = sha256()
        for lines in location.lines():
            digest.update(lines)
        return digest.hexdigest()
    with open_location(location) as file:
        return sha256_stream(file)


def can_enter(location: Location) -> bool:
    """True if reading can start at any byte."""
    return isinstance(location, Path) or (isinstance(location, RemoteFile) and location.ranges)


def parts(location: Location) -> tuple[str, ...]:
    """The path to a location, from its root: a disk, a host or bucket, or the hub."""
    return location.parts


def names(locations: Sequence[Location]) -> list[str]:
    """The names that outputs use: the path below the folder that all locations of one root share.

    So moving a corpus, even to a bucket, does not change the outputs. If there are several roots, URLs keep theirs.
    """
    steps = [parts(location) for location in locations]
    roots = {path[0] for path in steps}
    shared = {root: _shared([path[:-1] for path in steps if path[0] == root]) for root in roots}
    named = []
    for path in steps:
        below = "/".join(path[shared[path[0]] :])
        named.append(below if len(roots) == 1 or "://" not in path[0] else f"{path[0].removesuffix('/')}/{below}")
    return named


def _shared(folders: Sequence[tuple[str, ...]]) -> int:
    """The number of leading folders that all have in common."""
    levels = takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False))
    return sum(1 for _ in levels)
