"""Block boundaries compared byte by byte with their definition, and equal for ranges and streams."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.readers.blocks import Line, LostTail, cut_blocks, lines_of, num_ranges, read_range
from data_prep.readers.streams import DamagedStreamError

_LINES = st.lists(st.binary(max_size=30).map(lambda data: data.replace(b"\n", b" ")), max_size=40).map(b"\n".join)


def _cells(data: bytes, unit_bytes: int) -> dict[int, bytes]:
    """The definition: each line belongs to the cell of its first byte."""
    cells: dict[int, bytes] = {}
    start = 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        cells[start // unit_bytes] = cells.get(start // unit_bytes, b"") + data[start:end]
        start = end
    return cells


@given(_LINES, st.integers(1, 100), st.lists(st.integers(0, 1500), max_size=6))
def test_blocks_do_not_depend_on_how_the_bytes_arrive(data: bytes, unit_bytes: int, cuts: list[int]) -> None:
    pieces = [data[a:b] for a, b in pairwise([0, *sorted(cuts), len(data)])]
    blocks = {block.index: block.data.tobytes() for block in cut_blocks(pieces, unit_bytes, 1 << 20)}
    assert blocks == _cells(data, unit_bytes)


@given(_LINES, st.integers(1, 100))
def test_ranges_of_a_plain_file_give_the_same_blocks(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, unit_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "ranges.jsonl"
    path.write_bytes(data)
    cells = _cells(data, unit_bytes)
    for index in range(num_ranges(len(data), unit_bytes)):
        block = read_range(path, index, unit_bytes, 1 << 20)
        assert (block.index, block.data.tobytes()) == (index, cells.pop(index, b""))
    assert not cells


@given(st.lists(st.integers(0, 5000), max_size=12), st.integers(1, 6000), st.integers(1, 700))
def test_long_lines_are_never_kept_in_memory(sizes: list[int], unit_bytes: int, piece_bytes: int) -> None:
    data = b"".join(b"x" * size + b"\n" for size in sizes)
    limit = 2000
    pieces = [data[start : start + piece_bytes] for start in range(0, len(data), piece_bytes)]
    lines = []
    for block in cut_blocks(pieces, unit_bytes, limit):
        assert block.data.nbytes <= unit_bytes + limit + piece_bytes
        lines += [line for line in lines_of(block, limit) if isinstance(line, Line)]
    assert [line.too_long for line in lines] == [size > limit for size in sizes]
    assert [len(line.data) for line in lines] == [size if size <= limit else 1024 for size in sizes]


def test_an_endless_line_in_a_plain_file_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"a\n" + b"y" * 5_000_000 + b"\nb\n")
    blocks = [read_range(path, index, 1 << 20, 10_000) for index in range(num_ranges(path.stat().st_size, 1 << 20))]
    lines = [line for block in blocks for line in lines_of(block, 10_000)]
    assert [(line.data[:1], len(line.data)) for line in lines] == [(b"a", 1), (b"y", 1024), (b"b", 1)]


def test_a_damaged_stream_ends_with_the_last_block_and_reports_the_lost_line() -> None:
    def pieces() -> object:
        yield b"one\ntwo\nthr"
        raise DamagedStreamError(Path("x"), "truncated", "")

    blocks = list(cut_blocks(pieces(), 4, 100))  # type: ignore[arg-type]
    assert [block.damage for block in blocks] == [None, None, "truncated"]
    lines = [line for block in blocks for line in lines_of(block, 100)]
    assert [line.data for line in lines] == [b"one", b"two", b"thr"]
    assert isinstance(lines[-1], LostTail)


def test_number_of_ranges() -> None:
    assert [num_ranges(size, 10) for size in (0, 1, 10, 21)] == [0, 1, 1, 3]
