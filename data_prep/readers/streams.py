"""Files to raw bytes of JSON lines: every zstd frame, gzip member and xz stream is read, and damage is reported.

python-zstandard stops silently after the first frame (`decompressobj`, `read_to_iter`) and at the end of a truncated file
(`stream_reader`). So frames are decompressed one by one here, and each must report its end. Formats without lines (Parquet,
plain text, datasets) are converted to JSON lines. Memory is bounded, whatever a small file expands to.
"""

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from data_prep.readers.arrow_rows import META, TEXT, json_lines, metas, record_columns, validate_text_column
from data_prep.readers.decoders import PADDING, CodecError, Decoder, decoder_factory
from data_prep.readers.formats import (
    GZIP,
    HEAD_BYTES,
    PLAIN_SUFFIX,
    XZ,
    ZSTD,
    WrongFormatError,
    looks_like,
    mismatch,
    nothing_readable,
    unknown_name,
)
from data_prep.readers.huggingface import DatasetRows
from data_prep.readers.locations import Location, can_enter, open_location
from data_prep.readers.remote import RemoteError, RemoteFile

_PLAIN_CHUNK_BYTES = 1 << 20
_COMPRESSED_CHUNK_BYTES = 1 << 16
# A batch of Parquet rows: few enough that their text is some megabytes, because they are decoded at once.
_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 64
_CODECS = {".jsonl.zst": ZSTD, ".jsonl.gz": GZIP, ".json.gz": GZIP, ".jsonl.xz": XZ}

TRUNCATED, CORRUPT = "truncated", "corrupt"
DAMAGES = frozenset((TRUNCATED, CORRUPT))


class DamagedStreamError(ValueError):
    """A file that ends early (`reason` TRUNCATED) or stops to decode (CORRUPT) after some text. `detail`: the codec's words."""

    def __init__(self, path: Location, reason: str, detail: str) -> None:
        super().__init__(f"{path}: {reason}: {detail}; fetch or compress the file again")
        self.reason = reason
        self.detail = detail


def read_chunks(path: Location, on_read: Callable[[bytes], object] = lambda data: None) -> Iterator[bytes]:
    """The decompressed bytes of a file in chunks of any size; `on_read` is called with the bytes as stored on disk.

    For a dataset, `on_read` is called with its JSON lines. Raises DamagedStreamError after the last good chunk,
    WrongFormatError for a file in which nothing can be read, a name without a known suffix, and a Parquet file without a column
    of texts.
    """
    if isinstance(path, DatasetRows):
        for lines in path.lines():
            on_read(lines)
            yield lines
        return
    name = path.name.lower()
    codec = next((codec for suffix, codec in _CODECS.items() if name.endswith(suffix)), None)
    if name.endswith(".parquet"):
        yield from _parquet_lines(path, on_read)
        return
    with open_location(path) as file:
        if codec is not None:
            yield from _read_frames(path, file, codec, on_read)
        elif name.endswith(PLAIN_SUFFIX):
            yield from _read_lines(path, file, on_read)
        elif name.endswith(".txt"):
            yield from _read_text(file, on_read)
        else:
            raise unknown_name(path)


def _read_lines(path: Location, file: BinaryIO, on_read: Callable[[bytes], object]) -> Iterator[bytes]:
    chunk = file.read(_PLAIN_CHUNK_BYTES)
    kind = looks_like(chunk[:HEAD_BYTES])
    if kind in (ZSTD, GZIP, XZ) and isinstance(path, RemoteFile):
        # Some servers compress what they send, whatever the client asks for.
        yield from _read_frames(path, file, kind, on_read, chunk)
        return
    while chunk:
        on_read(chunk)
        yield chunk
        chunk = file.read(_PLAIN_CHUNK_BYTES)


