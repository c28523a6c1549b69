"""A preview of a dataset folder: counts by split and source, and rows decoded to text."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.dataset.indexed_dataset import TokenFile
from data_prep.dataset.manifest import Manifest
from data_prep.dataset.packing import PackedRows, rows_file
from data_prep.tokenization.tokenizer import TOKENIZER_FILE, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """One line of the table. `token_share`: share of the split's tokens; `bytes`: UTF-8 bytes of text."""

    split: str
    source: str
    documents: int
    tokens: int
    bytes: int
    token_share: float


@dataclass(frozen=True)
class SampleRow:
    """One packed row: the decoded text of each piece, and the number of tokens in the row."""

    row: int
    num_tokens: int
    pieces: list[str]


def source_table(manifest: Manifest) -> list[SourceRow]:
    """Counts of every split and source; the sources of a split are sorted by tokens, largest first."""
    table = []
    for split, record in manifest.ordered_splits:
        for source, counts in sorted(record.sources.items(), key=lambda item: (-item[1].tokens, item[0])):
            table.append(
                SourceRow(
                    split=split,
                    source=source,
                    documents=counts.documents,
                    tokens=counts.tokens,
                    bytes=counts.bytes,
                    token_share=counts.tokens / record.total.tokens,
                )
            )
    return table


def sample_rows(folder: Path | str, split: str, row_length: int, count: int, seed: int = 0) -> list[SampleRow]:
    """`count` rows chosen at random with `seed`, in corpus order, decoded with special tokens shown.

    Raises TokenFileError, PackingError or TokenizerError for a missing or damaged file.
    """
    folder = Path(folder)
    tokens = TokenFile(folder / split).tokens
    rows = PackedRows.load(folder / rows_file(split, row_length))
    tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
    chosen = np.random.default_rng(seed).choice(rows.num_rows, size=min(count, rows.num_rows), replace=False)
    samples = []
    for row in sorted(chosen.tolist()):
        starts, lengths = rows.pieces(row)
        pieces = [tokens[start : start + length].tolist() for start, length in zip(starts, lengths, strict=True)]
        texts = [tokenizer.decode(ids, skip_special_tokens=False) for ids in pieces]
        samples.append(SampleRow(row=row, num_tokens=sum(map(len, pieces)), pieces=texts))
    return samples
