from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.config import PackingMethod
from data_prep.dataset.packing import PackedRows, PackingError, pack
from data_prep.dataset.row_index import write_row_index

_LENGTHS = st.lists(st.integers(0, 40), max_size=60)
_METHODS = st.sampled_from(["best_fit", "concatenate"])


def _ids(rows: PackedRows, row: int, tokens: np.ndarray) -> list[int]:
    """The token ids of one row, piece by piece."""
    spans = zip(*rows.pieces(row), strict=True)
    return [token for start, size in spans for token in tokens[start : start + size].tolist()]


@given(_LENGTHS, st.integers(1, 17), _METHODS)
def test_every_token_is_in_exactly_one_row(lengths: list[int], row_length: int, method: PackingMethod) -> None:
    rows = pack(np.array(lengths, dtype=np.int32), row_length, method)
    bounds = set(np.cumsum(lengths).tolist())
    seen: list[int] = []
    for row in range(rows.num_rows):
        starts, sizes = rows.pieces(row)
        assert sizes.min() > 0
        assert sizes.sum() == rows.lengths_of(np.array([row]))[0] <= row_length
        assert np.all(np.diff(starts) > 0)
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            assert not bounds & set(range(start + 1, start + size)), "a piece crosses documents"
            seen.extend(range(start, start + size))
    assert sorted(seen) == list(range(sum(lengths)))
    first = [rows.pieces(row)[0][0] for row in range(rows.num_rows)]
    assert first == sorted(first)


@given(_LENGTHS, st.integers(1, 17))
def test_concatenate_equals_slices_of_the_stream(lengths: list[int], row_length: int) -> None:
    tokens = np.arange(1, sum(lengths) + 1)
    rows = pack(np.array(lengths, dtype=np.int32), row_length, "concatenate")
    chopped = [tokens[begin : begin + row_length].tolist() for begin in range(0, len(tokens), row_length)]
    assert [_ids(rows, row, tokens) for row in range(rows.num_rows)] == chopped
    assert rows.lengths_of(np.arange(rows.num_rows)).tolist() == [len(ids) for ids in chopped]


@given(st.lists(st.integers(1, 17), max_size=60), st.integers(1, 17))
def test_best_fit_equals_the_textbook_algorithm(lengths: list[int], row_length: int) -> None:
    free: list[int] = []
    pieces = [row_length] * sum(n // row_length for n in lengths) + [n % row_length for n in lengths if n % row_length]
    for size in sorted(pieces, reverse=True):
        fitting = [i for i, space in enumerate(free) if space >= size]
        if fitting:
            free[min(fitting, key=lambda i: free[i])] -= size
        else:
            free.append(row_length - size)
    rows = pack(np.array(lengths, dtype=np.int32), row_length)
    assert sorted(row_length - rows.lengths_of(np.arange(rows.num_rows))) == sorted(free)


@given(_LENGTHS, st.integers(1, 17), _METHODS, st.lists(st.integers(0, 10**6), max_size=8))
def test_row_lengths_are_the_sums_of_their_pieces(
    lengths: list[int], row_length: int, method: PackingMethod, wanted: list[int]
) -> None:
    rows = pack(np.array(lengths, dtype=np.int32), row_length, method)
    chosen = np.array([row % rows.num_rows for row in wanted] if rows.num_rows else [], dtype=np.int64)
    assert rows.lengths_of(chosen).tolist() == [int(rows.pieces(row)[1].sum()) for row in chosen]


def test_documents_that_fit_are_not_split() -> None:
    lengths = np.random.default_rng(0).integers(1, 640, size=5_000)
    rows = pack(lengths, 640)
    assert rows.num_pieces == len(lengths)
    assert rows.padding_share < 0.02


def test_a_file_is_one_flat_array_and_loads_unchanged(tmp_path: Path) -> None:
    lengths = np.array([3, 5, 2, 12])
    rows = pack(lengths, 5)
    write_row_index(tmp_path / "train.rows_5.npy", lengths, 5, "best_fit")
    flat = np.load(tmp_path / "train.rows_5.npy")
    assert flat.dtype == np.int64
    assert flat[:3].tolist() == [rows.num_rows, rows.num_pieces, 5]
    loaded = PackedRows.load(tmp_path / "train.rows_5.npy")
    assert isinstance(loaded.start.base, np.memmap)
    for name in ("row_length", "first_piece", "start", "length"):
        assert np.array_equal(getattr(loaded, name), getattr(rows, name))
    np.save(tmp_path / "cut.npy", flat[:-1])
    with pytest.raises(PackingError, match=r"cut\.npy.*pack again"):
        PackedRows.load(tmp_path / "cut.npy")
    with pytest.raises(PackingError, match=r"none\.npy"):
        PackedRows.load(tmp_path / "none.npy")


def test_the_row_length_must_be_positive() -> None:
    with pytest.raises(PackingError, match="at least 1"):
        pack(np.array([1]), 0)
