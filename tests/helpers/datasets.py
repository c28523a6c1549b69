"""Complete dataset folders in milliseconds, without Ray: the files of `prepare`, written by its own functions.

`tests/data_prep/test_small_datasets.py` checks that they equal the files that `prepare` writes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data_prep.dataset.indexed_dataset import TokenFileWriter, token_dtype
from data_prep.dataset.manifest import (
    EngineRecord,
    Manifest,
    SourceCounts,
    SplitRecord,
    TokenizerRecord,
    describe_files,
    write_manifest,
    write_sources,
)
from data_prep.dataset.packing import rows_file
from data_prep.dataset.row_index import write_row_index
from data_prep.files import sha256_file
from data_prep.readers.input_files import Split
from data_prep.tokenization.backends import ReferenceBackend
from data_prep.tokenization.tokenizer import eos_id, load_tokenizer, num_ids, save_tokenizer, train_tokenizer


@dataclass(frozen=True)
class Document:
    """Token ids as stored in the `.bin`, the number of bytes of their text, and its source."""

    tokens: Sequence[int]
    num_bytes: int
    source: str


def numbered_documents(num_documents: int, longest: int, first: int = 1000, seed: int = 0) -> list[list[int]]:
    """Documents whose tokens are all different and numbered in corpus order, so that tokens show what was covered."""
    documents = []
    for length in np.random.default_rng(seed).integers(1, longest + 1, num_documents).tolist():
        documents.append(list(range(first, first + length)))
        first += length
    return documents


def write_dataset(
    folder: Path,
    documents: Sequence[Sequence[int]],
    row_lengths: Sequence[int] = (),
    split: Split = "train",
    sources: Sequence[str] | None = None,
    tokenizer_sha256: str = "",
) -> Path:
    """Write a folder of one split with the given token ids. The tokenizer in the folder need not know these ids.

    `sources` names the source of each document. Without it every document is from "one", and no file of sources is written.
    """
    folder.mkdir(parents=True)
    save_tokenizer(_tokenizer_of_numbers(), folder / "tokenizer.json")
    named = sources or ["one"] * len(documents)
    split_documents = [Document(tokens, 4 * len(tokens), source) for tokens, source in zip(documents, named, strict=True)]
    record = _write_split(folder, split, split_documents, np.dtype("<i4"), row_lengths, with_sources=sources is not None)
    tokenizer = TokenizerRecord(sha256=tokenizer_sha256, vocab_size=420, eos_id=1)
    write_manifest(folder, synthetic_manifest(tokenizer, "int32", {split: record}, files=describe_files(folder)))
    return folder


def write_text_dataset(
    folder: Path,
    texts: Mapping[Split, Sequence[tuple[str, str]]],
    row_lengths: Sequence[int],
    vocab_size: int = 420,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write a folder of texts. Each split is given as pairs of text and source.

    If no tokenizer is given, one is trained on the texts of the split "train".
    """
    folder.mkdir(parents=True)
    save_tokenizer(tokenizer or train_tokenizer([text for text, _ in texts["train"]], vocab_size), folder / "tokenizer.json")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    engine, end = ReferenceBackend(tokenizer), eos_id(tokenizer)
    dtype = token_dtype(num_ids(tokenizer))
    splits = {}
    for split, pairs in texts.items():
        documents = []
        for text, source in pairs:
            data = text.encode("utf-8")
            documents.append(Document([*engine.encode([data])[0].tolist(), end], len(data), source))
        splits[split] = _write_split(folder, split, documents, dtype, row_lengths, with_sources=True)
    tokenizer_record = TokenizerRecord(sha256=sha256_file(folder / "tokenizer.json"), vocab_size=num_ids(tokenizer), eos_id=end)
    write_manifest(folder, synthetic_manifest(tokenizer_record, dtype.name, splits, files=describe_files(folder)))
    return folder


def write_python_topics(folder: Path) -> Path:
    """Rows of 24 tokens from Python's own documentation: 600 ids, two alternating sources, 12 documents in "val"."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    sources = ("Python documentation", "Python topics")
    chosen: dict[Split, list[str]] = {"train": names[:-12], "val": names[-12:]}
    texts = {split: [(topics[name], sources[number % 2]) for number, name in enumerate(chosen[split])] for split in chosen}
    return write_text_dataset(folder, texts, [24], vocab_size=600)


def tales(file: int) -> list[tuple[str, str]]:
    """The 30 texts of one small file, about 700 bytes each, with their source: "Songs" in file 0, otherwise "Tales"."""
    text = "File {} tells story {} of a king and of the sea that he could not command. "
    return [(text.format(file, number) * 9, "Tales" if file else "Songs") for number in range(30)]


def synthetic_manifest(tokenizer: TokenizerRecord, dtype: str, splits: dict[str, SplitRecord], **fields: Any) -> Manifest:
    """The manifest of a folder that `prepare` did not make: its list of input is empty. `fields` are fields of `Manifest`."""
    empty = {
        "command": "a test",
        "config": {},
        "config_sha256": "",
        "inputs": [],
        "records": sum(split.total.documents for split in splits.values()),
        "rejected": {},
        "dropped": {},
        "blank_lines": 0,
        "skipped_inputs": {},
        "engine": EngineRecord(name="none", note=None, checked_documents=0),
        "units": 0,
        "retokenized_units": 0,
        "stage_seconds": {},
    }
    return Manifest(tokenizer=tokenizer, token_dtype=dtype, splits=splits, **{**empty, **fields})


@functools.cache
def _tokenizer_of_numbers() -> Tokenizer:
    return train_tokenizer(["the same words again and again. "] * 20, 420)


def _write_split(
    folder: Path,
    split: Split,
    documents: Sequence[Document],
    dtype: np.dtype[Any],
    row_lengths: Sequence[int],
    with_sources: bool,
) -> SplitRecord:
    with TokenFileWriter(folder / split, dtype) as writer:
        for document in documents:
            writer.add(np.array(document.tokens, dtype=np.int32))
    lengths = np.array([len(document.tokens) for document in documents], dtype=np.int32)
    counts: dict[str, SourceCounts] = {}
    for document in documents:
        one = SourceCounts(documents=1, tokens=len(document.tokens), bytes=document.num_bytes)
        counts[document.source] = counts.get(document.source, SourceCounts()) + one
    if with_sources:
        names = sorted(counts)
        write_sources(folder, split, np.array([names.index(document.source) for document in documents], dtype=np.uint16))
    return SplitRecord(
        sources=counts,
        length_histogram={},
        packing=[write_row_index(folder / rows_file(split, n), lengths, n, "best_fit") for n in row_lengths],
    )
