"""The raw data of the demo: text of this machine's Python installation in the format of the Pile, with train, val and test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import zstandard

from data_prep.files import atomic_write
from launch.demo.installed_text import KINDS, Candidate, Installation, readable

NUM_TRAIN_FILES = 4
_HELD_OUT_PER_MILLE = {"val": 30, "test": 30}
_TOP_UPS = (0.4, 0.5)
"""Where other kinds have too little text, each kind may grow to these shares, one after the other: at most half."""
_LARGEST_GROUP = 0.15
"""Largest share of its kind that one package may have."""
_FEWEST_BYTES = 0.75
_ZSTD_LEVEL = 6


class CorpusError(ValueError):
    """A machine with too little text for the demo."""


@dataclass
class Count:
    """Documents, and bytes of their text in UTF-8."""

    documents: int = 0
    bytes: int = 0

    def add(self, num_bytes: int) -> None:
        self.documents += 1
        self.bytes += num_bytes


@dataclass(frozen=True, kw_only=True)
class CorpusSummary:
    """The output of `write_corpus`: the files of each split, and counts by kind of source and by split."""

    train: list[Path]
    val: Path
    test: Path
    by_kind: dict[str, Count]
    by_split: dict[str, Count]

    @property
    def total(self) -> Count:
        counts = self.by_kind.values()
        return Count(sum(count.documents for count in counts), sum(count.bytes for count in counts))


@dataclass(frozen=True)
class _Document:
    kind: str
    text: bytes
    digest: bytes
    """Hash of the text without case, spacing and copyright lines, in which copies of one licence differ."""

    @property
    def split(self) -> str:
        place = int.from_bytes(self.digest[:8], "big") % 1000
        for split, share in _HELD_OUT_PER_MILLE.items():
            if place < share:
                return split
            place -= share
        return "train"


def write_corpus(output: Path, max_bytes: int = 20_000_000, installation: Installation | None = None) -> CorpusSummary:
    """Write about `max_bytes` of text as Pile records into train/00 … 03, val and test `.jsonl.zst` below `output`.

    The bytes are a function of the installation (default: this interpreter's). Copies of a text are dropped, and the hash
    of a text decides its split. Raises CorpusError if less than three quarters of `max_bytes` is found.
    """
    documents = _collect(installation or Installation.current(), max_bytes)
    # Sorted by hash, every file is a mixture of kinds and packages.
    documents.sort(key=lambda document: document.digest)
    by_kind = {kind: Count() for kind in KINDS}
    by_split = {split: Count() for split in ("train", *_HELD_OUT_PER_MILLE)}
    lines: dict[Path, list[bytes]] = {output / "train" / f"{number:02}.jsonl.zst": [] for number in range(NUM_TRAIN_FILES)}
    train = list(lines)
    for document in documents:
        split = document.split
        number = by_split[split].documents % NUM_TRAIN_FILES
        path = train[number] if split == "train" else output / f"{split}.jsonl.zst"
        record = {"text": document.text.decode(), "meta": {"pile_set_name": document.kind}}
        lines.setdefault(path, []).append(orjson.dumps(record))
        by_kind[document.kind].add(len(document.text))
        by_split[split].add(len(document.text))
    (output / "train").mkdir(parents=True, exist_ok=True)
    for path, records in lines.items():
        with atomic_write(path) as file:
            file.write(zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(b"".join(record + b"\n" for record in records)))
    found = {kind: count for kind, count in by_kind.items() if count.documents}
    val, test = (output / f"{split}.jsonl.zst" for split in _HELD_OUT_PER_MILLE)
    return CorpusSummary(train=train, val=val, test=test, by_kind=found, by_split=by_split)


def _collect(installation: Installation, max_bytes: int) -> list[_Document]:
    """Take each kind up to its share, then up to each of `_TOP_UPS`, until there are `max_bytes`."""
    streams = {kind: find(installation) for kind, (_, find) in KINDS.items()}
    wanted = {kind: int(share * max_bytes) for kind, (share, _) in KINDS.items()}
    taken = dict.fromkeys(KINDS, 0)
    groups: dict[tuple[str, str], int] = {}
    seen: set[bytes] = set()
    documents: list[_Document] = []
    for limits in (wanted, *(dict.fromkeys(KINDS, int(share * max_bytes)) for share in _TOP_UPS)):
        for kind, stream in streams.items():
            limit = min(limits[kind], taken[kind] + max_bytes - sum(taken.values()))
            while taken[kind] < limit and (candidate := next(stream, None)):
                document = _document(kind, candidate, installation)
                group = (kind, candidate.group)
                if document is None or document.digest in seen or groups.get(group, 0) > _LARGEST_GROUP * limits[kind]:
                    continue
                seen.add(document.digest)
                taken[kind] += len(document.text)
                groups[group] = groups.get(group, 0) + len(document.text)
                documents.append(document)
    if sum(taken.values()) < _FEWEST_BYTES * max_bytes:
        found = ", ".join(f"{kind} {size / 1e6:.1f} MB" for kind, size in taken.items())
        raise CorpusError(
            f"{installation.stdlib} and the installed packages hold only {sum(taken.values()) / 1e6:.1f} MB of text, and "
            f"{_FEWEST_BYTES * max_bytes / 1e6:.1f} MB are needed ({found}): install the project with all its dependencies, "
            "or prepare text of your own with `fnet-t5 prepare`"
        )
    return documents


def _document(kind: str, candidate: Candidate, installation: Installation) -> _Document | None:
    text = readable(candidate.text, installation.private)
    if text is None:
        return None
    return _Document(kind, text.encode(), hashlib.blake2b(_essence(text).encode(), digest_size=16).digest())


def _essence(text: str) -> str:
    return " ".join(word for line in _without_copyright(text.lower()) for word in line.split())


def _without_copyright(text: str) -> Iterator[str]:
    return (line for line in text.split("\n") if "copyright" not in line)
