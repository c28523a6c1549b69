"""Rows of Arrow tables (Parquet files, datasets) as JSON lines, value by value: what one row holds cannot stop the others."""

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from data_prep.readers.formats import WrongFormatError

TEXT, META, SOURCE = "text", "meta", "pile_set_name"
_OUTPUT_BYTES = 4 << 20


def validate_text_column(place: object, schema: Any, name: str, remedy: str) -> None:
    """Raise WrongFormatError if a schema has no column `name` of strings, bytes or lists of them."""
    import pyarrow as pa  # imported late: only tables need it

    if name not in schema.names:
        raise WrongFormatError(f"{place}: no column {name!r}; there are {', '.join(schema.names)}: {remedy}")
    found = schema.field(name).type
    if not _is_text(_inner(found)) and not pa.types.is_null(found):
        raise WrongFormatError(f"{place}: column {name!r} has values of type {found}, not text: {remedy}")


def record_columns(schema: Any) -> list[str]:
    """The columns of a Parquet file to read: `text`, and the part of `meta` that names the source."""
    import pyarrow as pa

    columns = [TEXT]
    if META in schema.names:
        found = schema.field(META).type
        if pa.types.is_struct(found):
            columns += [f"{META}.{SOURCE}"] if found.get_field_index(SOURCE) >= 0 else []
        elif _is_text(_inner(found)) and not pa.types.is_list(found):
            columns.append(META)
    return columns


def json_lines(texts: Any, metas: Iterator[Any] | None) -> Iterator[bytes]:
    """JSON lines, some megabytes at a time, of an Arrow column of texts and, if there are any, a `meta` for each."""
    held: list[bytes] = []
    num_bytes = 0
    for text in _values(texts):
        line = _line(text, {} if metas is None else {META: next(metas)})
        held.append(line)
        num_bytes += len(line)
        if num_bytes >= _OUTPUT_BYTES:
            yield b"".join(held)
            held, num_bytes = [], 0
    if held:
        yield b"".join(held)


def _line(text: Any, fields: dict[str, Any]) -> bytes:
    """A record. Invalid UTF-8 is kept, so that the record is rejected like any other with this fault."""
    parts = text if isinstance(text, list) else [text]
    if not all(isinstance(part, bytes) for part in parts):
        return orjson.dumps({TEXT: None, **fields}) + b"\n"
    try:
        decoded = [part.decode("utf-8") for part in parts]
    except UnicodeDecodeError:
        return b'{"text": "' + b" ".join(parts).translate(None, b'\n"\\') + b'"}\n'
    return orjson.dumps({TEXT: decoded if isinstance(text, list) else decoded[0], **fields}) + b"\n"


def metas(column: Any) -> Iterator[Any]:
    """The values of a column `meta`: what names the source in a struct, or text, which is parsed like that of any record."""
    for value in _values(column):
        if isinstance(value, dict):
            value = {name: _decoded(inner) for name, inner in value.items()}
        yield _decoded(value) if isinstance(value, bytes | dict) else None


def sources_as_meta(column: Any, labels: Sequence[str] | None) -> Iterator[Any]:
    """The `meta` of each record for a column of sources. `labels`: the names of the values of class labels."""
    for value in _values(column):
        if labels and isinstance(value, int) and 0 <= value < len(labels):
            value = labels[value]
        yield value if value is None or isinstance(value, dict) else {SOURCE: str(_decoded(value))}


def _decoded(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _values(column: Any) -> Iterator[Any]:
    """The values of an Arrow column: strings as their bytes, because they need not be valid UTF-8."""
    for chunk in column.chunks if hasattr(column, "chunks") else [column]:
        for value in chunk:
            yield _as_python(value)


def _as_python(value: Any) -> Any:
    import pyarrow as pa

    if not value.is_valid:
        return None
    if isinstance(value, pa.DictionaryScalar):
        return _as_python(value.value)
    if _is_text(value.type):
        return bytes(value.as_buffer()) if value.as_buffer() is not None else b""
    if isinstance(value, pa.ListScalar):
        return [_as_python(item) for item in value.values]
    if isinstance(value, pa.StructScalar):
        return {name: _as_python(value[name]) for name in value.type.names if name == SOURCE}
    try:
        return value.as_py()
    except (ValueError, OverflowError):  # a time that Python cannot represent
        return str(value.value)


def _is_text(found: Any) -> bool:
    """True for strings and bytes: Spark and Impala write text as bytes."""
    import pyarrow as pa

    kinds = pa.types
    checks = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "fixed_size_binary")
    return any(getattr(kinds, f"is_{name}")(found) for name in checks if hasattr(kinds, f"is_{name}"))


def _inner(found: Any) -> Any:
    """The type of the values of a dictionary or of a list."""
    import pyarrow as pa

    if pa.types.is_dictionary(found):
        return _inner(found.value_type)
    is_list = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
    return _inner(found.value_type) if is_list else found
