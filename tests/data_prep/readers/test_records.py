import json
from pathlib import Path

import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_prep.readers.blocks import read_lines
from data_prep.readers.records import BadRecordError, Document, Rejected, parse_record, read_records, records_of_line


def _read(path: Path, data: bytes, limit: int = 1 << 20) -> tuple[list[Document], list[Rejected], int]:
    path.write_bytes(data)
    records = list(read_records(path, "name", limit))
    documents = [record for record in records if isinstance(record, Document)]
    num_blank = sum(not records_of_line(line, "name") for line in read_lines(path, limit))
    return documents, [record for record in records if isinstance(record, Rejected)], num_blank


@pytest.mark.parametrize(
    ("meta", "source"),
    [
        ({"pile_set_name": "ArXiv"}, "ArXiv"),
        ('{"pile_set_name": "ArXiv"}', "ArXiv"),
        ("{'pile_set_name': 'ArXiv'}", "ArXiv"),
        ("{}", "unknown"),
        ("{'language': 'cs'}", "unknown"),
        ("__import__('os').system('false')", "unknown"),
        ("(" * 10_000, "unknown"),
        ({"pile_set_name": 3}, "unknown"),
        ({"pile_set_name": ""}, "unknown"),
        (None, "unknown"),
        ([1], "unknown"),
    ],
)
def test_meta_is_read_in_all_forms(meta: object, source: str) -> None:
    assert parse_record(json.dumps({"text": "x", "meta": meta}).encode()) == ("x", source)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"text": "x"}', "x"),
        (b'"legacy"', "legacy"),
        (b'{"text": ["a", "b"]}', "a\n\nb"),
        (b'{"text": " "}', " "),
        (b'{"text": "x", "score": NaN}', "x"),
        (rb'{"text": "a\ud83d b"}', "a\ufffd b"),
        (rb'{"text": "\ud83d\ude42"}', "🙂"),
        (rb'["not", "text"]', None),
    ],
)
def test_text_is_read_in_all_forms(data: bytes, text: str | None) -> None:
    if text is None:
        with pytest.raises(BadRecordError, match="not an object"):
            parse_record(data)
    else:
        assert parse_record(data) == (text, "unknown")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{not json", "invalid JSON"),
        (b'{"text": "a"}{"text": "b"}', "invalid JSON"),
        (b"[" * 100_000, "invalid JSON"),
        (b'{"text": "\xff"}', "invalid UTF-8"),
        (b'{"txt": "a"}', "no text key"),
        (b"3", "record is not an object"),
        (b'{"text": 3}', "text is not a string"),
        (b'{"text": ["a", 3]}', "text is not a string"),
        (b'{"text": null}', "text is not a string"),
        (b'{"text": ""}', "empty text"),
        (b'{"text": []}', "empty text"),
    ],
)
def test_bad_records_have_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadRecordError, match=f"^{reason}$"):
        parse_record(data)


@given(st.text(min_size=1), st.text(min_size=1))
def test_records_written_by_json_are_read(text: str, source: str) -> None:
    record = {"text": text, "meta": {"pile_set_name": source}}
    assert parse_record(orjson.dumps(record)) == (text, source)
    assert parse_record(json.dumps(record).encode()) == (text, source)


@given(st.binary(max_size=200))
def test_any_line_is_a_document_or_is_rejected(data: bytes) -> None:
    try:
        text, _ = parse_record(data)
    except BadRecordError:
        return
    assert text.encode("utf-8")


def test_lines_are_split_only_at_newlines(tmp_path: Path) -> None:
    texts = ["a\u2028b", "c\u0085d", "e\x0bf\x0c\x1cg", "h\ri"]
    data = b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts)
    documents, rejected, _ = _read(tmp_path / "x.jsonl", data)
    assert [document.text for document in documents] == texts
    assert not rejected


def test_blank_lines_carriage_returns_and_byte_order_mark(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"text": "a"}\r\n\r\n\n  \n{"text": "b"}'
    documents, rejected, num_blank = _read(tmp_path / "x.jsonl", data)
    assert [(document.text, document.line) for document in documents] == [("a", 1), ("b", 5)]
    assert not rejected
    assert num_blank == 3


def test_a_truncated_file_keeps_its_good_lines_and_is_reported(tmp_path: Path) -> None:
    data = b"".join(json.dumps({"text": f"document {i} {i * i}"}).encode() + b"\n" for i in range(20_000))
    whole = zstandard.ZstdCompressor().compress(data)
    documents, rejected, _ = _read(tmp_path / "x.jsonl.zst", whole[: len(whole) // 2])
    assert 0 < len(documents) < 20_000
    assert [document.text for document in documents] == [f"document {i} {i * i}" for i in range(len(documents))]
    assert [(bad.reason, bad.line) for bad in rejected] == [("truncated", len(documents) + 1)]


def test_rejected_records_are_located_and_shown(tmp_path: Path) -> None:
    documents, rejected, _ = _read(tmp_path / "x.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n' + b"z" * 500, limit=100)
    assert len(documents) == 1
    assert [(bad.file, bad.line, bad.reason) for bad in rejected] == [
        ("name", 2, "invalid UTF-8"),
        ("name", 3, "record too long"),
    ]
    assert rejected[0].first_bytes == '{"text": "\\xff"}'
    assert len(rejected[1].first_bytes) == 200


def test_minipile_equals_the_standard_library(test_data: Path) -> None:
    path = test_data / "minipile" / "val.jsonl.zst"
    with open(path, "rb") as file:
        data = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    expected = [json.loads(line) for line in data.split(b"\n") if line]
    documents = list(read_records(path, "val", 1 << 28))
    assert [(document.text, document.source) for document in documents if isinstance(document, Document)] == [
        (record["text"], record["meta"]["pile_set_name"]) for record in expected
    ]
    assert len(documents) == len(expected)
