"""Files to raw bytes of JSON lines: every zstd frame, gzip member and xz stream is read, and damage is reported.

python-zstandard stops silently after the first frame (`decompressobj`, `read_to_iter`) and at the end of a truncated file
(`stream_reader`). So frames are decompressed one by one here, and each must report its end. Formats without lines (Parquet,
plain text, datasets) are converted to JSON lines.
"""

import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import orjson
import zstandard

from data_prep.readers.huggingface import DatasetRows, json_lines
from data_prep.readers.locations import Location, can_enter, open_location
from data_prep.readers.remote import RemoteError, RemoteFile

_PLAIN_CHUNK_BYTES = 1 << 20
# Small, because one compressed chunk is decompressed at once: this limits memory for very repetitive input.
_COMPRESSED_CHUNK_BYTES = 1 << 16
# The window of `zstd --long=31`; the library's default rejects windows above 128 MiB.
_MAX_ZSTD_WINDOW_BYTES = 1 << 31
_PARQUET_ROWS = 1024

# Only files of plain lines can be cut into byte ranges.
PLAIN_SUFFIX = ".jsonl"
SUFFIXES = (PLAIN_SUFFIX, ".jsonl.zst", ".jsonl.gz", ".json.gz", ".jsonl.xz", ".parquet", ".txt")


TRUNCATED, CORRUPT = "truncated", "corrupt"
DAMAGES = frozenset((TRUNCATED, CORRUPT))


class DamagedStreamError(ValueError):
    """A compressed file that ends early (`reason` TRUNCATED) or does not decode (CORRUPT)."""

    def __init__(self, path: Location, reason: str, detail: str) -> None:
        super().__init__(f"{path}: {reason}: {detail}; fetch or compress the file again")
        self.reason = reason


class UnknownFormatError(ValueError):
    """A file whose name has none of the suffixes that we read."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def read_chunks(path: Location, on_read: Callable[[bytes], object] = lambda data: None) -> Iterator[bytes]:
    """The decompressed bytes of a file in chunks of any size; `on_read` is called with the bytes as stored on disk.

    For a dataset, `on_read` is called with its JSON lines. Raises DamagedStreamError after the last good chunk,
    UnknownFormatError for a name without a known suffix.
    """
    if isinstance(path, DatasetRows):
        for lines in path.lines():
            on_read(lines)
            yield lines
        return
    name = path.name.lower()
    if name.endswith(".parquet"):
        yield from _parquet_lines(path, on_read)
        return
    with open_location(path) as file:
        if name.endswith(".jsonl.zst"):
            context = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW_BYTES)
            yield from _read_frames(path, file, lambda: context.decompressobj(), b"", on_read)
        elif name.endswith((".jsonl.gz", ".json.gz")):
            # Tape tools and some object stores pad gzip files with zeros, which are not a member.
            yield from _read_frames(path, file, lambda: zlib.decompressobj(zlib.MAX_WBITS | 16), b"\0", on_read)
        elif name.endswith(".jsonl.xz"):
            # The format allows zeros between streams.
            yield from _read_frames(path, file, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), b"\0", on_read)
        elif name.endswith(PLAIN_SUFFIX):
            while chunk := file.read(_PLAIN_CHUNK_BYTES):
                on_read(chunk)
                yield chunk
        elif name.endswith(".txt"):
            data = file.read()
            on_read(data)
            # Not decoded here, so that invalid UTF-8 is rejected like that of any other record.
            yield _as_json_line(data) if data else b""
        else:
            raise UnknownFormatError(f"{path}: cannot tell the format from the name; known endings: {', '.join(SUFFIXES)}")


def _read_frames(
    path: Location, file: BinaryIO, new: Callable[[], _Decompressor], padding: bytes, on_read: Callable[[bytes], object]
) -> Iterator[bytes]:
    frame: _Decompressor | None = None
    while chunk := file.read(_COMPRESSED_CHUNK_BYTES):
        on_read(chunk)
        while chunk:
            if frame is None:
                chunk = chunk.lstrip(padding) if padding else chunk
                if not chunk:
                    break
                frame = new()
            try:
                data = frame.decompress(chunk)
            except (zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
                raise DamagedStreamError(path, CORRUPT, str(error)) from error
            if data:
                yield data
            chunk = b""
            if frame.eof:
                chunk, frame = frame.unused_data, None
    if frame is not None:
        raise DamagedStreamError(path, TRUNCATED, "the last compressed frame does not end")


def _parquet_lines(path: Path | RemoteFile, on_read: Callable[[bytes], object]) -> Iterator[bytes]:
    """The rows of a Parquet file as JSON lines: the columns `text` and, if present, `meta`."""
    import pyarrow as pa  # imported late: only Parquet files need it
    import pyarrow.parquet as pq

    if not can_enter(path):
        raise RemoteError(f"{path}: Parquet is read from its end, but this server sends only whole files: download it")
    with open_location(path) as file:
        while chunk := file.read(_PLAIN_CHUNK_BYTES):
            on_read(chunk)
    try:
        with open_location(path) as file, pq.ParquetFile(file) as parquet:
            columns = [name for name in ("text", "meta") if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
                yield json_lines(batch.to_pylist())
    except RemoteError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DamagedStreamError(path, CORRUPT, str(error).splitlines()[0]) from error


def _as_json_line(data: bytes) -> bytes:
    try:
        return orjson.dumps({"text": data.decode("utf-8")}) + b"\n"
    except UnicodeDecodeError:
        return b'{"text": "' + data.replace(b"\n", b" ").replace(b'"', b" ").replace(b"\\", b" ") + b'"}\n'
