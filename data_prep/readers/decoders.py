"""Decompression in bounded memory: every frame, member and stream of a file, a few megabytes of output at a time.

python-zstandard gives all output of the input that it gets, and 64 KiB of input may hold 2 GB. So zstd input is cut at the
boundaries of its blocks (RFC 8878), each of which has at most 128 KiB of output.
"""

import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import zstandard

from data_prep.readers.formats import GZIP, XZ, ZSTD

_OUTPUT_BYTES = 4 << 20
_ZSTD_BLOCKS = _OUTPUT_BYTES // (128 << 10)
# The window of `zstd --long=31`; the library's default rejects windows above 128 MiB.
_MAX_ZSTD_WINDOW_BYTES = 1 << 31

CodecError = (zlib.error, lzma.LZMAError, zstandard.ZstdError)


class Decoder(Protocol):
    """Decodes one frame, member or stream."""

    @property
    def eof(self) -> bool:
        """True after the end of the frame."""

    @property
    def unused_data(self) -> bytes:
        """The input after the end of the frame."""

    def decode(self, data: bytes) -> Iterator[bytes]:
        """The output for further input, in pieces of at most `_OUTPUT_BYTES`. Raises one of CodecError."""


def decoder_factory(codec: str) -> Callable[[], Decoder]:
    """Makes decoders of one frame of a codec (by its name in `formats`), to be used one after another."""
    if codec == ZSTD:
        context = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW_BYTES)
        return lambda: _ZstdDecoder(context.decompressobj())
    factories: dict[str, Callable[[], Decoder]] = {GZIP: _GzipDecoder, XZ: _XzDecoder}
    return factories[codec]


# Tape tools and some object stores pad gzip files with zeros, which are not a member; xz allows zeros between streams.
PADDING = {ZSTD: b"", GZIP: b"\0", XZ: b"\0"}


class _GzipDecoder:
    def __init__(self) -> None:
        self._state = zlib.decompressobj(zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._state.eof

    @property
    def unused_data(self) -> bytes:
        return self._state.unused_data

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data and not self._state.eof:
            output = self._state.decompress(data, _OUTPUT_BYTES)
            data = self._state.unconsumed_tail
            if output:
                yield output
        # Output that the decoder still holds after it has taken all input.
        while not self._state.eof and (output := self._state.decompress(b"", _OUTPUT_BYTES)):
            yield output


class _XzDecoder:
    def __init__(self) -> None:
        self._state = lzma.LZMADecompressor(lzma.FORMAT_XZ)

    @property
    def eof(self) -> bool:
        return self._state.eof

    @property
    def unused_data(self) -> bytes:
        return self._state.unused_data

    def decode(self, data: bytes) -> Iterator[bytes]:
        output = self._state.decompress(data, _OUTPUT_BYTES)
        while output:
            yield output
            if self._state.eof or self._state.needs_input:
                return
            output = self._state.decompress(b"", _OUTPUT_BYTES)


class _ZstdDecoder:
    def __init__(self, state: Any) -> None:
        self._state = state
        self._blocks = _ZstdBlocks()
        self._rest = b""  # input that was not given to the library any more

    @property
    def eof(self) -> bool:
        eof: bool = self._state.eof
        return eof

    @property
    def unused_data(self) -> bytes:
        unused: bytes = self._state.unused_data + self._rest
        return unused

    def decode(self, data: bytes) -> Iterator[bytes]:
        begin = 0
        for end in self._blocks.cuts(data):
            output = self._state.decompress(data[begin:end])
            begin = end
            if output:
                yield output
            if self._state.eof:
                self._rest = data[begin:]
                return


class _ZstdBlocks:
    """Follows the headers of one zstd frame to find where its blocks end."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._in_frame_header = True
        self._skip = 0  # bytes before the next header
        self._blocks = 0
        self._lost = False  # no valid frame: the library will say so

    def cuts(self, data: bytes) -> Iterator[int]:
        """Ends of pieces of `data` with at most `_ZSTD_BLOCKS` blocks each; the last one is the end of `data`."""
        position = 0
        while position < len(data) and not self._lost:
            if self._skip:
                step = min(self._skip, len(data) - position)
                self._skip -= step
                position += step
                continue
            need = self._frame_header_size() if self._in_frame_header else 3
            taken = data[position : position + need - len(self._header)]
            self._header += taken
            position += len(taken)
            if len(self._header) < need or (self._in_frame_header and need < self._frame_header_size()):
                continue
            if self._in_frame_header:
                self._in_frame_header = False
            else:
                if self._blocks == _ZSTD_BLOCKS:
                    self._blocks = 0
                    yield position
                self._begin_block()
            self._header.clear()
        if data:
            yield len(data)

    def _frame_header_size(self) -> int:
        """The size of the frame header as far as it is known: 5 bytes tell it."""
        header = self._header
        if len(header) < 5:
            return 5
        if int.from_bytes(header[:4], "little") != zstandard.MAGIC_NUMBER:
            self._lost = True  # a skippable frame, which has no output, or damage
            return 5
        descriptor = header[4]
        single_segment = descriptor >> 5 & 1
        content_size = (single_segment, 2, 4, 8)[descriptor >> 6]
        return 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3] + content_size

    def _begin_block(self) -> None:
        header = int.from_bytes(self._header, "little")
        is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
        self._skip = 1 if kind == 1 else size
        self._blocks += 1
        if is_last:
            self._lost = True  # what follows is a checksum of 4 bytes and the next frame
