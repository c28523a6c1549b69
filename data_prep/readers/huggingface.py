"""Hugging Face datasets as input, from a folder or the hub: rows become JSON lines, in order.

Syntax: `datasets://NAME_OR_FOLDER?config=en&split=train&text=content&source=domain&revision=v1`. Every setting after the
"?" is optional; `data_dir` and `data_files` are passed to `load_dataset`. Line numbers are row numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import orjson

from data_prep.readers.arrow_rows import META, json_lines, metas, sources_as_meta, validate_text_column
from data_prep.readers.formats import WrongFormatError

SCHEME = "datasets://"
_ROWS = 64  # few, because a row may have megabytes of text


class DatasetError(OSError, ValueError):
    """A dataset that cannot be found or read, or that lacks the requested split or column."""


@dataclass(frozen=True, kw_only=True)
class DatasetRows:
    """One split of one dataset.

    `folder`: `name` is a local path. `text`: the column with the documents. `source`: the column with the source of each
    document; if None, a column `meta` is read as in The Pile's records.
    """

    name: str
    folder: bool
    config: str | None = None
    split: str = "train"
    text: str = "text"
    source: str | None = None
    revision: str | None = None
    data_dir: str | None = None
    data_files: str | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}{self._query}"

    @property
    def parts(self) -> tuple[str, ...]:
        """The path from the root: folders or the hub and the owner, then the name with its settings."""
        if self.folder:
            path = Path(self.name)
            return (path.anchor, *path.parts[1:-1], path.name + self._query)
        *owner, name = self.name.split("/")
        return (SCHEME, *owner, name + self._query)

    def state(self) -> tuple[None, str]:
        """None, because the size is unknown, and a token that changes with the data: a hash of its files and commit."""
        try:
            return None, self._version()
        except DatasetError:
            raise
        except Exception as error:  # the library's readers raise errors without a common class
            raise self._as_error(error) from error

    def check(self) -> None:
        """Read the first row. Raises DatasetError for a missing dataset, config, split or column."""
        next(self.lines(), b"")

    def lines(self) -> Iterator[bytes]:
        """All rows as JSON lines, many at a time. Raises DatasetError."""
        try:
            dataset = self._dataset()
            labels = getattr((dataset.features or {}).get(self.source), "names", None)
            for table in dataset.with_format("arrow").iter(batch_size=_ROWS):
                yield from self._as_lines(table, labels)
        except DatasetError:
            raise
        except Exception as error:  # see `state`
            raise self._as_error(error) from error

    @property
    def _query(self) -> str:
        """The settings that differ from the defaults, in the order of the fields."""
        given = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("name", "folder") and getattr(self, field.name) != field.default
        }
        return f"?{urlencode(given, quote_via=quote, safe='/*')}" if given else ""

    @property
    def _saved(self) -> Path | None:
        """The folder that `save_to_disk` wrote for the split; None for any other dataset."""
        if not self.folder:
            return None
        folder = Path(self.name)
        if (folder / "dataset_dict.json").is_file():
            splits = orjson.loads((folder / "dataset_dict.json").read_bytes())["splits"]
            if self.split not in splits:
                raise DatasetError(f"{self}: no split {self.split!r}; there are {', '.join(splits)}")
            return folder / self.split
        return folder if (folder / "state.json").is_file() else None

    def _builder(self) -> Any:
        import datasets  # imported late: it takes a second

        return datasets.load_dataset_builder(
            self.name, self.config, revision=self.revision, data_dir=self.data_dir, data_files=self.data_files
        )

    def _version(self) -> str:
        if self._saved:
            found: list[Any] = sorted(
                (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self._saved.iterdir()
            )
        else:
            builder = self._builder()
            by_split = builder.config.data_files or {}
            files = by_split.get(self.split, [])
            found = [list(files), getattr(files, "origin_metadata", []), "" if self.folder else builder.hash]
        return sha256(repr(found).encode()).hexdigest()

    def _dataset(self) -> Any:
        import datasets

        if self._saved:
            return datasets.load_from_disk(str(self._saved))
        return self._builder().as_streaming_dataset(split=self.split)

    def _as_lines(self, table: Any, labels: list[str] | None) -> Iterator[bytes]:
        remedy = "set ?text=… and &source=…"
        try:
            validate_text_column(self, table.schema, self.text, remedy)
        except WrongFormatError as error:
            raise DatasetError(str(error)) from error
        if self.source is not None and self.source not in table.column_names:
            raise DatasetError(f"{self}: no column {self.source!r}; there are {', '.join(table.column_names)}: {remedy}")
        found: Iterator[Any] | None = None
        if self.source is not None:
            found = sources_as_meta(table.column(self.source), labels)
        elif META in table.column_names:
            found = metas(table.column(META))
        return json_lines(table.column(self.text), found)

    def _as_error(self, error: Exception) -> DatasetError:
        reason = (str(error).splitlines() or [""])[0]
        return DatasetError(f"{self}: {reason or type(error).__name__}; check name, config, split and the network")


def parse_dataset(spelling: str) -> DatasetRows:
    """The dataset that `datasets://…` names; an existing folder takes precedence over the hub. Raises DatasetError."""
    name, _, query = spelling.removeprefix(SCHEME).partition("?")
    known = [field.name for field in fields(DatasetRows) if field.name not in ("name", "folder")]
    given = dict(parse_qsl(query, keep_blank_values=True))
    for key, value in given.items():
        if key not in known:
            raise DatasetError(f"{spelling}: unknown setting {key!r}; known: {', '.join(known)}")
        if not value:
            raise DatasetError(f"{spelling}: {key} has no value")
    if not name:
        raise DatasetError(f"{spelling}: no name; write {SCHEME}NAME?split=train or {SCHEME}/path/to/folder")
    path = Path(name).expanduser()
    if path.is_dir():
        return DatasetRows(name=str(path.absolute()), folder=True, **given)
    if name.startswith(("/", ".", "~")):
        raise DatasetError(f"{spelling}: no such folder")
    return DatasetRows(name=name, folder=False, **given)
