import gzip
import lzma
import struct
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_prep.readers.blocks import Line, LostTail, read_lines
from data_prep.readers.formats import WrongFormatError
from data_prep.readers.streams import read_chunks

_SKIPPABLE = struct.pack("<II", 0x184D2A50, 5) + b"hello"


def _zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def _lines(path: Path, data: bytes, limit: int = 1 << 20, unit_bytes: int = 64) -> list[Line | LostTail]:
    path.write_bytes(data)
    return list(read_lines(path, limit, unit_bytes))


@given(
    st.binary(max_size=300),
    st.lists(st.integers(0, 300), max_size=4),
    st.sampled_from(["zst", "gz", "xz", ""]),
    st.integers(1, 400),
)
def test_any_split_into_frames_and_blocks_gives_the_same_lines(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int], kind: str, unit_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"x.jsonl{'.' * bool(kind)}{kind}"
    bounds = [0, *sorted(cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(bounds)]
    pack = {"zst": _zst, "gz": gzip.compress, "xz": lzma.compress, "": bytes}[kind]
    lines = _lines(path, b"".join(map(pack, pieces)), unit_bytes=unit_bytes)
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert lines == [Line(i, line) for i, line in enumerate(expected, 1)]


def test_skippable_and_empty_frames_contain_no_text(tmp_path: Path) -> None:
    data = _SKIPPABLE + _zst(b"a\n") + _zst(b"") + _SKIPPABLE + _zst(b"b")
    assert _lines(tmp_path / "x.jsonl.zst", data) == [Line(1, b"a"), Line(2, b"b")]


@pytest.mark.parametrize("suffix", ["zst", "gz", "xz"])
def test_every_truncation_is_reported(tmp_path: Path, suffix: str) -> None:
    pack = {"zst": _zst, "gz": gzip.compress, "xz": lzma.compress}[suffix]
    first, second = pack(b"one\ntwo\n"), pack(b"three\nfour\n")
    for cut in range(1, len(second)):
        *good, last = _lines(tmp_path / f"x.jsonl.{suffix}", first + second[:-cut])
        assert isinstance(last, LostTail), cut
        assert last.reason == "truncated"
        assert [line.data for line in good][:2] == [b"one", b"two"]


def test_a_flipped_bit_is_detected(tmp_path: Path) -> None:
    data = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(b"one\n" * 1000))
    data[len(data) // 2] ^= 1
    last = _lines(tmp_path / "x.jsonl.zst", _zst(b"zero\n") + bytes(data))[-1]
    assert isinstance(last, LostTail)
    assert last.reason == "corrupt"


def test_gzip_padding_is_not_damage(tmp_path: Path) -> None:
    assert _lines(tmp_path / "x.jsonl.gz", gzip.compress(b"a\n") + b"\0" * 512) == [Line(1, b"a")]


def test_a_line_over_the_limit_is_skipped(tmp_path: Path) -> None:
    lines = _lines(tmp_path / "x.jsonl", b"ok\n" + b"y" * 5000 + b"\nfine\n", limit=100)
    assert lines[0] == Line(1, b"ok")
    assert isinstance(lines[1], Line)
    assert lines[1].too_long
    assert len(lines[1].data) < 5000
    assert lines[2] == Line(3, b"fine")


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(WrongFormatError, match=r"x\.csv.*\.jsonl\.zst"):
        list(read_chunks(tmp_path / "x.csv"))
