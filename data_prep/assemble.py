"""Part files to the finished files of a folder: token pairs, row indexes and the quarantine, in plan order."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.config import PackingConfig
from data_prep.files import atomic_write
from data_prep.indexed_dataset import TokenFile, TokenFileWriter
from data_prep.manifest import MANIFEST_FILE, PackingRecord
from data_prep.packing import pack, rows_file
from data_prep.tokenize_unit import part_path
from data_prep.tokenizer import TOKENIZER_FILE
from data_prep.work_units import SPLITS, Split, WorkUnit

QUARANTINE_FILE = "quarantine.jsonl"
_OURS = re.compile(
    rf"({'|'.join(SPLITS)})\.(bin|idx|rows_\d+\.npy)|{re.escape(QUARANTINE_FILE)}|{re.escape(TOKENIZER_FILE)}"
    rf"|\.({'|'.join(SPLITS)}|{re.escape(MANIFEST_FILE)})\b.*\.tmp"
)


def join_tokens(units: Sequence[WorkUnit], split: Split, parts: Path, output: Path, dtype: np.dtype[Any]) -> None:
    """Write `<split>.bin` and `.idx` from the parts that units left, in plan order."""
    with TokenFileWriter(output / split, dtype) as writer:
        for unit in units:
            lengths_path = part_path(parts, unit, f"{split}.lengths")
            if lengths_path.exists():
                tokens = np.memmap(part_path(parts, unit, f"{split}.tokens"), dtype=dtype, mode="r")
                writer.add(tokens, np.fromfile(lengths_path, dtype="<i4"))


def join_quarantine(units: Sequence[WorkUnit], parts: Path, output: Path) -> None:
    """Write `quarantine.jsonl`, in plan order and within a file in line order."""
    with atomic_write(output / QUARANTINE_FILE) as file:
        for unit in units:
            file.write(part_path(parts, unit, "quarantine").read_bytes())


def pack_split(output: Path, split: Split, config: PackingConfig) -> list[PackingRecord]:
    """Write `<split>.rows_<length>.npy` for each length and say how well they are filled."""
    lengths = TokenFile(output / split).lengths
    records = []
    for row_length in config.lengths:
        rows = pack(lengths, row_length, config.method)
        rows.save(output / rows_file(split, row_length))
        records.append(
            PackingRecord(
                row_length=row_length,
                method=config.method,
                rows=rows.num_rows,
                pieces=rows.num_pieces,
                padding_share=rows.padding_share,
            )
        )
    return records


def remove_leftovers(output: Path) -> None:
    """Remove what an unfinished run left under names of ours; files of other names stay."""
    for path in output.iterdir():
        if _OURS.fullmatch(path.name):
            path.unlink()
