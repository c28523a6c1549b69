"""Raw text to a finished dataset folder: plan, tokenizer, units on Ray workers, assembly in plan order, manifest last.

Whatever the workers do and when, files are put together in plan order: the output is a function of inputs and config.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from data_prep.assemble import (
    QUARANTINE_FILE,
    join_quarantine,
    join_tokens,
    pack_split,
    remove_leftovers,
)
from data_prep.config import PrepareConfig
from data_prep.files import atomic_write, canonical_json, only_writer, sha256_bytes, sha256_file
from data_prep.indexed_dataset import token_dtype
from data_prep.manifest import (
    MANIFEST_FILE,
    InputRecord,
    Manifest,
    SourceCounts,
    SplitRecord,
    TokenizerRecord,
    describe_files,
    load_manifest,
    write_manifest,
)
from data_prep.ray_session import ray_session, run_on_workers
from data_prep.tokenize_unit import UnitResult, UnitSettings, tokenize_unit
from data_prep.tokenizer import TOKENIZER_FILE, eos_id, load_tokenizer, num_ids, save_tokenizer, train_tokenizer
from data_prep.train_tokenizer import sample_texts
from data_prep.work_units import SPLITS, HashSplit, Split, WorkUnit, plan

WORK_FOLDER = ".work"
_SHOWN_REJECTIONS = 3


class PrepareError(ValueError):
    """A run that cannot start or must not finish: the message says which file and what to do."""


@dataclass(frozen=True)
class Progress:
    """How far a run is. `total` counts what finished units hold; `seconds` run from the start of the run."""

    stage: str
    units_done: int
    num_units: int
    total: SourceCounts
    rejected: int
    seconds: float


class _Clock:
    """Names the stages of a run, times them, and tells the listener at each step."""

    def __init__(self, num_units: int, listener: Callable[[Progress], None] | None) -> None:
        self.stage_seconds: dict[str, float] = {}
        self._num_units = num_units
        self._listener = listener
        self._begin = time.perf_counter()

    @contextmanager
    def stage(self, name: str, results: Sequence[UnitResult] = ()) -> Iterator[None]:
        begin = time.perf_counter()
        self.tell(name, results)
        yield
        self.stage_seconds[name] = round(time.perf_counter() - begin, 3)

    def tell(self, stage: str, results: Sequence[UnitResult]) -> None:
        if self._listener:
            self._listener(
                Progress(
                    stage=stage,
                    units_done=len(results),
                    num_units=self._num_units,
                    total=sum((result.total for result in results), SourceCounts()),
                    rejected=sum(result.rejected.total() for result in results),
                    seconds=time.perf_counter() - self._begin,
                )
            )


def prepare(config: PrepareConfig, on_progress: Callable[[Progress], None] | None = None, command: str = "") -> Manifest:
    """Make the dataset folder `config.output` and return its manifest.

    A folder already made from the same inputs and decisions is left alone and its manifest returned. After an error or
    an interruption there is no manifest, and running again starts over. All errors are ValueErrors: PrepareError (a
    folder made from other inputs, more bad records than `config.max_bad_share`, nothing to train on), WorkerError,
    FolderInUseError, InputError, TokenizerError.
    """
    units = plan(config)
    # Absolute, because workers run in another folder.
    output = config.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    with only_writer(output):
        if (output / MANIFEST_FILE).exists():
            return _up_to_date(config, units, output)
        parts = output / WORK_FOLDER
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
        remove_leftovers(output)
        try:
            return _run(config, units, output, parts, _Clock(len(units), on_progress), command)
        finally:
            shutil.rmtree(parts, ignore_errors=True)


def _run(config: PrepareConfig, units: list[WorkUnit], output: Path, parts: Path, clock: _Clock, command: str) -> Manifest:
    hash_split = HashSplit(config.val_share, config.test_share, config.seed)
    tokenizer_file = parts / TOKENIZER_FILE
    with clock.stage("tokenizer"):
        _make_tokenizer(config, units, hash_split, tokenizer_file)
    tokenizer = load_tokenizer(tokenizer_file)
    tokenizer_record = TokenizerRecord(
        sha256=sha256_file(tokenizer_file), vocab_size=num_ids(tokenizer), eos_id=eos_id(tokenizer)
    )
    settings = UnitSettings(tokenizer_file, tokenizer_record.sha256, hash_split, config.max_record_bytes, parts)
    dtype = token_dtype(tokenizer_record.vocab_size)
    results = _tokenize_units(units, settings, config, clock)
    join_quarantine(units, parts, parts)
    _refuse_bad_input(config, results, parts / QUARANTINE_FILE)

    splits: dict[str, SplitRecord] = {}
    for split in SPLITS:
        sources = _sum_sources(results, split)
        if sources:
            with clock.stage(f"assemble {split}", results):
                join_tokens(units, split, parts, output, dtype)
            with clock.stage(f"pack {split}", results):
                splits[split] = SplitRecord(sources=sources, packing=pack_split(output, split, config.packing))
    (parts / QUARANTINE_FILE).replace(output / QUARANTINE_FILE)
    tokenizer_file.replace(output / TOKENIZER_FILE)
    with clock.stage("checksums", results):
        files = describe_files(output)

    rejected: Counter[str] = sum((result.rejected for result in results), Counter())
    identity = config.identity()
    return write_manifest(
        output,
        Manifest(
            command=command,
            config=identity,
            config_sha256=sha256_bytes(canonical_json(identity)),
            tokenizer=tokenizer_record,
            token_dtype=dtype.name,
            inputs=[_input_record(result.unit, result.sha256, result.bytes) for result in results],
            splits=splits,
            rejected=dict(rejected),
            blank_lines=sum(result.blank_lines for result in results),
            stage_seconds=clock.stage_seconds,
            files=files,
        ),
    )


def _make_tokenizer(config: PrepareConfig, units: list[WorkUnit], hash_split: HashSplit, path: Path) -> None:
    if config.tokenizer:
        load_tokenizer(config.tokenizer)  # speaks up before anything is read
        with atomic_write(path) as file:
            file.write(config.tokenizer.read_bytes())
        return
    training = [unit for unit in units if unit.split in (None, "train")]
    texts = sample_texts(
        training,
        config.max_record_bytes,
        keep=lambda text: not config.splits_by_hash or hash_split(text) == "train",
    )
    save_tokenizer(train_tokenizer(texts, config.vocab_size), path)


def _tokenize_units(units: list[WorkUnit], settings: UnitSettings, config: PrepareConfig, clock: _Clock) -> list[UnitResult]:
    """Run every unit on a worker and return the results in plan order."""
    results: list[UnitResult] = []
    num_workers = min(config.workers, len(units))
    with ExitStack() as stack:
        with clock.stage("start workers"):
            stack.enter_context(ray_session(num_workers, config.ray_address))
        with clock.stage("tokenize"):
            for result in run_on_workers(tokenize_unit, [(unit, settings) for unit in units], num_workers):
                results.append(result)
                clock.tell("tokenize", results)
    return sorted(results, key=lambda result: result.unit.index)


def _sum_sources(results: Sequence[UnitResult], split: Split) -> dict[str, SourceCounts]:
    sources: dict[str, SourceCounts] = {}
    for result in results:
        for source, counts in result.sources.get(split, {}).items():
            sources[source] = sources.get(source, SourceCounts()) + counts
    return sources


def _refuse_bad_input(config: PrepareConfig, results: Sequence[UnitResult], quarantine: Path) -> None:
    rejected = sum(result.rejected.total() for result in results)
    documents = sum(result.total.documents for result in results)
    if rejected > config.max_bad_share * (documents + rejected):
        with open(quarantine, "rb") as lines:
            first = [orjson.loads(line) for line, _ in zip(lines, range(_SHOWN_REJECTIONS), strict=False)]
        shown = "; ".join(f"{bad['file']} line {bad['line']}: {bad['reason']} {bad['first_bytes'][:60]!r}" for bad in first)
        raise PrepareError(
            f"{rejected} of {documents + rejected} records are bad, above max_bad_share {config.max_bad_share}: {shown}. "
            "Mend the input, or raise max_bad_share"
        )
    if not any("train" in result.sources for result in results):
        raise PrepareError("the input holds no document for the train split; give more input or lower val and test shares")


def _input_record(unit: WorkUnit, sha256: str, num_bytes: int) -> InputRecord:
    return InputRecord(name=unit.name, split=unit.split or "hash", bytes=num_bytes, sha256=sha256)


def _up_to_date(config: PrepareConfig, units: list[WorkUnit], output: Path) -> Manifest:
    """The manifest of a finished folder, if this run would make the same one."""
    manifest = load_manifest(output)
    differences = [
        f"{key} is {manifest.config.get(key)!r} there and {config.identity().get(key)!r} here"
        for key in sorted({*manifest.config, *config.identity()})
        if manifest.config.get(key) != config.identity().get(key)
    ]
    if config.tokenizer and sha256_file(config.tokenizer) != manifest.tokenizer.sha256:
        differences.append(f"the tokenizer is not {config.tokenizer}")
    there = {record.name: record for record in manifest.inputs}
    here = {unit.name: unit for unit in units}
    differences += [f"input {name} is only there" for name in sorted(there.keys() - here.keys())]
    differences += [f"input {name} is only here" for name in sorted(here.keys() - there.keys())]
    for name in sorted(there.keys() & here.keys()):
        unit, record = here[name], there[name]
        if _input_record(unit, sha256_file(unit.path), unit.path.stat().st_size) != record:
            differences.append(f"input {name} has other bytes or another split")
    differences += [
        f"{name} is damaged there"
        for name, record in manifest.files.items()
        if not (output / name).is_file() or (output / name).stat().st_size != record.bytes
    ]
    if differences:
        raise PrepareError(f"{output} holds another dataset: {'; '.join(differences)}. Give another --output or delete it")
    return manifest
