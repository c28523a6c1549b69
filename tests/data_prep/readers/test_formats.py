"""Odd files: what a file is, memory that does not grow with what it expands to, and values that Python cannot represent."""

import gzip
import json
import lzma
import random
import tracemalloc
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_prep.readers.blocks import cut_blocks, read_lines
from data_prep.readers.formats import WrongFormatError, looks_like, validate_lines
from data_prep.readers.json_objects import objects_of
from data_prep.readers.records import BadRecordError, Document, parse_record, read_records
from data_prep.readers.streams import read_chunks

_MB = 1 << 20
_HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"


def _bombs(num_bytes: int) -> dict[str, bytes]:
    zeros = b"a" * num_bytes
    return {
        "zst": zstandard.ZstdCompressor().compress(zeros),
        "gz": gzip.compress(zeros),
        "xz": lzma.compress(zeros),
    }


@pytest.mark.parametrize("suffix", ["zst", "gz", "xz"])
def test_output_of_repetitive_input_comes_in_bounded_pieces(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.jsonl.{suffix}"
    path.write_bytes(_bombs(50 * _MB)[suffix] * 2)
    sizes = [len(chunk) for chunk in read_chunks(path)]
    assert sum(sizes) == 100 * _MB
    assert max(sizes) <= 4 * _MB


def test_memory_does_not_grow_with_what_a_small_file_expands_to(tmp_path: Path) -> None:
    peaks = []
    for num_bytes in (20 * _MB, 200 * _MB):
        path = tmp_path / "x.jsonl.zst"
        path.write_bytes(_bombs(num_bytes)["zst"])
        tracemalloc.start()
        for _ in cut_blocks(read_chunks(path), 8 * _MB, _MB):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 40 * _MB


@given(
    st.lists(st.binary(max_size=3000), min_size=1, max_size=5),
    st.booleans(),
    st.booleans(),
    st.integers(1, 5000),
    st.integers(0, 2**32),
)
def test_any_frames_read_in_any_chunks_give_their_bytes(
    pieces: list[bytes], checksum: bool, with_size: bool, chunk: int, seed: int
) -> None:
    """The boundaries of zstd's blocks may be anywhere in a chunk; random bytes give raw blocks, repeated ones RLE blocks."""
    from data_prep.readers.decoders import decoder_factory
    from data_prep.readers.formats import ZSTD

    pieces = [*pieces, b"z" * 300_000, random.Random(seed).randbytes(150_000)]
    packer = zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=with_size)
    data = b"".join(packer.compress(piece) for piece in pieces)
    new, frame, found = decoder_factory(ZSTD), None, b""
    for begin in range(0, len(data), chunk * 20):
        rest = data[begin : begin + chunk * 20]
        while rest:
            frame = frame or new()
            found += b"".join(frame.decode(rest))
            rest, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    assert frame is None
    assert found == b"".join(pieces)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.jsonl.zst", b'{"text": "plain"}\n', "begins like plain text"),
        ("x.jsonl.gz", _HTML, "begins like an HTML page"),
        ("x.jsonl.xz", gzip.compress(b"{}", mtime=0), "begins like gzip data"),
        ("x.jsonl.zst", b"version https://git-lfs.github.com/spec/v1\n", "begins like a Git LFS pointer .run `git lfs pull`."),
        ("x.parquet", _HTML, "begins like an HTML page"),
    ],
)
def test_a_file_that_does_not_decode_is_described(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    for read in (lambda: list(read_lines(tmp_path / name, _MB)), lambda: list(read_records(tmp_path / name, name, _MB))):
        with pytest.raises(WrongFormatError, match=rf"nothing in it can be read: ..*; the file {words}; fetch"):
            read()


def test_a_frame_with_a_dictionary_is_described(tmp_path: Path) -> None:
    samples = [f"document {i} about topic {i % 7} ".encode() * 3 for i in range(2000)]
    dictionary = zstandard.train_dictionary(4096, samples)
    (tmp_path / "x.jsonl.zst").write_bytes(zstandard.ZstdCompressor(dict_data=dictionary).compress(samples[0]))
    with pytest.raises(WrongFormatError, match=r"nothing in it can be read: .*ictionary"):
        list(read_lines(tmp_path / "x.jsonl.zst", _MB))


@pytest.mark.parametrize("name", ["x.jsonl.zst", "x.jsonl.gz", "x.jsonl.xz", "x.parquet"])
def test_a_file_that_is_lost_as_a_whole_is_no_damaged_record(tmp_path: Path, name: str) -> None:
    """One bad record in place of all documents of a file would pass any limit on bad records."""
    text = "".join(f"{i} {random.Random(i).random()} " for i in range(20_000))
    if name == "x.parquet":
        pq.write_table(pa.table({"text": [text] * 3}), tmp_path / name)
    else:
        packed = {"zst": zstandard.ZstdCompressor().compress, "gz": gzip.compress, "xz": lzma.compress}[name.rsplit(".", 1)[1]]
        (tmp_path / name).write_bytes(packed(json.dumps({"text": text}).encode()))
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:30])
    with pytest.raises(WrongFormatError, match="nothing in it can be read"):
        list(read_lines(tmp_path / name, _MB))


