"""Raw text to a finished dataset folder: plan the inputs, make the tokenizer, tokenize units on Ray workers, finish.

Files are assembled in the order of the plan from committed units, whatever the workers do and however often a run is
killed and resumed. So the output depends on inputs and configuration alone.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data_prep.config import PrepareConfig
from data_prep.dataset.manifest import MANIFEST_FILE, Manifest
from data_prep.dataset.output_files import OutputFolder, is_own_output
from data_prep.executor.ray_session import ray_session
from data_prep.executor.workers import Call, DiskFullError, WorkerPool, is_disk_full
from data_prep.files import atomic_write, only_writer, sha256_file
from data_prep.filters.rules import FilterPlan, Filters
from data_prep.readers.input_files import HashSplit, InputFile, InputPlan, make_plan
from data_prep.readers.records import Document
from data_prep.tokenization.backends import BackendMismatchError, why_not_fast
from data_prep.tokenization.tokenizer import (
    TOKENIZER_FILE,
    load_tokenizer,
    read_given_tokenizer,
    sample_texts,
    save_tokenizer,
    train_tokenizer,
)
from data_prep.units.base_dataset import BaseDataset, with_settings_of_base
from data_prep.units.bundles import BundleResult
from data_prep.units.counts import validate_num_sources
from data_prep.units.finish import CommittedRun, finish
from data_prep.units.job import Job, PrepareError
from data_prep.units.job_progress import Clock, Progress
from data_prep.units.reader import FileEnd, Unreadable, verify_touched
from data_prep.units.scheduler import Event, run_units
from data_prep.units.source_mixture import validate_unmixed_files
from data_prep.units.store import UnitRecord
from data_prep.units.tokenize_unit import UnitSettings
from data_prep.units.up_to_date import up_to_date


def prepare(config: PrepareConfig, on_progress: Callable[[Progress], None] | None = None, command: str = "") -> Manifest:
    """Make the dataset folder `config.output` and return its manifest.

    With `config.base`, the folder begins with the documents of that finished one, and only further inputs are read.
    If the folder was already made from the same inputs and settings, it is left as it is and its manifest is returned.
    After an error, an interruption or a kill there is no manifest, and the same call resumes from the committed units.
    All errors are ValueErrors: PrepareError (a folder made or begun from other inputs, a file that cannot be read, more
    bad records than `config.max_bad_share`, nothing to train on), WorkerError, DiskFullError, FolderInUseError,
    InputError, TokenizerError, ForeignFilesError.
    """
    if config.base:
        config = with_settings_of_base(config)
    filters = FilterPlan(config)  # fails before any input is read
    if config.output.exists() and not config.output.is_dir():
        raise PrepareError(f"{config.output} is a file: give another --output")
    base = BaseDataset(config, filters.decisions) if config.base else None
    # Absolute, because workers run in another folder.
    output = OutputFolder(config.output.absolute(), same=_same_tokenizer(config))
    is_finished = (output.folder / MANIFEST_FILE).exists()
    if output.folder.is_dir() and not is_finished:
        output.validate()  # before any input is read
    made_plan = make_plan(config, is_own_output)
    if base:
        made_plan = base.added(made_plan)
    output.folder.mkdir(parents=True, exist_ok=True)
    with only_writer(output.folder):
        if (output.folder / MANIFEST_FILE).exists():
            there, sha256 = (base.decisions, base.sha256) if base else (filters.decisions, None)
            manifest = up_to_date(config, there, made_plan.files, output.folder, sha256)
            output.end()
            return manifest
        output.begin()
        try:
            return _PrepareRun(config, filters, made_plan, output, on_progress, command, base).run()
        except (OSError, DiskFullError) as error:
            if not isinstance(error, DiskFullError) and not is_disk_full(error):
                raise
            raise DiskFullError(
                f"no space left for {output.folder} ({error}); finished work is kept there: free some space and rerun the same "
                "command to resume"
            ) from error


def _same_tokenizer(config: PrepareConfig) -> set[str]:
    """The tokenizer's file name, if the given tokenizer is itself the file in the output folder.

    Raises TokenizerError for a tokenizer that cannot be read.
    """
    if config.tokenizer is None or config.tokenizer == "bytes":
        return set()
    load_tokenizer(config.tokenizer)
    there = config.output / TOKENIZER_FILE
    return {TOKENIZER_FILE} if there.is_file() and there.read_bytes() == read_given_tokenizer(config.tokenizer) else set()


class _PrepareRun:
    """One run of a job: from the state in which the last run left the work folder to the manifest."""

    def __init__(
        self,
        config: PrepareConfig,
        filters: FilterPlan,
        plan: InputPlan,
        output: OutputFolder,
        on_progress: Callable[[Progress], None] | None,
        command: str,
        base: BaseDataset | None,
    ) -> None:
        self.config = config
        self.filter_plan = filters
        self.filters = Filters()
        self.notes = list(plan.notes)
        self.files = plan.files
        self.output = output
        self.clock = Clock(plan.files, config.unit_bytes, on_progress)
        self.command = command
        self.base = base
        self.job = Job(output.work, base.decisions, base.sha256) if base else Job(output.work, filters.decisions)
        self.hash_split = HashSplit(config.val_share, config.test_share, config.seed)
        self.skipped: dict[int, str] = {}
        self.sources: set[str] = set()

    def run(self) -> Manifest:
        self._resume_or_begin()
        self._build_filters()
        self._count_resumed_work()
        with self._workers() as pool:
            self._tokenize(pool)
            return finish(self._committed(), pool)

    @property
    def _fast(self) -> bool:
        return self.job.fast and self.config.engine == "auto"

    def _resume_or_begin(self) -> None:
        with self.clock.stage("resume" if self.job.exists else "tokenizer"):
            if self.job.exists:
                num_damaged = self.job.resume(self.config, self.files)
                if num_damaged:
                    self.clock.note = f"{num_damaged} committed units were damaged and are repeated"
            else:
                self._begin()
        if self.job.why_reference:
            self.clock.note = f"tokenizing with the slow reference: {self.job.why_reference}"

    def _begin(self) -> None:
        self.output.empty_work_folder()
        self.job.make_folders()
        if self.config.mixture:
            validate_unmixed_files(self.files, self.config.mixture, self.config.max_record_bytes)
        path = self.job.tokenizer_file
        if self.base:
            with atomic_write(path) as file:
                file.write(self.base.read_tokenizer())
        else:
            _make_tokenizer(self.config, self.filter_plan.filters, self.files, self.hash_split, path)
        reason = "`engine: reference` is set" if self.config.engine == "reference" else why_not_fast(load_tokenizer(path))
        self.job.begin(self.config, self.files, sha256_file(path), reason)

    def _build_filters(self) -> None:
        with self.clock.stage("filters"):
            self.filters, notes = self.filter_plan.build(self.job.folder)
            self.notes += notes
            for note in self.notes:
                self._tell(note)

    def _count_resumed_work(self) -> None:
        self.clock.add(self.job.records.values(), resumed=True)
        for record in self.job.records.values():
            self._count_sources(record)
        for end in self.job.ends.values():
            self.clock.add_end(end)

    def _count_sources(self, record: UnitRecord) -> None:
        self.sources.update(record.sources)
        validate_num_sources(self.sources)

    @contextmanager
    def _workers(self) -> Iterator[WorkerPool]:
        """A Ray session and its workers."""
        config, num_workers = self.config, self.config.workers
        # In the object store: per worker one block in work and one waiting, one block per reader, and a margin.
        num_blocks = 2 * num_workers + -(-num_workers // 4) + 2
        with ExitStack() as stack:
            with self.clock.stage("start Ray"):
                stack.enter_context(ray_session(num_workers, config.ray_address, int(num_blocks * config.unit_bytes * 1.1)))
                pool = WorkerPool(
                    num_workers,
                    config.max_worker_bytes,
                    on_start=self._count_attempt,
                    passed=(BackendMismatchError,),
                    on_wait=self._tell,
                    max_wait_seconds=config.max_wait_seconds,
                )
                stack.enter_context(pool)
            yield pool

    def _tell(self, message: str) -> None:
        self.clock.note = message
        self.clock.notify()

    def _count_attempt(self, call: Call) -> None:
        if call.name.rpartition(" ")[0].endswith(" unit"):
            self.job.count_attempt()

    def _tokenize(self, pool: WorkerPool) -> None:
        """Do every unit that is not committed yet, and all of them again if the fast backend gave a wrong result."""
        while True:
            try:
                self._run_units(pool)
                return
            except BackendMismatchError as error:
                self.clock.note = f"{error}: starting over with the slow reference"
                # Units that are still running would be committed after all others were discarded.
                pool.drain()
                self.job.fall_back(str(error))
                self.clock.start_over()

    def _run_units(self, pool: WorkerPool) -> None:
        with self.clock.stage("tokenize"):
            while True:
                unfinished = [file for file in self.files if not self._is_done(file.index)]
                for event in run_units(unfinished, self.job.done(), self._unit_settings(), pool):
                    self._handle(event)
                    self.clock.notify()
                self._forget_skipped()
                if not self._verify_touched(pool):
                    return
                # A changed file of a bundle is skipped; the others of its bundle are done again.
                self._forget_skipped()

    def _is_done(self, file: int) -> bool:
        return file in self.skipped or self.job.is_finished(file)

    def _handle(self, event: Event) -> None:
        if isinstance(event, UnitRecord):
            self.clock.add([event])
            self._count_sources(event)
            for end in self.job.add_record(event):
                self.clock.add_end(end)
        elif isinstance(event, FileEnd):
            self.job.add_end(event)
            self.clock.add_end(event)
        elif isinstance(event, BundleResult):
            if event.record is None:
                self.job.uncount_attempt()
            else:
                self._handle(event.record)
            for unreadable in event.unreadable:
                self._skip_file(unreadable)
        else:
            self._skip_file(event)

    def _forget_skipped(self) -> None:
        for number in self.skipped:
            self.job.forget_file(number)

    def _verify_touched(self, pool: WorkerPool) -> bool:
        """Compare the bytes of files that have another version than at the start of the job; True if one must be skipped."""
        config = self.config
        touched = [file for file in self.files if file.index not in self.skipped and self._was_touched(file)]
        calls = [
            Call(
                function=verify_touched,
                arguments=(
                    file,
                    self.job.ends[file.index],
                    self.job.block_hashes(file.index),
                    config.unit_bytes,
                    config.max_record_bytes,
                ),
                name=f"{file} after a change",
            )
            for file in touched
        ]
        changed = [result for _, result in pool.map(calls) if result is not None]
        for unreadable in changed:
            self._skip_file(unreadable)
        return bool(changed)

    def _was_touched(self, file: InputFile) -> bool:
        try:
            return file.was_touched()
        except OSError:
            return False  # it was read completely

    def _unit_settings(self) -> UnitSettings:
        return UnitSettings(
            tokenizer=self.job.tokenizer_file,
            tokenizer_sha256=sha256_file(self.job.tokenizer_file),
            fast=self._fast,
            hash_split=self.hash_split,
            max_record_bytes=self.config.max_record_bytes,
            unit_bytes=self.config.unit_bytes,
            units=self.job.store.folder,
            filters=self.filters,
            digests=self.config.deduplicate,
        )

    def _skip_file(self, unreadable: Unreadable) -> None:
        if self.config.on_unreadable == "fail":
            raise PrepareError(
                f"{unreadable.reason}. Then rerun the same command to resume; or skip such files with on_unreadable=skip"
            )
        self.skipped[unreadable.file] = unreadable.reason

    def _committed(self) -> CommittedRun:
        return CommittedRun(
            config=self.config,
            files=self.files,
            job=self.job,
            output=self.output,
            clock=self.clock,
            command=self.command,
            notes=self.notes,
            skipped=self.skipped,
            fast=self._fast,
            base=self.base,
        )


def _make_tokenizer(config: PrepareConfig, filters: Filters, files: list[InputFile], hash_split: HashSplit, path: Path) -> None:
    """Copy the given tokenizer to `path`, or train one there on the training documents that the filters keep."""
    if config.tokenizer:
        with atomic_write(path) as file:
            file.write(read_given_tokenizer(config.tokenizer))
        return
    training = [file for file in files if file.may_hold_training_text]

    def keep(document: Document, text: bytes) -> bool:
        in_training = not config.splits_by_hash or hash_split(text) == "train"
        return in_training and filters.why_dropped(document) is None

    texts = sample_texts(training, config.max_record_bytes, keep=keep)
    save_tokenizer(train_tokenizer(texts, config.vocab_size), path)
