"""Megatron-core's IndexedDataset pair, byte for byte: `.bin` has the token ids, `.idx` the place of each sequence.

`.idx`, little-endian: magic (9 bytes), version 1 (u64), dtype code (u8), sequences n (u64), documents + 1 d (u64), then
lengths int32[n], byte offsets into `.bin` int64[n], and document starts int64[d], which for us are 0, 1, …, n.
"""

import struct
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.files import atomic_write

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_CODES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_LARGEST_UINT16_VOCABULARY = 65500  # from here on, Megatron's DType.optimal_dtype is int32
_BLOCK = 1 << 20


class TokenFileError(ValueError):
    """A `.bin`/`.idx` pair that is missing, damaged, or of a kind that we do not read."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The dtype that Megatron chooses: uint16 below 65,500 ids, else int32."""
    return np.dtype("<u2" if vocab_size < _LARGEST_UINT16_VOCABULARY else "<i4")


def sequence_offsets(lengths: npt.NDArray[np.integer[Any]], first: int = 0) -> npt.NDArray[np.int64]:
    """Exclusive running sum of `lengths` from `first`: int64 (n,), because int32 sums overflow from 2 GiB on."""
    offsets = np.empty(len(lengths), dtype=np.int64)
    if len(lengths):
        offsets[0] = 0
        np.cumsum(lengths[:-1], dtype=np.int64, out=offsets[1:])
    return offsets + first


def write_index(path: Path | str, lengths: npt.NDArray[np.int32], dtype: np.dtype[Any]) -> None:
    """Write the `.idx` for sequences of `lengths` tokens (n,), each a document, stored one after another in the `.bin`."""
    code = next((code for code, name in _CODES.items() if np.dtype(name) == dtype), None)
    if code is None:
        raise TokenFileError(f"{path}: Megatron has no code for tokens of dtype {dtype}; use uint16 or int32")
    with atomic_write(path) as file:
        file.write(_HEADER.pack(_MAGIC, _VERSION, code, len(lengths), len(lengths) + 1))
        file.write(np.ascontiguousarray(lengths, dtype="<i4").data)
        end = 0
        for start in range(0, len(lengths), _BLOCK):
            block = lengths[start : start + _BLOCK]
            file.write((sequence_offsets(block, end) * dtype.itemsize).astype("<i8").data)
            end += int(block.sum(dtype=np.int64))
        for start in range(0, len(lengths) + 1, _BLOCK):
            file.write(np.arange(start, min(start + _BLOCK, len(lengths) + 1), dtype="<i8").data)


class TokenFileWriter:
    """Streams sequences into `<prefix>.bin` and writes `<prefix>.idx` last, so an incomplete pair has no `.idx`.

    Use as a context manager; after an exception inside, neither file exists. Tokens are written immediately, lengths stay in
    memory (4 bytes per sequence).
    """

    def __init__(self, prefix: Path | str, dtype: np.dtype[Any]) -> None:
        self.prefix = Path(prefix)
        self.dtype = dtype
        self._lengths: list[npt.NDArray[np.int32]] = []
        self._stack = ExitStack()

    def add(self, tokens: npt.NDArray[np.integer[Any]], lengths: npt.NDArray[np.integer[Any]] | None = None) -> None:
        """Append `tokens` (T,): one sequence, or several if `lengths` (n,) is given.

        Raises TokenFileError for an id that does not fit the dtype and for lengths that do not sum to T.
        """
        lengths = np.array([len(tokens)]) if lengths is None else lengths
        if int(lengths.sum(dtype=np.int64)) != len(tokens):
            raise TokenFileError(f"{self.prefix}: lengths sum to {lengths.sum(dtype=np.int64)}, tokens are {len(tokens)}")
        if tokens.dtype != self.dtype and len(tokens):
            limits = np.iinfo(self.dtype)
            if tokens.min() < limits.min or tokens.max() > limits.max:
                raise TokenFileError(f"{self.prefix}: token {tokens.max()} does not fit {self.dtype}")
        self._file.write(np.ascontiguousarray(tokens, dtype=self.dtype).data)
        self._lengths.append(lengths.astype(np.int32))

    def __enter__(self) -> "TokenFileWriter":
        self._file = self._stack.enter_context(atomic_write(_with_suffix(self.prefix, ".bin")))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, tb)
        if kind is None:
            lengths = np.concatenate(self._lengths) if self._lengths else np.empty(0, dtype=np.int32)
            write_index(_with_suffix(self.prefix, ".idx"), lengths, self.dtype)


class TokenFile:
    """Memory-mapped read access to a pair: `tokens` is the whole `.bin`, `file[i]` its i-th sequence.

    tokens: (T,) in the file's dtype; lengths: int32 (n,) in tokens; starts: int64 (n,) token offset of each sequence.
    Without sequences the arrays are empty. Raises TokenFileError if the two files do not belong together.
    """

    def __init__(self, prefix: Path | str) -> None:
        self.prefix = Path(prefix)
        bin_path, idx_path = _with_suffix(self.prefix, ".bin"), _with_suffix(self.prefix, ".idx")
        for path in (bin_path, idx_path):
            if not path.is_file():
                raise TokenFileError(f"{path}: no such file; a token file is a .bin and an .idx with the same name")
        idx_bytes, bin_bytes = idx_path.stat().st_size, bin_path.stat().st_size
        if idx_bytes < _HEADER.size:
            raise TokenFileError(f"{idx_path}: {idx_bytes} bytes are less than the header of {_HEADER.size}; prepare again")
        index = np.memmap(idx_path, dtype=np.uint8, mode="r")
        magic, version, code, n, d = _HEADER.unpack(index[: _HEADER.size].tobytes())
        if magic != _MAGIC or version != _VERSION:
            raise TokenFileError(f"{idx_path}: not a Megatron index (magic {magic!r}, version {version})")
        if code not in _CODES:
            raise TokenFileError(f"{idx_path}: dtype code {code} is not one of the integer codes {sorted(_CODES)}")
        expected = _HEADER.size + 12 * n + 8 * d
        if idx_bytes != expected:
            raise TokenFileError(
                f"{idx_path}: {idx_bytes} bytes, but {n} sequences and {d} document starts take {expected}; "
                "the file is cut or multimodal: prepare again"
            )
        self.dtype = np.dtype(_CODES[code])
        self.lengths: npt.NDArray[np.int32] = np.frombuffer(index, "<i4", n, _HEADER.size)
        offsets: npt.NDArray[np.int64] = np.frombuffer(index, "<i8", n, _HEADER.size + 4 * n)
        end = int(offsets[-1]) + int(self.lengths[-1]) * self.dtype.itemsize if n else 0
        if bin_bytes != end:
            raise TokenFileError(f"{bin_path}: {bin_bytes} bytes, but {idx_path.name} describes {end}; prepare again")
        self.starts: npt.NDArray[np.int64] = offsets // self.dtype.itemsize
        # mmap does not accept an empty file.
        self.tokens: npt.NDArray[Any] = (
            np.memmap(bin_path, dtype=self.dtype, mode="r") if end else np.empty(0, dtype=self.dtype)
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        start = self.starts[index]
        return self.tokens[start : start + self.lengths[index]]


def _with_suffix(prefix: Path, suffix: str) -> Path:
    # Not Path.with_suffix, which would replace the ".v2" of "train.v2".
    return prefix.with_name(prefix.name + suffix)