@pytest.mark.parametrize("data", [gzip.compress(b"{}", mtime=0), _HTML, b"PK\x03\x04zip", "{}".encode("utf-16")])
def test_a_file_of_lines_that_is_something_else_is_refused(data: bytes) -> None:
    with pytest.raises(WrongFormatError, match=rf"a\.jsonl: named \.jsonl, but it is {looks_like(data)}"):
        validate_lines("a.jsonl", data)
    validate_lines("a.jsonl", b'\xef\xbb\xbf{"text": "<html>"}')


def _texts(path: Path) -> list[str]:
    records = list(read_records(path, path.name, 64 * _MB))
    return [record.text if isinstance(record, Document) else record.reason for record in records]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string(), pa.large_string(), pa.binary(3)])
def test_parquet_text_of_every_type_is_decoded(tmp_path: Path, kind: pa.DataType) -> None:
    """Spark and Impala write strings as binary."""
    values = ["abc", "dé", 'g"\n']
    column = pa.array([value.encode() for value in values], pa.binary()).cast(kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet")
    assert _texts(tmp_path / "x.parquet") == values


def test_a_parquet_value_that_is_no_text_is_quarantined_alone(tmp_path: Path) -> None:
    invalid = pa.Array.from_buffers(pa.string(), 3, pa.array([b"good", b"b\xffd\n", b"too"], pa.binary()).buffers())
    pq.write_table(pa.table({"text": invalid}), tmp_path / "x.parquet")
    assert _texts(tmp_path / "x.parquet") == ["good", "invalid UTF-8", "too"]
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "y.parquet")
    assert _texts(tmp_path / "y.parquet") == ["a", "text is not a string"]


