"""Records to documents: The Pile's JSON lines in all forms that are published, and a reason for each rejected record."""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from data_prep.readers.blocks import Line, LostTail, read_lines
from data_prep.readers.json_objects import objects_of
from data_prep.readers.locations import Location

UNKNOWN_SOURCE = "unknown"

_FIRST_BYTES = 200
# A `meta` written as a Python literal is a few dozen bytes; longer ones are not parsed, because the parser is recursive.
_MAX_PYTHON_META_CHARACTERS = 1 << 16
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_INVALID_JSON = "invalid JSON"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text and its origin. `file` is the input's name in the plan, `line` counts from 1."""

    text: str
    source: str
    file: str
    line: int


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """One record that is not a document. `first_bytes` is its start, with undecodable bytes as backslash escapes.

    `reason` is one of a few words, so that rejected records can be counted; `detail` is what a decoder said, if it did.
    """

    file: str
    line: int
    reason: str
    first_bytes: str
    detail: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The record as the quarantine file has it."""
        return {key: value for key, value in vars(self).items() if value is not None}


class BadRecordError(ValueError):
    """A line that has no document; the message is one of a few fixed reasons, so that they can be counted."""


def read_records(path: Location, name: str, max_record_bytes: int) -> Iterator[Document | Rejected]:
    """The documents and rejected records of one file, in order; blank lines are skipped."""
    for line in read_lines(path, max_record_bytes):
        yield from records_of_line(line, name)


def records_of_line(line: Line | LostTail, file: str, starts_file: bool | None = None) -> list[Document | Rejected]:
    """The documents and rejected records of one line, usually one; none for a blank line.

    A line with several objects, as where a file without a newline at its end was joined with another, has a record for each.
    `starts_file`: whether this is the file's first line, which may begin with a byte order mark; None: if its number is 1.
    """

    def reject(data: bytes, reason: str, detail: str | None = None) -> Rejected:
        first_bytes = data[:_FIRST_BYTES].decode("utf-8", "backslashreplace")
        return Rejected(file=file, line=line.number, reason=reason, first_bytes=first_bytes, detail=detail)

    if isinstance(line, LostTail):
        return [reject(line.data, line.reason, line.detail)]
    if line.too_long:
        return [reject(line.data, "record too long")]
    data = line.data
    if (line.number == 1 if starts_file is None else starts_file) and data.startswith(_BYTE_ORDER_MARK):
        data = data.removeprefix(_BYTE_ORDER_MARK)
    data = data.removesuffix(b"\r")
    if not data.strip():
        return []
    found: list[Document | Rejected] = []
    try:
        for record, may_hold_surrogates in _parse_json(data):
            try:
                text, source = _text_and_source(record, may_hold_surrogates)
                found.append(Document(text=text, source=source, file=file, line=line.number))
            except BadRecordError as error:
                found.append(reject(data, str(error)))
    except BadRecordError as error:
        return [reject(data, str(error))]
    return found


def parse_record(data: bytes) -> tuple[str, str]:
    r"""Text and source of one record. Both are valid Unicode: lone surrogates are replaced by U+FFFD.

    A record is a JSON string, or an object with `text` (a string, or a list of paragraphs, which are joined by a blank line)
    and optionally `meta`. Raises BadRecordError with the reason.
    """
    found = _parse_json(data)
    if len(found) != 1:
        raise BadRecordError(_INVALID_JSON)
    return _text_and_source(*found[0])


def _text_and_source(record: Any, may_hold_surrogates: bool) -> tuple[str, str]:
    meta = None
    text = record
    if isinstance(record, dict):
        if "text" not in record:
            raise BadRecordError("no text key")
        text, meta = record["text"], record.get("meta")
    elif not isinstance(record, str):
        raise BadRecordError("record is not an object")
    if isinstance(text, list) and all(isinstance(paragraph, str) for paragraph in text):
        text = "\n\n".join(text)
    if not isinstance(text, str):
        raise BadRecordError("text is not a string")
    if not text:
        raise BadRecordError("empty text")
    return _LONE_SURROGATE.sub("\ufffd", text) if may_hold_surrogates else text, _source(meta)


def _parse_json(data: bytes) -> list[tuple[Any, bool]]:
    """The values, usually one, and whether its strings may have lone surrogates: searching every text would be too slow."""
    try:
        return [(orjson.loads(data), False)]
    except orjson.JSONDecodeError:
        pass
    # The standard parser also accepts lone surrogate escapes, NaN and long integers, which published shards contain.
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRecordError("invalid UTF-8") from None
    try:
        return [(json.loads(text, parse_int=float), True)]
    except (ValueError, RecursionError):
        pass
    try:
        found = objects_of(text, ("text", "meta"))
    except ValueError:
        found = []
    if not found:
        raise BadRecordError(_INVALID_JSON)
    return [(record, True) for record in found]


def _source(meta: Any) -> str:
    if isinstance(meta, str):
        meta = _parse_meta(meta)
    name = meta.get("pile_set_name") if isinstance(meta, dict) else None
    return _LONE_SURROGATE.sub("\ufffd", name) if isinstance(name, str) and name else UNKNOWN_SOURCE


def _parse_meta(meta: str) -> Any:
    try:
        return json.loads(meta)
    except (ValueError, RecursionError):
        pass
    if len(meta) > _MAX_PYTHON_META_CHARACTERS:
        return None
    try:
        return ast.literal_eval(meta)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
