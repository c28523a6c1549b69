"""The manifest of a dataset folder: origin, counts, and the SHA-256 of every file and of the manifest itself."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from data_prep.config import PackingMethod
from data_prep.dataset.packing import rows_file
from data_prep.files import atomic_write, canonical_json, readable_json, sha256_bytes, sha256_file
from data_prep.readers.input_files import SPLITS, Split
from data_prep.tokenization.tokenizer import TOKENIZER_FILE

SCHEMA_VERSION = 3
MANIFEST_FILE = "manifest.json"
QUARANTINE_FILE = "quarantine.jsonl"
_THREADS = 4


class ManifestError(ValueError):
    """A folder whose manifest is missing, damaged or of another schema version."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputRecord(_Record):
    """One input file. `split` is "hash" if each document's text decides. `version`: for URLs the token that the server gave,
    such as an ETag; for datasets a fingerprint. `bytes` and `sha256` of a dataset are of its rows as JSON lines."""

    name: str
    split: str
    bytes: int
    sha256: str
    version: str | None = None


class TokenizerRecord(_Record):
    """The tokenizer in the folder. `vocab_size` counts ids before padding."""

    sha256: str
    vocab_size: int
    eos_id: int


class SourceCounts(_Record):
    """Documents, tokens (EOS included) and bytes of text (UTF-8)."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0

    def __add__(self, other: "SourceCounts") -> "SourceCounts":
        return SourceCounts(
            documents=self.documents + other.documents,
            tokens=self.tokens + other.tokens,
            bytes=self.bytes + other.bytes,
        )


class PackingRecord(_Record):
    """One row index of a split. `padding_share`: share of the positions in rows without a token. `cut_documents`: documents
    that are in more than one piece."""

    row_length: int
    method: PackingMethod
    rows: int
    pieces: int
    padding_share: float
    cut_documents: int


class SplitRecord(_Record):
    """One split. A split without documents has no record and no files. `length_histogram`: by source, the number of documents
    by length; bin i counts lengths of 2^i to 2^(i+1) - 1 tokens."""

    sources: dict[str, SourceCounts]
    length_histogram: dict[str, list[int]]
    packing: list[PackingRecord]

    @property
    def total(self) -> SourceCounts:
        """The counts of all sources together."""
        return sum(self.sources.values(), SourceCounts())


class FileRecord(_Record):
    """One file of the folder."""

    bytes: int
    sha256: str


class EngineRecord(_Record):
    """The tokenizer backend. `note`: why it was not the fast one. `checked_documents`: documents that the reference encoded
    too, with the same result."""

    name: str
    note: str | None
    checked_documents: int


class AppendRecord(_Record):
    """One addition of files to a finished dataset. `base`: the name of its folder, whose documents come first; `base_sha256`: a
    hash of its content; `time`: UTC; `inputs`: the names of the added files; `splits`: the added documents."""

    base: str
    base_sha256: str
    time: str
    command: str
    inputs: list[str]
    splits: dict[str, SourceCounts]
    records: int
    rejected: int
    dropped: int


class Manifest(_Record):
    """`manifest.json`. Two runs with the same inputs and settings may differ only in `stage_seconds`, `command`,
    `retokenized_units`, `manifest_sha256` and the times and commands of `appends`.

    - `config`: the settings that output bytes depend on.
    - `records`: all records read. Always: documents of the splits - `repeated` + `rejected` + `dropped`.
    - `rejected`, `dropped`: counts by reason. `repeated`: copies of documents beyond the first, made by a mixture.
    - `epochs`: how often training reads each source, if there is a mixture.
    - `skipped_inputs`: by file, why it was skipped. `notes`: remarks for the user, such as missing sources.
    - `retokenized_units`: units that were started again because of a crash or damage.
    - `appends`: if the folder was made from a finished one and added files: each addition, the oldest first. All other fields
      are of the whole folder, except `command` and `stage_seconds`, which are of the last run.
    """

    schema_version: int = SCHEMA_VERSION
    command: str
    config: dict[str, Any]
    config_sha256: str
    tokenizer: TokenizerRecord
    token_dtype: str
    inputs: list[InputRecord]
    splits: dict[str, SplitRecord]
    records: int
    rejected: dict[str, int]
    dropped: dict[str, int]
    repeated: int = 0
    epochs: dict[str, float] = {}
    blank_lines: int
    skipped_inputs: dict[str, str]
    notes: list[str] = []
    engine: EngineRecord
    units: int
    retokenized_units: int
    stage_seconds: dict[str, float]
    files: dict[str, FileRecord]
    appends: list[AppendRecord] = []
    manifest_sha256: str = ""

    @property
    def ordered_splits(self) -> list[tuple[Split, SplitRecord]]:
        """The splits that have documents, train first; the file sorts its keys."""
        return [(split, self.splits[split]) for split in SPLITS if split in self.splits]

    def own_sha256(self) -> str:
        """SHA-256 of the canonical JSON of everything except `manifest_sha256`."""
        return sha256_bytes(canonical_json(self._fields({"manifest_sha256"})))

    def rendered(self) -> bytes:
        """The bytes of `manifest.json`. `load_manifest` accepts no other bytes, so any change of the file is found."""
        return readable_json(self._fields(set()))

    def _fields(self, left_out: set[str]) -> dict[str, Any]:
        # Without appends there is no such key: the bytes are those of versions that did not know it.
        return self.model_dump(exclude=left_out | ({"appends"} if not self.appends else set()))

    def content_sha256(self) -> str:
        """One hash of the dataset as something to add to: settings, inputs and documents, whatever row indexes there are."""
        files = {name: record.sha256 for name, record in self.files.items() if ".rows_" not in name}
        inputs = [[record.name, record.split, record.sha256] for record in self.inputs]
        return sha256_bytes(canonical_json({"config": self.config, "inputs": inputs, "files": files}))

    def fingerprint(self, row_length: int | None = None) -> str:
        """One hash of everything that training reads: tokens, tokenizer, and the row indexes of `row_length` (None: all).

        Adding rows of another length does not change the fingerprint for this length.
        """
        rows = {rows_file(split, row_length) for split in self.splits} if row_length is not None else set()
        read = {
            name: record.sha256
            for name, record in self.files.items()
            if name.endswith((".bin", ".idx")) or name == TOKENIZER_FILE or name in rows
            or (row_length is None and name.endswith(".npy"))
        }  # fmt: skip
        return sha256_bytes(canonical_json(read))


def sources_file(split: str) -> str:
    """The file name, in a dataset folder, of the source of each document: uint16 (documents,), indices into the sorted names
    of the split's sources."""
    return f"{split}.sources.npy"


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write `manifest` with its own hash filled in, atomically, and return it."""
    manifest = manifest.model_copy(update={"manifest_sha256": manifest.own_sha256()})
    with atomic_write(folder / MANIFEST_FILE) as file:
        file.write(manifest.rendered())
    return manifest


def load_manifest(folder: Path | str) -> Manifest:
    """Read and check a folder's manifest; `verify` also checks the other files. Raises ManifestError."""
    path = Path(folder) / MANIFEST_FILE
    if not path.is_file():
        problem = "the folder does not exist" if not path.parent.is_dir() else "no manifest, so this is no finished dataset"
        raise ManifestError(f"{path}: {problem}; make one with `fnet-t5 prepare`")
    data = path.read_bytes()
    try:
        fields = orjson.loads(data)
        version = fields.get("schema_version") if isinstance(fields, dict) else None
        if version != SCHEMA_VERSION:
            raise ManifestError(f"{path}: schema version {version!r}, but this version reads {SCHEMA_VERSION}; prepare again")
        manifest = Manifest.model_validate(fields)
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise ManifestError(f"{path}: damaged ({str(error).splitlines()[0]}); restore it or prepare again") from error
    if manifest.manifest_sha256 != manifest.own_sha256() or manifest.rendered() != data:
        raise ManifestError(f"{path}: changed since it was written; restore it or prepare again")
    return manifest


