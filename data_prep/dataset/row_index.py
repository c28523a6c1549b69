"""The row index of a split in bounded memory: the corpus is packed in parts, and the parts are joined on disk.

A part has so many documents that the padding of its last rows is negligible. Where a part ends depends on the lengths
alone. Packing the whole Pile at once would need about 50 GB of memory; a part needs a few hundred megabytes.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from data_prep.config import PackingConfig, PackingMethod
from data_prep.dataset.indexed_dataset import TokenFile
from data_prep.dataset.manifest import PackingRecord
from data_prep.dataset.packing import IntArray, pack, rows_file
from data_prep.files import atomic_write
from data_prep.readers.input_files import Split

PART_DOCUMENTS = 1 << 20
PART_TOKENS = 1 << 29


def write_row_index(
    path: Path,
    lengths: IntArray,
    row_length: int,
    method: PackingMethod,
    part_documents: int = PART_DOCUMENTS,
    part_tokens: int = PART_TOKENS,
) -> PackingRecord:
    """Pack documents of `lengths` tokens into rows and write, atomically, the file that `PackedRows.load` reads.

    Temporary files in the same folder need as much space as the index: 8 bytes per row and 16 per piece.
    """
    num_rows = num_pieces = num_cut = first_token = 0
    with ExitStack() as stack:
        first_pieces, starts, sizes = (stack.enter_context(TemporaryFile(dir=path.parent)) for _ in range(3))
        for part in _parts(lengths, part_documents, part_tokens):
            rows = pack(part, row_length, method, first_token)
            # With `concatenate`, the last row of a part continues in the next part; its first piece is already written.
            continues = method == "concatenate" and first_token % row_length != 0 and rows.num_rows > 0
            _append(first_pieces, rows.first_piece[int(continues) : -1] + num_pieces)
            _append(starts, rows.start)
            _append(sizes, rows.length)
            num_cut += rows.num_cut(part, first_token)
            num_rows += rows.num_rows - continues
            num_pieces += rows.num_pieces
            first_token += int(part.sum(dtype=np.int64))
        _append(first_pieces, np.array([num_pieces]))
        with atomic_write(path) as file:
            header = np.array([num_rows, num_pieces, row_length], dtype="<i8")
            num_values = len(header) + num_rows + 1 + 2 * num_pieces
            npy.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (num_values,)})
            file.write(header.data)
            for spool in (first_pieces, starts, sizes):
                spool.seek(0)
                shutil.copyfileobj(spool, file, 1 << 24)
    positions = num_rows * row_length
    return PackingRecord(
        row_length=row_length,
        method=method,
        rows=num_rows,
        pieces=num_pieces,
        padding_share=1 - first_token / positions if positions else 0.0,
        cut_documents=num_cut,
    )


def _parts(lengths: IntArray, documents: int, tokens: int) -> Iterator[npt.NDArray[np.int64]]:
    """Consecutive parts of `lengths`: at most `documents` documents and `tokens` tokens, or a single longer document."""
    begin = 0
    while begin < len(lengths):
        part = np.asarray(lengths[begin : begin + documents], dtype=np.int64)
        part = part[: max(1, int(np.searchsorted(np.cumsum(part), tokens, side="right")))]
        yield part
        begin += len(part)


def _append(file: BinaryIO, values: IntArray) -> None:
    file.write(np.ascontiguousarray(values, dtype="<i8").data)


def pack_split(output: Path, split: Split, config: PackingConfig) -> list[PackingRecord]:
    """Write `<split>.rows_<length>.npy` for each length; return the manifest's record of each."""
    lengths = TokenFile(output / split).lengths
    return [
        write_row_index(output / rows_file(split, row_length), lengths, row_length, config.method)
        for row_length in config.lengths
    ]
