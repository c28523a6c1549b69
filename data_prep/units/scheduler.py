"""Runs the units of a plan on Ray: readers cut compressed files into blocks, workers tokenize blocks and byte ranges.

Blocks travel through the object store by reference. Their number is limited to one per reader and two per worker, so memory
is bounded for a corpus of any size. The driver only handles headers and records.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.executor.ray_session import RaySessionError
from data_prep.executor.workers import Call, LostInputError, WorkerError, WorkerPool
from data_prep.readers.blocks import num_ranges
from data_prep.readers.input_files import InputFile
from data_prep.units.bundles import BundleResult, bundled, tokenize_bundle
from data_prep.units.reader import BlockHeader, BlockReader, FileEnd, Unreadable, hash_plain, tokenize_block, tokenize_range
from data_prep.units.store import UnitRecord
from data_prep.units.tokenize_unit import UnitSettings

# A reader decompresses several times faster than a worker tokenizes.
_WORKERS_PER_READER = 4
_READER_TRIES = 3

Event = UnitRecord | FileEnd | Unreadable | BundleResult


def run_units(
    files: Sequence[InputFile], done: Mapping[int, Mapping[int, str]], settings: UnitSettings, pool: WorkerPool
) -> Iterator[Event]:
    """Do all units of `files` except those in `done` (`raw_sha256` by file and block); yield records, file ends and bundles in
    the order in which they finish.

    After an Unreadable no further unit of its file is started, but records of units already started may still follow.
    """
    yield from _Scheduler(files, done, settings, pool).events()


class _ReaderActor:
    """A process that reads one file after another: starting a process is slow, and a corpus may be many small files."""

    def open(self, *arguments: Any) -> None:
        self._reader = BlockReader(*arguments)

    def next(self) -> Any:
        return self._reader.next()


class _Scheduler:
    def __init__(
        self, files: Sequence[InputFile], done: Mapping[int, Mapping[int, str]], settings: UnitSettings, pool: WorkerPool
    ) -> None:
        import ray

        self._settings = settings
        self._pool = pool
        self._done = done
        # A file with a committed unit is not put into a bundle.
        bundles, others = bundled([file for file in files if file.index not in done], settings.unit_bytes)
        others += [file for file in files if file.index in done]
        self._bundles = deque(bundles)
        self._plain_files = deque(file for file in others if file.is_plain)
        self._plain_is_exhausted = False
        self._plain = self._all_plain_calls()
        self._streams = deque(file for file in others if not file.is_plain)
        self._ready: deque[Call] = deque()
        self._unreadable: set[int] = set()
        self._reader = ray.remote(num_cpus=0)(_ReaderActor)
        num_readers = min(len(self._streams), -(-pool.num_workers // _WORKERS_PER_READER))
        self._readers: dict[Any, _ActiveReader] = {}  # by the reference of the header that was requested
        self._idle_readers = [self._open(self._reader.remote(), self._streams.popleft()) for _ in range(num_readers)]

    def events(self) -> Iterator[Event]:
        import ray

        try:
            while True:
                self._request_blocks()
                self._feed_workers()
                waiting = [*self._readers, *self._pool.awaited]
                if not waiting:
                    return
                for reference in self._pool.wait(waiting):
                    event = self._on_header(reference) if reference in self._readers else self._on_result(reference)
                    if isinstance(event, Unreadable):
                        if event.file in self._unreadable:
                            continue
                        self._unreadable.add(event.file)
                        self._ready = deque(call for call in self._ready if call.arguments[0].index != event.file)
                    if event:
                        yield event
        except RaySessionError:
            self._idle_readers, self._readers = [], {}  # nothing answers any more
            raise
        finally:
            for reader in [*self._idle_readers, *self._readers.values()]:
                ray.kill(reader.actor)

    def _request_blocks(self) -> None:
        """Request blocks in advance, at most one per worker."""
        while self._idle_readers and len(self._ready) + len(self._readers) < self._pool.num_workers:
            reader = self._idle_readers.pop(0)
            header, data = reader.actor.next.options(num_returns=2).remote()
            reader.data = data
            self._readers[header] = reader

    def _feed_workers(self) -> None:
        while self._pool.has_idle:
            if not self._ready and self._bundles:
                files = self._bundles.popleft()
                name = f"{files[0]} and {len(files) - 1} files after it, unit 0"
                self._pool.start(Call(function=tokenize_bundle, arguments=(files, self._settings), name=name))
                continue
            call = self._ready.popleft() if self._ready else next(self._plain, None)
            if call is None:
                return
            if call.arguments[0].index not in self._unreadable:
                self._pool.start(call)

    def _on_header(self, reference: Any) -> FileEnd | Unreadable | None:
        """Handle a reader's answer: a block becomes a call; at the end of its file the reader opens the next one."""
        import ray

        reader = self._readers.pop(reference)
        try:
            header = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise WorkerError(f"{reader.file}: {type(error.cause).__name__}: {error.cause}") from error
        except ray.exceptions.RayError as error:
            if reader.tries == _READER_TRIES:
                raise WorkerError(
                    f"{reader.file}: its reader died {_READER_TRIES} times ({type(error).__name__}), usually out of "
                    "memory: use smaller unit_bytes or max_record_bytes"
                ) from error
            self._idle_readers.append(
                self._open(self._reader.remote(), reader.file, reader.given, reader.tries + 1, reader.only)
            )
            return None
        if isinstance(header, BlockHeader):
            reader.given.add(header.index)
            name = f"{reader.file} unit {header.index}"
            self._ready.append(
                Call(function=tokenize_block, arguments=(reader.file, header, reader.data, self._settings), name=name)
            )
            reader.data = None
            self._idle_readers.append(reader)
            return None
        if self._streams:
            self._idle_readers.append(self._open(reader.actor, self._streams.popleft()))
        else:
            ray.kill(reader.actor)
        end: FileEnd | Unreadable = header
        return end

    def _on_result(self, reference: Any) -> Event | None:
        try:
            finished = self._pool.finish(reference)
        except LostInputError as lost:
            # A node was lost with a block in its memory: another reader reads the file again for this block.
            file, header = lost.call.arguments[:2]
            self._idle_readers.append(self._open(self._reader.remote(), file, only=frozenset([header.index])))
            return None
        if finished is None:
            return None
        call, result = finished
        if isinstance(result, BundleResult):
            self._schedule_rest(call.arguments[0][result.num_done :])
        event: Event = result
        return event

    def _schedule_rest(self, files: Sequence[InputFile]) -> None:
        """Files of a bundle that were not done, the first because it is too large for one."""
        if not files:
            return
        if files[0].is_plain:
            self._plain_files.append(files[0])
            self._plain = self._all_plain_calls() if self._plain_is_exhausted else self._plain
        else:
            self._streams.append(files[0])
            if not self._readers and not self._idle_readers:
                self._idle_readers.append(self._open(self._reader.remote(), self._streams.popleft()))
        if files[1:]:
            self._bundles.append(list(files[1:]))

    def _open(
        self,
        actor: Any,
        file: InputFile,
        given: Iterable[int] = (),
        tries: int = 1,
        only: frozenset[int] | None = None,
    ) -> "_ActiveReader":
        skipped: dict[int, str | None] = {**self._done.get(file.index, {}), **dict.fromkeys(given)}
        actor.open.remote(file, self._settings.unit_bytes, self._settings.max_record_bytes, skipped, only)
        return _ActiveReader(actor=actor, file=file, given=set(given), tries=tries, only=only)

    def _all_plain_calls(self) -> Iterator[Call]:
        self._plain_is_exhausted = False
        while self._plain_files:
            yield from self._plain_calls(self._plain_files.popleft())
        self._plain_is_exhausted = True

    def _plain_calls(self, file: InputFile) -> Iterator[Call]:
        num_units = max(1, num_ranges(file.bytes, self._settings.unit_bytes))
        done = self._done.get(file.index, {})
        for index in range(num_units):
            if index not in done:
                yield Call(function=tokenize_range, arguments=(file, index, self._settings), name=f"{file} unit {index}")
        yield Call(function=hash_plain, arguments=(file, self._settings.unit_bytes), name=str(file))


@dataclass(kw_only=True)
class _ActiveReader:
    """A reader, the file that it reads, the blocks that it has given, and the bytes of the block that was requested."""

    actor: Any
    file: InputFile
    given: set[int]
    tries: int
    only: frozenset[int] | None
    data: Any = None
