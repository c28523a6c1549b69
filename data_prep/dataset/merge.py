"""Merges finished dataset folders with the same tokenizer: documents are concatenated and packed again."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from data_prep.config import PackingConfig
from data_prep.dataset.indexed_dataset import TokenFile, TokenFileWriter
from data_prep.dataset.joined import SourceNumbers, joined_source_numbers, summed_counts, summed_histograms
from data_prep.dataset.manifest import (
    MANIFEST_FILE,
    QUARANTINE_FILE,
    EngineRecord,
    Manifest,
    SplitRecord,
    describe_files,
    load_manifest,
    sources_file,
    verify,
    write_manifest,
    write_sources,
)
from data_prep.dataset.output_files import OutputFolder, split_files
from data_prep.dataset.row_index import pack_split
from data_prep.files import atomic_write, canonical_json, only_writer, sha256_bytes
from data_prep.readers.input_files import SPLITS, Split
from data_prep.tokenization.tokenizer import TOKENIZER_FILE

_BLOCK_DOCUMENTS = 1 << 16


class MergeError(ValueError):
    """Folders that cannot be merged."""


def merge(folders: Sequence[Path], output: Path, packing: PackingConfig, command: str = "") -> Manifest:
    """Merge `folders` into `output`, in the given order, and return its manifest.

    The names of inputs and of quarantined records get their folder's name as a prefix. Nothing is tokenized, and duplicates
    across folders are kept. Raises MergeError for different tokenizers, equal folder names, a finished `output` and a folder
    whose checksums do not match; ForeignFilesError for an `output` with files that are not ours; ManifestError for a folder
    without a manifest.
    """
    manifests = [load_manifest(folder) for folder in folders]
    names = [folder.resolve().name for folder in folders]
    _validate_mergeable(folders, names, manifests, output)
    output.mkdir(parents=True, exist_ok=True)
    with only_writer(output):
        target = OutputFolder(output)
        target.begin()
        splits: dict[str, SplitRecord] = {}
        for split in SPLITS:
            present = [(folder, m.splits[split]) for folder, m in zip(folders, manifests, strict=True) if split in m.splits]
            if present:
                target.claim(split_files(split, packing))
                _join(split, [folder for folder, _ in present], output, np.dtype(manifests[0].token_dtype).newbyteorder("<"))
                write_sources(output, split, joined_source_numbers(_source_numbers(split, present)))
                splits[split] = SplitRecord(
                    sources=summed_counts([record.sources for _, record in present]),
                    length_histogram=summed_histograms([record.length_histogram for _, record in present]),
                    packing=pack_split(output, split, packing),
                )
        target.claim([TOKENIZER_FILE, QUARANTINE_FILE])
        shutil.copyfile(folders[0] / TOKENIZER_FILE, output / TOKENIZER_FILE)
        _join_quarantine(folders, names, output)
        identity: dict[str, Any] = {"merged": [[name, m.manifest_sha256] for name, m in zip(names, manifests, strict=True)]}
        identity |= {"packing": packing.model_dump()}
        manifest = write_manifest(output, _merged(manifests, names, command, identity, splits, output))
        target.end()
        return manifest


def _validate_mergeable(folders: Sequence[Path], names: Sequence[str], manifests: Sequence[Manifest], output: Path) -> None:
    if len(set(names)) != len(names):
        raise MergeError(f"two folders have one name among {names}, which identifies their inputs; rename one")
    for folder, manifest in zip(folders, manifests, strict=True):
        if manifest.tokenizer.sha256 != manifests[0].tokenizer.sha256:
            raise MergeError(f"{folder} was made with another tokenizer than {folders[0]}; prepare it again with that one")
    for folder in folders:
        if problems := verify(folder):
            raise MergeError(f"{problems[0]}: restore it or prepare it again before merging")
    if (output / MANIFEST_FILE).exists():
        raise MergeError(f"{output} has a finished dataset; give another --output or delete it")


def _merged(
    manifests: Sequence[Manifest],
    names: Sequence[str],
    command: str,
    identity: dict[str, Any],
    splits: dict[str, SplitRecord],
    output: Path,
) -> Manifest:
    named = list(zip(names, manifests, strict=True))
    engines = sorted({manifest.engine.name for manifest in manifests})
    return Manifest(
        command=command,
        config=identity,
        config_sha256=sha256_bytes(canonical_json(identity)),
        tokenizer=manifests[0].tokenizer,
        token_dtype=manifests[0].token_dtype,
        inputs=[r.model_copy(update={"name": f"{name}/{r.name}"}) for name, manifest in named for r in manifest.inputs],
        splits=splits,
        records=sum(manifest.records for manifest in manifests),
        rejected=dict(sum((Counter(manifest.rejected) for manifest in manifests), Counter())),
        dropped=dict(sum((Counter(manifest.dropped) for manifest in manifests), Counter())),
        repeated=sum(manifest.repeated for manifest in manifests),
        blank_lines=sum(manifest.blank_lines for manifest in manifests),
        skipped_inputs={f"{name}/{key}": why for name, manifest in named for key, why in manifest.skipped_inputs.items()},
        engine=EngineRecord(
            name=" and ".join(engines),
            note=next((manifest.engine.note for manifest in manifests if manifest.engine.note), None),
            checked_documents=sum(manifest.engine.checked_documents for manifest in manifests),
        ),
        units=sum(manifest.units for manifest in manifests),
        retokenized_units=sum(manifest.retokenized_units for manifest in manifests),
        stage_seconds={},
        files=describe_files(output),
    )


def _join(split: Split, folders: Sequence[Path], output: Path, dtype: np.dtype[np.generic]) -> None:
    with TokenFileWriter(output / split, dtype) as writer:
        for folder in folders:
            file = TokenFile(folder / split)
            for start in range(0, len(file), _BLOCK_DOCUMENTS):
                lengths = file.lengths[start : start + _BLOCK_DOCUMENTS]
                first = int(file.starts[start])
                writer.add(file.tokens[first : first + int(lengths.sum(dtype=np.int64))], lengths)


def _source_numbers(split: Split, present: Sequence[tuple[Path, SplitRecord]]) -> list[SourceNumbers]:
    return [SourceNumbers(sorted(record.sources), np.load(folder / sources_file(split))) for folder, record in present]


def _join_quarantine(folders: Sequence[Path], names: Sequence[str], output: Path) -> None:
    with atomic_write(output / QUARANTINE_FILE) as target:
        for folder, name in zip(folders, names, strict=True):
            with open(folder / QUARANTINE_FILE, "rb") as lines:
                for line in lines:
                    rejected = orjson.loads(line)
                    target.write(canonical_json({**rejected, "file": f"{name}/{rejected['file']}"}) + b"\n")
