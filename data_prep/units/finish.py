"""From committed units to a finished dataset folder: select documents, write each split, and write the manifest last."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from data_prep.config import PrepareConfig
from data_prep.dataset.indexed_dataset import token_dtype
from data_prep.dataset.manifest import (
    QUARANTINE_FILE,
    EngineRecord,
    FileRecord,
    Manifest,
    SplitRecord,
    TokenizerRecord,
    describe_files,
    write_manifest,
)
from data_prep.dataset.output_files import OutputFolder, split_files
from data_prep.dataset.row_index import pack_split
from data_prep.executor.workers import WorkerPool
from data_prep.files import atomic_write, canonical_json, sha256_bytes, sha256_file
from data_prep.readers.input_files import SPLITS, InputFile
from data_prep.readers.streams import DAMAGES
from data_prep.tokenization.backends import FastBackend, ReferenceBackend
from data_prep.tokenization.tokenizer import TOKENIZER_FILE, eos_id, load_tokenizer, num_ids
from data_prep.units.assemble import Copies, join_quarantine, join_tokens, split_content
from data_prep.units.base_dataset import BaseDataset
from data_prep.units.counts import RecordCounts, count_records, validate_bad_share, validate_training_split
from data_prep.units.dedup import kept_documents
from data_prep.units.job import Job
from data_prep.units.job_progress import Clock
from data_prep.units.notes import damaged_files, missing_sources, unknown_source_names
from data_prep.units.source_mixture import epochs_by_source, mixed_copies, training_sources
from data_prep.units.store import UnitRecord
from data_prep.units.up_to_date import input_record


@dataclass(frozen=True, kw_only=True)
class CommittedRun:
    """A run whose units are all committed, and what its manifest reports.

    `skipped`: by file number, why a file was left out. `notes`: remarks for the user so far. `fast`: whether the fast
    backend tokenized. `base`: the dataset that the inputs are added to.
    """

    config: PrepareConfig
    files: Sequence[InputFile]
    job: Job
    output: OutputFolder
    clock: Clock
    command: str
    notes: Sequence[str]
    skipped: Mapping[int, str]
    fast: bool
    base: BaseDataset | None = None


@dataclass(frozen=True)
class _Selection:
    """How many copies of each document the dataset has, what was dropped on the way, and the epochs of each source."""

    copies: Copies
    dropped: Counter[str]
    epochs: dict[str, float]

    @property
    def num_repeated(self) -> int:
        """Copies beyond the first of each document."""
        return sum(int(np.maximum(number, 1).sum(dtype=np.int64)) - len(number) for number in self.copies.values())


def finish(run: CommittedRun, pool: WorkerPool) -> Manifest:
    """Write the dataset folder, delete the work folder and return the manifest.

    Raises PrepareError if more records are bad than `max_bad_share` allows, if no document is left for training, or if
    the mixture does not cover the sources.
    """
    units = run.job.units_in_plan_order
    counts = count_records(units)
    join_quarantine(units, run.job.store, run.job.quarantine_file)
    validate_bad_share(counts, run.config.max_bad_share, run.job.quarantine_file, run.job.folder)
    selection = _select_documents(run, units)
    splits = _write_splits(run, units, selection.copies, pool)
    validate_training_split(splits, counts.rejected + counts.dropped + selection.dropped)
    _copy_from_work_folder(run)
    with run.clock.stage("checksums"):
        files = describe_files(run.output.folder)
    manifest = _manifest(run, units, counts, selection, splits, files)
    manifest = write_manifest(run.output.folder, run.base.joined(manifest) if run.base else manifest)
    run.output.end()
    return manifest


def _select_documents(run: CommittedRun, units: Sequence[UnitRecord]) -> _Selection:
    """Drop duplicates and repeat or thin out sources, as the configuration asks."""
    config, store = run.config, run.job.store
    copies: Copies = {}
    dropped: Counter[str] = Counter()
    epochs: dict[str, float] = {}
    if config.deduplicate:
        with run.clock.stage("deduplicate"):
            copies = kept_documents(units, store, run.job.folder)
        dropped["duplicate"] = _num_absent(copies)
    if config.mixture:
        num_absent = _num_absent(copies)
        with run.clock.stage("mix"):
            epochs = epochs_by_source(config.mixture, training_sources(units, store, copies))
            copies = mixed_copies(units, store, copies, epochs, config.seed)
        dropped["below one epoch"] = _num_absent(copies) - num_absent
    return _Selection(copies, +dropped, epochs)


def _num_absent(copies: Copies) -> int:
    return sum(int((number == 0).sum()) for number in copies.values())


def _write_splits(run: CommittedRun, units: Sequence[UnitRecord], copies: Copies, pool: WorkerPool) -> dict[str, SplitRecord]:
    """Write tokens, sources and row indexes of every split that has documents."""
    dtype = token_dtype(num_ids(load_tokenizer(run.job.tokenizer_file)))
    splits: dict[str, SplitRecord] = {}
    for split in SPLITS:
        content = split_content(units, split, run.job.store, copies)
        if run.base:
            content = run.base.begin(split, content)
        if content.sources:
            run.output.claim(split_files(split, run.config.packing))
            with run.clock.stage(f"assemble {split}"):
                head = [partial(run.base.copy, f"{split}.bin")] if run.base else []
                join_tokens(content, split, run.job.store, run.output.folder, dtype, pool, *head)
            with run.clock.stage(f"pack {split}"):
                packing = pack_split(run.output.folder, split, run.config.packing)
            splits[split] = SplitRecord(sources=content.sources, length_histogram=content.histogram, packing=packing)
    return splits


def _copy_from_work_folder(run: CommittedRun) -> None:
    # Copied, not moved: the work folder must stay complete until the manifest is written.
    run.output.claim([QUARANTINE_FILE, TOKENIZER_FILE])
    for name in (QUARANTINE_FILE, TOKENIZER_FILE):
        with atomic_write(run.output.folder / name) as file, open(run.job.folder / name, "rb") as source:
            if run.base and name == QUARANTINE_FILE:
                run.base.copy(name, file)
            shutil.copyfileobj(source, file)


def _manifest(
    run: CommittedRun,
    units: Sequence[UnitRecord],
    counts: RecordCounts,
    selection: _Selection,
    splits: dict[str, SplitRecord],
    files: dict[str, FileRecord],
) -> Manifest:
    job = run.job
    tokenizer = load_tokenizer(job.tokenizer_file)
    dropped = counts.dropped + selection.dropped
    num_before = run.base.num_documents if run.base else 0
    num_kept = sum(split.total.documents for split in splits.values()) - selection.num_repeated - num_before
    assert counts.records == num_kept + counts.rejected.total() + dropped.total(), "a record is neither kept nor counted"
    return Manifest(
        command=run.command,
        config=job.decisions,
        config_sha256=sha256_bytes(canonical_json(job.decisions)),
        tokenizer=TokenizerRecord(
            sha256=sha256_file(job.tokenizer_file), vocab_size=num_ids(tokenizer), eos_id=eos_id(tokenizer)
        ),
        token_dtype=token_dtype(num_ids(tokenizer)).name,
        inputs=[input_record(file, job.ends[file.index]) for file in run.files if file.index in job.ends],
        splits=splits,
        records=counts.records,
        rejected=dict(counts.rejected),
        dropped=dict(dropped),
        repeated=selection.num_repeated,
        epochs=selection.epochs,
        blank_lines=counts.blank_lines,
        skipped_inputs={run.files[number].name: reason for number, reason in sorted(run.skipped.items())},
        notes=_notes(run, counts, splits, dropped),
        engine=EngineRecord(
            name=(FastBackend(tokenizer) if run.fast else ReferenceBackend(tokenizer)).name,
            note=job.why_reference,
            checked_documents=sum(unit.checked_documents for unit in units),
        ),
        units=len(units),
        retokenized_units=job.num_attempts - len(units),
        stage_seconds=run.clock.stage_seconds,
        files=files,
    )


def _notes(run: CommittedRun, counts: RecordCounts, splits: Mapping[str, SplitRecord], dropped: Counter[str]) -> list[str]:
    everything_dropped = dropped + Counter(run.base.manifest.dropped if run.base else {})
    return [
        *run.notes,
        *missing_sources(run.config, splits, everything_dropped),
        *unknown_source_names(run.config, splits, everything_dropped),
        *(damaged_files(run.job.quarantine_file) if counts.rejected.keys() & DAMAGES else []),
    ]