def test_of_meta_only_the_source_is_read(tmp_path: Path) -> None:
    late = pa.array([2**62], pa.timestamp("us"))
    meta = pa.StructArray.from_arrays([pa.array(["ArXiv"]), late], ["pile_set_name", "time"])
    for name, column in {"struct": meta, "time": late, "text": pa.array(["{'pile_set_name': 'ArXiv'}"])}.items():
        pq.write_table(pa.table({"text": ["x"], "meta": column}), tmp_path / f"{name}.parquet")
        (record,) = read_records(tmp_path / f"{name}.parquet", name, _MB)
        assert isinstance(record, Document)
        assert record.source == ("unknown" if name == "time" else "ArXiv")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"text": [1, 2]}, "column 'text' has values of type int64, not text"),
        ({"text": [{"a": "x"}]}, "column 'text' has values of type struct"),
        ({"content": ["x"]}, "no column 'text'; there are content"),
    ],
)
def test_a_parquet_file_without_texts_is_refused_by_name(tmp_path: Path, table: dict[str, list[object]], words: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    with pytest.raises(WrongFormatError, match=rf"x\.parquet: {words}"):
        list(read_chunks(tmp_path / "x.parquet"))


def test_large_parquet_rows_are_decoded_a_few_at_a_time(tmp_path: Path) -> None:
    texts = [random.Random(i).randbytes(200_000).hex() for i in range(100)]
    # A page is decoded as a whole, so memory is at least that of the file's largest page.
    pq.write_table(pa.table({"text": texts}), tmp_path / "x.parquet", row_group_size=100, write_batch_size=1)
    before = pa.total_allocated_bytes()
    peak = 0
    for chunk in read_chunks(tmp_path / "x.parquet"):
        peak = max(peak, pa.total_allocated_bytes() - before)
        assert len(chunk) < 9 * _MB
    assert peak < 20 * _MB < sum(map(len, texts))
    assert _texts(tmp_path / "x.parquet") == texts


@pytest.mark.parametrize("extra", ["1" * 5000, "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, "-1e999999"])
def test_a_field_that_is_not_needed_cannot_lose_a_record(extra: str) -> None:
    line = f'{{"id": {extra}, "text": "kept", "meta": {{"pile_set_name": "A"}}, "z": {extra}}}'
    assert parse_record(line.encode()) == ("kept", "A")


@pytest.mark.parametrize("bad", ["[" * 3000 + "]" * 2999, "[1,,2]", "[" * 3000 + "1 2" + "]" * 3000, "{1: 2}", "01", "'x'"])
def test_a_malformed_field_is_still_invalid_json(bad: str) -> None:
    with pytest.raises(BadRecordError, match="invalid JSON"):
        parse_record(f'{{"text": "x", "id": {bad}}}'.encode())


def test_several_objects_on_one_line_are_several_records(tmp_path: Path) -> None:
    """As after joining a file that has no newline at its end with another."""
    (tmp_path / "x.jsonl").write_text('{"text": "a"}{"text": "b"} {"no": 1}\n{"text": "c"}{broken\n"d""e"\n')
    assert _texts(tmp_path / "x.jsonl") == ["a", "b", "no text key", "invalid JSON", "invalid JSON"]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.lists(st.dictionaries(st.sampled_from(["text", "meta", "id", "x"]), _VALUES, max_size=4), min_size=1, max_size=3))
def test_the_reader_of_objects_agrees_with_the_standard_parser(records: list[dict[str, object]]) -> None:
    text = " ".join(json.dumps(record, ensure_ascii=bool(i % 2)) for i, record in enumerate(records))
    expected = [{key: record[key] for key in record if key in ("text", "meta")} for record in records]
    expected = [json.loads(json.dumps(record), parse_int=float) for record in expected]
    assert repr(objects_of(text, ("text", "meta"))) == repr(expected)
    with pytest.raises(ValueError, match=r"at \d+|char"):
        objects_of(text + "}", ("text", "meta"))


def test_a_text_file_is_one_record_of_any_size(tmp_path: Path) -> None:
    text = ('ünï "quoted" \\ back\n\t' * 100_000)[1:]
    (tmp_path / "x.txt").write_bytes(text.encode())
    assert _texts(tmp_path / "x.txt") == [text]
    assert max(len(chunk) for chunk in read_chunks(tmp_path / "x.txt")) < 3 * _MB
    (tmp_path / "x.txt").write_bytes(text.encode() + b"\xff" + b'\n"end')
    assert _texts(tmp_path / "x.txt") == ["invalid UTF-8"]
    (tmp_path / "x.txt").write_bytes(text.encode()[:-1] + b"\xc3")
    assert _texts(tmp_path / "x.txt") == ["invalid UTF-8"]
    assert orjson.loads(b"".join(read_chunks(_written(tmp_path / "y.txt", b"abc")))) == {"text": "abc"}


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
