"""JSON objects from a line when the standard parsers fail: several on one line, numbers of any length, any nesting.

Only the fields that are needed become values; others are checked without recursion and without conversion.
"""

import json
import re
from collections.abc import Collection
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")
_SCALAR = re.compile(
    r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?'
    r"|true|false|null|NaN|-?Infinity"
)
_CLOSING = {"[": "]", "{": "}"}
# A value of a needed field may be nested; deeper ones are no text and no source.
_DECODER = json.JSONDecoder(parse_int=float)
_scan_string = json.decoder.scanstring  # type: ignore[attr-defined]


def objects_of(text: str, needed: Collection[str]) -> list[dict[str, Any]]:
    """The JSON objects that `text` consists of, each with its `needed` fields alone. Raises ValueError for anything else."""
    found = []
    position = _after_space(text, 0)
    while position < len(text):
        record, position = _object(text, position, needed)
        found.append(record)
        position = _after_space(text, position)
    return found


def _object(text: str, position: int, needed: Collection[str]) -> tuple[dict[str, Any], int]:
    """The object that begins at `position`, and where it ends."""
    record: dict[str, Any] = {}
    position = _after(text, position, "{")
    if text.startswith("}", position):
        return record, position + 1
    while True:
        if not text.startswith('"', position):
            raise ValueError(f"no key at {position}")
        key, position = _scan_string(text, position + 1, True)
        position = _after(text, _after_space(text, position), ":")
        end = _end_of_value(text, position)
        if key in needed:
            record[key] = _value(text[position:end])
        position = _after_space(text, end)
        if text.startswith("}", position):
            return record, position + 1
        position = _after(text, position, ",")


def _value(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except RecursionError:
        return None


def _end_of_value(text: str, position: int) -> int:
    """Where the value that begins at `position` ends. Raises ValueError if it is not valid JSON."""
    closing: list[str] = []
    while True:
        opened = text[position : position + 1]
        if opened in _CLOSING and opened:
            position = _after_space(text, position + 1)
            if not text.startswith(_CLOSING[opened], position):
                closing.append(_CLOSING[opened])
                position = _after_key(text, position, closing[-1])
                continue
            position += 1
        else:
            scalar = _SCALAR.match(text, position)
            if scalar is None:
                raise ValueError(f"no value at {position}")
            position = scalar.end()
        # A value has ended: close what ends with it, or go to the next one.
        while closing:
            position = _after_space(text, position)
            if text.startswith(closing[-1], position):
                closing.pop()
                position += 1
                continue
            position = _after_key(text, _after(text, position, ","), closing[-1])
            break
        else:
            return position


def _after_key(text: str, position: int, closing: str) -> int:
    """Where the value of an object's next key begins; in a list `position` itself."""
    if closing == "]":
        return position
    key = _SCALAR.match(text, position) if text.startswith('"', position) else None
    if key is None:
        raise ValueError(f"no key at {position}")
    return _after(text, _after_space(text, key.end()), ":")


def _after(text: str, position: int, sign: str) -> int:
    if not text.startswith(sign, position):
        raise ValueError(f"no {sign} at {position}")
    return _after_space(text, position + 1)


def _after_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    assert found is not None, "matches the empty string"
    return found.end()