def describe_files(folder: Path) -> dict[str, FileRecord]:
    """Size and SHA-256 of every file in the folder, except hidden files and the manifest."""
    paths = [path for path in sorted(folder.iterdir()) if _belongs(path)]
    with ThreadPoolExecutor(_THREADS) as threads:  # hashing releases the interpreter lock
        hashes = threads.map(sha256_file, paths)
        return {
            path.name: FileRecord(bytes=path.stat().st_size, sha256=digest) for path, digest in zip(paths, hashes, strict=True)
        }


def verify(folder: Path | str) -> list[str]:
    """Compare a dataset folder with its manifest, reading every byte; returns one line per problem."""
    folder = Path(folder)
    try:
        manifest = load_manifest(folder)
    except ManifestError as error:
        return [str(error)]
    problems = []
    for name, record in sorted(manifest.files.items()):
        path = folder / name
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif path.stat().st_size != record.bytes:
            problems.append(f"{path}: {path.stat().st_size} bytes instead of {record.bytes}")
        elif sha256_file(path) != record.sha256:
            problems.append(f"{path}: its bytes changed since it was written")
    unexpected_files = {path.name for path in folder.iterdir() if _belongs(path)} - set(manifest.files)
    return problems + [f"{folder / name}: not in the manifest" for name in sorted(unexpected_files)]


def _belongs(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name != MANIFEST_FILE


def write_sources(output: Path, split: Split, source_of: npt.NDArray[np.uint16]) -> None:
    """Write `<split>.sources.npy`, which evaluation by source reads: `source_of` is uint16 (documents,), see `sources_file`."""
    with atomic_write(output / sources_file(split)) as file:
        np.save(file, source_of.astype("<u2", copy=False))
