"""Compressed files to numbered lines: every zstd frame and gzip member is read, and a cut or damaged one is reported.

python-zstandard ends silently both after the first frame (`decompressobj`, `read_to_iter`) and at the cut of a
truncated file (`stream_reader`), so frames are walked one by one here and each must say that it ended.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

_PLAIN_CHUNK_BYTES = 1 << 20
# Small, because one compressed chunk is expanded at once: this bounds memory on highly repetitive input.
_COMPRESSED_CHUNK_BYTES = 1 << 16
# What `zstd --long=31` may ask for; the library's default refuses windows above 128 MiB.
_MAX_ZSTD_WINDOW_BYTES = 1 << 31
_SHOWN_BYTES = 1024

SUFFIXES = (".jsonl", ".jsonl.zst", ".jsonl.gz")


class DamagedStreamError(ValueError):
    """A compressed file that ends early (`reason` "truncated") or does not decode ("corrupt")."""

    def __init__(self, path: Path, reason: str, detail: str) -> None:
        super().__init__(f"{path}: {reason}: {detail}; fetch or compress the file again")
        self.reason = reason


class UnknownFormatError(ValueError):
    """A file whose name ends in none of the suffixes that we read."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


@dataclass(frozen=True)
class Line:
    """One line without its newline; `data` holds only the first bytes where `too_long`."""

    number: int
    data: bytes
    too_long: bool = False


@dataclass(frozen=True)
class LostTail:
    """The end of a damaged file: where reading stopped, why, and the bytes of the line that was being read."""

    number: int
    data: bytes
    reason: str


def read_chunks(path: Path) -> Iterator[bytes]:
    """The decompressed bytes of a file in pieces of no particular size.

    Raises DamagedStreamError after the last good piece, UnknownFormatError for a name that ends in no known suffix.
    """
    name = path.name.lower()
    with open(path, "rb") as file:
        if name.endswith(".jsonl.zst"):
            context = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW_BYTES)
            yield from _read_frames(path, file, lambda: context.decompressobj(), b"")
        elif name.endswith(".jsonl.gz"):
            # Tape tools and some object stores pad gzip files with zeros, which start no member.
            yield from _read_frames(path, file, lambda: zlib.decompressobj(zlib.MAX_WBITS | 16), b"\0")
        elif name.endswith(".jsonl"):
            while chunk := file.read(_PLAIN_CHUNK_BYTES):
                yield chunk
        else:
            raise UnknownFormatError(f"{path}: cannot tell the format from the name; known endings: {', '.join(SUFFIXES)}")


def _read_frames(path: Path, file: BinaryIO, new: Callable[[], _Decompressor], padding: bytes) -> Iterator[bytes]:
    frame: _Decompressor | None = None
    while chunk := file.read(_COMPRESSED_CHUNK_BYTES):
        while chunk:
            if frame is None:
                chunk = chunk.lstrip(padding) if padding else chunk
                if not chunk:
                    break
                frame = new()
            try:
                data = frame.decompress(chunk)
            except (zlib.error, zstandard.ZstdError) as error:
                raise DamagedStreamError(path, "corrupt", str(error)) from error
            if data:
                yield data
            chunk = b""
            if frame.eof:
                chunk, frame = frame.unused_data, None
    if frame is not None:
        raise DamagedStreamError(path, "truncated", "the last compressed frame does not end")


def read_lines(path: Path, max_line_bytes: int) -> Iterator[Line | LostTail]:
    r"""The lines of a file, numbered from 1, cut at b"\n" alone: U+2028, U+0085 and lone CR are text.

    A line over `max_line_bytes` comes as its first bytes, marked, and the rest is passed over without being kept. A
    damaged file gives the lines before the damage and then one LostTail; an unfinished line there is never a record.
    """
    number = 1
    parts: list[bytes] = []
    num_bytes = 0
    too_long = False

    def finish() -> Line:
        nonlocal number, parts, num_bytes, too_long
        line = Line(number, b"".join(parts), too_long)
        number, parts, num_bytes, too_long = number + 1, [], 0, False
        return line

    def keep(data: bytes) -> None:
        nonlocal num_bytes, too_long
        if data and not too_long:
            parts.append(data)
            num_bytes += len(data)
            if num_bytes > max_line_bytes:
                too_long = True
                parts[:] = [b"".join(parts)[:_SHOWN_BYTES]]

    try:
        for chunk in read_chunks(path):
            first, *rest = chunk.split(b"\n")
            keep(first)
            for data in rest:
                yield finish()
                keep(data)
    except DamagedStreamError as damage:
        yield LostTail(number, b"".join(parts), damage.reason)
        return
    if parts:
        yield finish()
