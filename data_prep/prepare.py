"""Raw text to a finished dataset folder: plan, tokenizer, units on Ray workers, assembly in plan order, manifest last.

Whatever the workers do and when, and however often a run is killed and started again, files are put together in plan
order from committed units: the output is a function of inputs and config.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from data_prep.config import PrepareConfig
from data_prep.dataset.indexed_dataset import token_dtype
from data_prep.dataset.manifest import (
    MANIFEST_FILE,
    QUARANTINE_FILE,
    EngineRecord,
    Manifest,
    SplitRecord,
    TokenizerRecord,
    describe_files,
    remove_leftovers,
    write_manifest,
)
from data_prep.dataset.row_index import pack_split
from data_prep.executor.ray_session import ray_session
from data_prep.executor.workers import Call, DiskFullError, WorkerPool, is_disk_full
from data_prep.files import atomic_write, canonical_json, only_writer, sha256_bytes, sha256_file
from data_prep.filters.rules import FilterPlan, Filters
from data_prep.readers.input_files import SPLITS, HashSplit, InputFile, plan
from data_prep.readers.records import Document
from data_prep.readers.streams import DAMAGES
from data_prep.tokenization.backends import BackendMismatchError, FastBackend, ReferenceBackend, why_not_fast
from data_prep.tokenization.tokenizer import (
    TOKENIZER_FILE,
    eos_id,
    load_tokenizer,
    num_ids,
    sample_texts,
    save_tokenizer,
    train_tokenizer,
)
from data_prep.units.assemble import join_quarantine, join_tokens, split_content
from data_prep.units.dedup import kept_documents
from data_prep.units.job import Job, PrepareError
from data_prep.units.job_progress import Clock, Progress
from data_prep.units.notes import damaged_files, missing_sources, unmet_names
from data_prep.units.reader import FileEnd, Unreadable
from data_prep.units.scheduler import run_units
from data_prep.units.source_mixture import epochs_by_source, mixed_copies, refuse_mixed_files, training_sources
from data_prep.units.store import UnitKey, UnitRecord
from data_prep.units.tokenize_unit import UnitSettings
from data_prep.units.up_to_date import input_record, up_to_date

WORK_FOLDER = ".work"
_SHOWN_REJECTIONS = 3


def prepare(config: PrepareConfig, on_progress: Callable[[Progress], None] | None = None, command: str = "") -> Manifest:
    """Make the dataset folder `config.output` and return its manifest.

    A folder already made from the same inputs and decisions is left alone and its manifest returned. After an error, an
    interruption or a kill there is no manifest, and running again goes on from the units that were committed. All
    errors are ValueErrors: PrepareError (a folder made or begun from other inputs, a file that cannot be read, more bad
    records than `config.max_bad_share`, nothing to train on), WorkerError, DiskFullError, FolderInUseError, InputError,
    TokenizerError.
    """
    filters = FilterPlan(config)  # speaks up before anything is read
    if config.output.exists() and not config.output.is_dir():
        raise PrepareError(f"{config.output} is a file: give another --output")
    files = plan(config)
    # Absolute, because workers run in another folder.
    output = config.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    with only_writer(output):
        if (output / MANIFEST_FILE).exists():
            shutil.rmtree(output / WORK_FOLDER, ignore_errors=True)
            return up_to_date(config, filters.decisions, files, output)
        remove_leftovers(output)
        try:
            return _PrepareRun(config, filters, files, output, Clock(files, config.unit_bytes, on_progress), command).run()
        except (OSError, DiskFullError) as error:
            if not isinstance(error, DiskFullError) and not is_disk_full(error):
                raise
            raise DiskFullError(
                f"no space left for {output} ({error}); what is done is kept there: free some space and run the same "
                "command again to go on"
            ) from error


class _PrepareRun:
    """One start of a job, from whatever state the last one left to the manifest."""

    def __init__(
        self,
        config: PrepareConfig,
        filters: FilterPlan,
        files: list[InputFile],
        output: Path,
        clock: Clock,
        command: str,
    ) -> None:
        self.config = config
        self.decisions = filters.decisions
        self.filter_plan = filters
        self.filters = Filters()
        self.notes: list[str] = []
        self.files = files
        self.output = output
        self.clock = clock
        self.command = command
        self.job = Job(output / WORK_FOLDER, filters.decisions)
        self.tokenizer_file = self.job.folder / TOKENIZER_FILE
        self.hash_split = HashSplit(config.val_share, config.test_share, config.seed)
        self.skipped: dict[int, str] = {}

    def run(self) -> Manifest:
        with self.clock.stage("resume" if self.job.exists else "tokenizer"):
            if self.job.exists:
                damaged = self.job.resume(self.config, self.files)
                if damaged:
                    self.clock.note = f"{damaged} committed units were damaged and are done again"
            else:
                self._begin()
        if self.job.why_reference:
            self.clock.note = f"tokenizing with the slow reference: {self.job.why_reference}"
        self._build_filters()
        self.clock.add(self.job.records.values(), resumed=True)
        for end in self.job.ends.values():
            self.clock.add_end(end)
        num_workers = self.config.workers
        with ExitStack() as stack:
            with self.clock.stage("start Ray"):
                stack.enter_context(self._session(num_workers))
                pool = stack.enter_context(self._pool(num_workers))
            while True:
                try:
                    self._tokenize(pool)
                    break
                except BackendMismatchError as error:
                    self.clock.note = f"{error}: starting over with the slow reference"
                    self.job.fall_back(str(error))
            return self._finish(pool)

    def _build_filters(self) -> None:
        with self.clock.stage("filters"):
            self.filters, self.notes = self.filter_plan.build(self.job.folder)
            for note in self.notes:
                self.clock.note = note
                self.clock.tell()

    def _begin(self) -> None:
        self.job.clear()
        if self.config.mixture:
            refuse_mixed_files(self.files, self.config.mixture, self.config.max_record_bytes)
        _make_tokenizer(self.config, self.filter_plan.filters, self.files, self.hash_split, self.tokenizer_file)
        tokenizer = load_tokenizer(self.tokenizer_file)
        reason = "asked for by `engine: reference`" if self.config.engine == "reference" else why_not_fast(tokenizer)
        self.job.begin(self.config, self.files, sha256_file(self.tokenizer_file), reason)

    @contextmanager
    def _session(self, num_workers: int) -> Iterator[None]:
        # Blocks: one in work and one waiting for each worker, one in each reader; some room for the store's own needs.
        num_blocks = 2 * num_workers + -(-num_workers // 4) + 2
        with ray_session(num_workers, self.config.ray_address, int(num_blocks * self.config.unit_bytes * 1.1)):
            yield

    def _pool(self, num_workers: int) -> WorkerPool:
        return WorkerPool(
            num_workers, self.config.max_worker_bytes, on_start=self._count_attempt, passed=(BackendMismatchError,)
        )

    def _count_attempt(self, call: Call) -> None:
        if call.name.rpartition(" ")[0].endswith(" unit"):
            self.job.count_attempt()

    def _settings(self) -> UnitSettings:
        config = self.config
        return UnitSettings(
            tokenizer=self.tokenizer_file,
            tokenizer_sha256=sha256_file(self.tokenizer_file),
            fast=self.job.fast and config.engine == "auto",
            hash_split=self.hash_split,
            max_record_bytes=config.max_record_bytes,
            unit_bytes=config.unit_bytes,
            units=self.job.store.folder,
            filters=self.filters,
            digests=config.deduplicate,
        )

    def _tokenize(self, pool: WorkerPool) -> None:
        """Do every unit that is not committed yet."""
        unfinished = [file for file in self.files if not self.job.is_finished(file.index)]
        with self.clock.stage("tokenize"):
            for event in run_units(unfinished, self.job.done(), self._settings(), pool):
                if isinstance(event, UnitRecord):
                    self.job.records[event.key] = event
                    self.clock.add([event])
                elif isinstance(event, FileEnd):
                    self.job.add_end(event)
                    self.clock.add_end(event)
                else:
                    self._leave_out(event)
                self.clock.tell()
        for number in self.skipped:
            self.job.forget_file(number)

    def _leave_out(self, unreadable: Unreadable) -> None:
        if self.config.on_unreadable == "fail":
            raise PrepareError(
                f"{unreadable.reason}: mend the input and run again to go on, or leave such files out with on_unreadable=skip"
            )
        self.skipped[unreadable.file] = unreadable.reason

    def _finish(self, pool: WorkerPool) -> Manifest:
        """From committed units to the manifest."""
        job, output, clock, config = self.job, self.output, self.clock, self.config
        keys = [UnitKey(file, block) for file, end in sorted(job.ends.items()) for block in end.blocks]
        records = [job.records[key] for key in keys]
        tokenizer = load_tokenizer(self.tokenizer_file)
        tokenizer_record = TokenizerRecord(
            sha256=sha256_file(self.tokenizer_file), vocab_size=num_ids(tokenizer), eos_id=eos_id(tokenizer)
        )
        dtype = token_dtype(tokenizer_record.vocab_size)
        join_quarantine(records, job.store, job.folder / QUARANTINE_FILE)
        rejected: Counter[str] = sum((Counter(record.rejected) for record in records), Counter())
        dropped: Counter[str] = sum((Counter(record.dropped) for record in records), Counter())
        self._refuse_bad_input(records, rejected)

        copies: dict[UnitKey, npt.NDArray[np.uint8]] = {}
        if config.deduplicate:
            with clock.stage("deduplicate"):
                copies = kept_documents(records, job.store, job.folder)
            if duplicates := _num_absent(copies):
                dropped["duplicate"] = duplicates
        epochs: dict[str, float] = {}
        if config.mixture:
            with clock.stage("mix"):
                epochs = epochs_by_source(config.mixture, training_sources(records, job.store, copies))
                absent = _num_absent(copies)
                copies = mixed_copies(records, job.store, copies, epochs, config.seed)
            if thinned := _num_absent(copies) - absent:
                dropped["below one epoch"] = thinned
        splits: dict[str, SplitRecord] = {}
        for split in SPLITS:
            content = split_content(records, split, job.store, copies)
            if content.sources:
                with clock.stage(f"assemble {split}"):
                    join_tokens(content, split, job.store, output, dtype, pool)
                with clock.stage(f"pack {split}"):
                    packing = pack_split(output, split, config.packing)
                splits[split] = SplitRecord(sources=content.sources, length_histogram=content.histogram, packing=packing)
        _refuse_nothing_to_train_on(splits, rejected + dropped)
        # Copies: the work folder must stay whole until the manifest is there.
        for name in (QUARANTINE_FILE, TOKENIZER_FILE):
            with atomic_write(output / name) as file, open(job.folder / name, "rb") as source:
                shutil.copyfileobj(source, file)
        with clock.stage("checksums"):
            described = describe_files(output)

        num_records = sum(record.lines - record.blank_lines for record in records)
        kept = sum(split.total.documents for split in splits.values())
        repeated = sum(int(np.maximum(number, 1).sum(dtype=np.int64)) - len(number) for number in copies.values())
        assert num_records == kept - repeated + rejected.total() + dropped.total(), "a record is neither kept nor counted"
        identity = self.decisions
        settings = self._settings()
        manifest = Manifest(
            command=self.command,
            config=identity,
            config_sha256=sha256_bytes(canonical_json(identity)),
            tokenizer=tokenizer_record,
            token_dtype=dtype.name,
            inputs=[input_record(file, job.ends[file.index]) for file in self.files if file.index in job.ends],
            splits=splits,
            records=num_records,
            rejected=dict(rejected),
            dropped=dict(dropped),
            repeated=repeated,
            epochs=epochs,
            blank_lines=sum(record.blank_lines for record in records),
            skipped_inputs={self.files[number].name: reason for number, reason in sorted(self.skipped.items())},
            notes=[
                *self.notes,
                *missing_sources(config, splits, dropped),
                *unmet_names(config, splits, dropped),
                *(damaged_files(job.folder / QUARANTINE_FILE) if rejected.keys() & DAMAGES else []),
            ],
            engine=EngineRecord(
                name=(FastBackend(tokenizer) if settings.fast else ReferenceBackend(tokenizer)).name,
                note=job.why_reference,
                checked_documents=sum(record.checked_documents for record in records),
            ),
            units=len(records),
            retokenized_units=job.num_attempts - len(records),
            stage_seconds=clock.stage_seconds,
            files=described,
        )
        manifest = write_manifest(output, manifest)
        shutil.rmtree(job.folder, ignore_errors=True)
        return manifest

    def _refuse_bad_input(self, records: Sequence[UnitRecord], rejected: Counter[str]) -> None:
        num_records = sum(record.lines - record.blank_lines for record in records)
        if rejected.total() > self.config.max_bad_share * num_records:
            quarantine = self.job.folder / QUARANTINE_FILE
            with open(quarantine, "rb") as lines:
                first = [orjson.loads(line) for line, _ in zip(lines, range(_SHOWN_REJECTIONS), strict=False)]
            shown = "; ".join(f"{bad['file']} line {bad['line']}: {bad['reason']} {bad['first_bytes'][:60]!r}" for bad in first)
            raise PrepareError(
                f"{rejected.total()} of {num_records} records are bad, above max_bad_share {self.config.max_bad_share}: "
                f"{shown}. All are in {quarantine}. Raise max_bad_share and run again, which goes on from what is done; or "
                f"mend the input, delete {self.job.folder} and begin anew"
            )


def _make_tokenizer(config: PrepareConfig, filters: Filters, files: list[InputFile], hash_split: HashSplit, path: Path) -> None:
    if config.tokenizer:
        load_tokenizer(config.tokenizer)  # speaks up before anything is read
        with atomic_write(path) as file:
            file.write(config.tokenizer.read_bytes())
        return
    training = [file for file in files if file.may_hold_training_text]

    def keep(document: Document, text: bytes) -> bool:
        in_training = not config.splits_by_hash or hash_split(text) == "train"
        return in_training and filters.why_dropped(document) is None

    texts = sample_texts(training, config.max_record_bytes, keep=keep)
    save_tokenizer(train_tokenizer(texts, config.vocab_size), path)


def _num_absent(copies: Mapping[UnitKey, npt.NDArray[np.uint8]]) -> int:
    return sum(int((number == 0).sum()) for number in copies.values())


def _refuse_nothing_to_train_on(splits: Mapping[str, SplitRecord], left_out: Counter[str]) -> None:
    if "train" not in splits:
        named = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common(5))
        remedy = f"loosen what left documents out ({named})" if named else "give more input or lower val and test shares"
        raise PrepareError(f"the input holds no document for the train split; {remedy}")