def _read_text(file: BinaryIO, on_read: Callable[[bytes], object]) -> Iterator[bytes]:
    """The whole file as one record. Invalid UTF-8 is kept, so that the record is rejected like any other with this fault."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_valid = True
    chunk = file.read(_PLAIN_CHUNK_BYTES)
    if not chunk:
        return
    yield b'{"text":"'
    while chunk or is_valid:
        on_read(chunk)
        if is_valid:
            try:
                yield orjson.dumps(decoder.decode(chunk, final=not chunk))[1:-1]
            except UnicodeDecodeError as error:
                is_valid = False
                chunk = error.object
        if not is_valid:
            yield chunk.translate(None, b'\n"\\')
        if not chunk:
            break
        chunk = file.read(_PLAIN_CHUNK_BYTES)
    yield b'"}\n'


def _read_frames(
    path: Location, file: BinaryIO, codec: str, on_read: Callable[[bytes], object], first: bytes = b""
) -> Iterator[bytes]:
    """The output of all frames. `first`: bytes that were read from the file already."""
    new, padding = decoder_factory(codec), PADDING[codec]
    frame: Decoder | None = None
    chunk = first or file.read(_COMPRESSED_CHUNK_BYTES)
    head = chunk[:HEAD_BYTES]
    has_output = False
    while chunk:
        on_read(chunk)
        while chunk:
            if frame is None:
                chunk = chunk.lstrip(padding) if padding else chunk
                if not chunk:
                    break
                frame = new()
            try:
                for data in frame.decode(chunk):
                    has_output = True
                    yield data
            except CodecError as error:
                raise _damage(path, CORRUPT, str(error), has_output, head) from error
            chunk = b""
            if frame.eof:
                chunk, frame = frame.unused_data, None
        chunk = file.read(_COMPRESSED_CHUNK_BYTES)
    if frame is not None:
        raise _damage(path, TRUNCATED, "the last compressed frame does not end", has_output)


def _parquet_lines(path: Path | RemoteFile, on_read: Callable[[bytes], object]) -> Iterator[bytes]:
    """The rows of a Parquet file as JSON lines: the column `text` and, if present, what names the source in `meta`."""
    import pyarrow as pa  # imported late: only Parquet files need it
    import pyarrow.parquet as pq

    if not can_enter(path):
        raise RemoteError(f"{path}: Parquet is read from its end, but this server sends only whole files: download it")
    head, has_output = b"", False
    with open_location(path) as file:
        while chunk := file.read(_PLAIN_CHUNK_BYTES):
            head = head or chunk[:HEAD_BYTES]
            on_read(chunk)
    try:
        # With a buffer, columns are read page by page instead of as a whole.
        with open_location(path) as file, pq.ParquetFile(file, buffer_size=_PLAIN_CHUNK_BYTES) as parquet:
            validate_text_column(path, parquet.schema_arrow, TEXT, "rename the column, or read datasets://FOLDER?text=…")
            columns = record_columns(parquet.schema_arrow)
            for group in range(parquet.num_row_groups):
                rows = _batch_rows(parquet.metadata.row_group(group))
                for batch in parquet.iter_batches(batch_size=rows, row_groups=[group], columns=columns):
                    has_output = True
                    yield from json_lines(batch.column(TEXT), metas(batch.column(META)) if META in batch.schema.names else None)
    except RemoteError:
        raise
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, WrongFormatError):
            raise
        raise _damage(path, CORRUPT, str(error).splitlines()[0], has_output, head) from error


def _damage(path: Location, reason: str, detail: str, has_output: bool, head: bytes = b"") -> ValueError:
    """The error for a file that does not decode: after some output a part of it is lost, without any all of it."""
    return DamagedStreamError(path, reason, detail) if has_output else nothing_readable(path, f"{detail}{mismatch(head)}")


def _batch_rows(group: Any) -> int:
    """How many rows of a row group to decode at once."""
    text_bytes = sum(
        group.column(number).total_uncompressed_size
        for number in range(group.num_columns)
        if group.column(number).path_in_schema.split(".")[0] == TEXT
    )
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.num_rows // max(1, text_bytes)))
