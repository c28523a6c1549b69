"""Packing in parts, compared with packing all at once and with the documents."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.config import PackingMethod
from data_prep.dataset.packing import PackedRows, pack
from data_prep.dataset.row_index import write_row_index

_LENGTHS = st.lists(st.integers(0, 40), max_size=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@given(_LENGTHS, st.integers(1, 17), st.integers(1, 20), st.integers(1, 200))
def test_parts_of_a_concatenated_stream_equal_the_whole(
    folder: Path, lengths: list[int], row_length: int, part_documents: int, part_tokens: int
) -> None:
    whole = np.array(lengths, dtype=np.int32)
    record = write_row_index(folder / "c.npy", whole, row_length, "concatenate", part_documents, part_tokens)
    found, expected = PackedRows.load(folder / "c.npy"), pack(whole, row_length, "concatenate")
    for name in ("first_piece", "start", "length"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    assert (record.rows, record.pieces) == (expected.num_rows, expected.num_pieces)
    assert record.cut_documents == expected.num_cut(whole)
    assert record.padding_share == pytest.approx(expected.padding_share)


@given(_LENGTHS, st.integers(1, 17), st.sampled_from(["best_fit", "document"]), st.integers(1, 20), st.integers(1, 200))
def test_parts_have_every_token_once_and_split_no_document_that_fits(
    folder: Path, lengths: list[int], row_length: int, method: PackingMethod, part_documents: int, part_tokens: int
) -> None:
    whole = np.array(lengths, dtype=np.int32)
    record = write_row_index(folder / "b.npy", whole, row_length, method, part_documents, part_tokens)
    rows = PackedRows.load(folder / "b.npy")
    spans = [(s, n) for r in range(rows.num_rows) for s, n in zip(*(a.tolist() for a in rows.pieces(r)), strict=True)]
    assert sorted(token for start, size in spans for token in range(start, start + size)) == list(range(sum(lengths)))
    assert (rows.lengths_of(np.arange(rows.num_rows)) <= row_length).all()
    assert record.cut_documents == sum(length > row_length for length in lengths)
    assert record.pieces == len(spans)


def test_a_single_part_equals_the_whole(folder: Path) -> None:
    lengths = np.random.default_rng(0).geometric(1 / 300, size=3_000)
    write_row_index(folder / "parts.npy", lengths, 640, "best_fit")
    rows = pack(lengths, 640)
    header = np.array([rows.num_rows, rows.num_pieces, 640], dtype="<i8")
    np.save(folder / "whole.npy", np.concatenate([header, rows.first_piece, rows.start, rows.length]))
    assert (folder / "parts.npy").read_bytes() == (folder / "whole.npy").read_bytes()


def test_packing_in_parts_adds_almost_no_padding(folder: Path) -> None:
    lengths = np.random.default_rng(0).geometric(1 / 300, size=200_000)
    record = write_row_index(folder / "parts.npy", lengths, 640, "best_fit", part_documents=20_000)
    assert record.padding_share < 0.005
    assert list(folder.glob("*.tmp")) == []
