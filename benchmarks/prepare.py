"""Data preparation measured end to end: from raw shards to a verified dataset folder, with memory, scaling and a reference.

    python benchmarks/prepare.py --shards ../shared/data/minipile/train/*.jsonl.zst --copies 8 \
        --tokenizer ../shared/data/tokenizers/gpt2.json

Rates are MB/s of UTF-8 text (10^6 bytes). Times are from the first read to the last verified byte. They include fsync, hashing,
assembly and packing, but not the start of Ray. Memory is the largest sum of proportional set sizes of the driver, Ray's
processes and the workers, including the object store, sampled twice per second.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import orjson
import psutil

from data_prep.config import PrepareConfig
from data_prep.dataset.indexed_dataset import TokenFile
from data_prep.dataset.manifest import load_manifest, verify
from data_prep.dataset.packing import pack
from data_prep.readers.blocks import cut_blocks, lines_of, read_lines
from data_prep.readers.records import parse_record
from data_prep.readers.streams import read_chunks
from data_prep.tokenization.backends import FastBackend, ReferenceBackend
from data_prep.tokenization.tokenizer import load_tokenizer

_START_RAY = "start Ray"
_REFERENCE_BYTES = 4_000_000
_PEER = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import MegatronDocumentTokenizer
if __name__ == "__main__":
    folder, output, tokenizer, logs, workers = sys.argv[1:]
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(folder, compression="zstd"),
            MegatronDocumentTokenizer(output, tokenizer_name_or_path=tokenizer, eos_token="<|endoftext|>"),
        ],
        tasks=int(workers), workers=int(workers), logging_dir=logs,
    ).run()
"""


@dataclass(frozen=True)
class EndToEnd:
    """One run of `prepare` and `verify`. Seconds exclude the start of Ray, which is `start_seconds`."""

    workers: int
    text_mb: float
    tokens: int
    seconds: float
    mb_per_second: float
    tokens_per_second: float
    start_seconds: float
    verify_seconds: float
    peak_pss_mb: float
    padding_share: float
    stages: dict[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", nargs="+", type=Path, required=True, help="zstd-compressed JSON lines")
    parser.add_argument("--copies", type=int, default=8, help="number of copies of each shard, as separate files")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--memory-copies", nargs="*", type=int, default=[], help="more numbers of copies, to measure memory")
    parser.add_argument("--peer-python", help="a Python interpreter with datatrove, run on one shard per worker")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args(arguments)
    results: dict[str, object] = {
        "load_average": psutil.getloadavg()[0],
        "floors": component_rates(options.shards[0], options.tokenizer),
    }
    print(json.dumps(results, indent=2), flush=True)
    runs = []
    for workers, copies in [
        *((workers, options.copies) for workers in options.workers),
        *((max(options.workers), copies) for copies in options.memory_copies),
    ]:
        with scratch() as folder:
            link_copies(options.shards, copies, folder / "raw")
            run = end_to_end(folder / "raw", folder / "data", options.tokenizer, workers)
            print(json.dumps(asdict(run), indent=2), flush=True)
            runs.append(run)
            if "packing" not in results:
                results["packing"] = packing(folder / "data")
                print(json.dumps(results["packing"], indent=2), flush=True)
    results["end_to_end"] = [asdict(run) for run in runs]
    if options.peer_python:
        results["datatrove"] = peer(options)
        print(json.dumps(results["datatrove"], indent=2), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="fnet-t5-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def link_copies(shards: Sequence[Path], copies: int, folder: Path) -> None:
    """Links to the shards, `copies` times each, as separate files."""
    folder.mkdir()
    for copy in range(copies):
        for shard in shards:
            (folder / f"{copy:03d}.{shard.name}").symlink_to(shard.resolve())


def end_to_end(raw: Path, output: Path, tokenizer: Path, workers: int) -> EndToEnd:
    """`prepare` in a separate process, then `verify` in this one."""
    config = PrepareConfig(input=[f"{raw}/*"], output=output, tokenizer=tokenizer, workers=workers)
    program = (
        "import sys; from data_prep.config import PrepareConfig; from data_prep.prepare import prepare\n"
        "prepare(PrepareConfig.model_validate_json(sys.argv[1]))"
    )
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", program, config.model_dump_json()])
    memory = _PeakMemory(process.pid)
    if process.wait():
        raise SystemExit("prepare failed")
    seconds = time.perf_counter() - begin
    peak_bytes = memory.stop()
    manifest = load_manifest(output)
    begin = time.perf_counter()
    if problems := verify(output):
        raise SystemExit("\n".join(problems))
    verify_seconds = time.perf_counter() - begin
    start = manifest.stage_seconds[_START_RAY]
    totals = [split.total for split in manifest.splits.values()]
    text_bytes, tokens = sum(total.bytes for total in totals), sum(total.tokens for total in totals)
    seconds += verify_seconds - start
    return EndToEnd(
        workers=workers,
        text_mb=round(text_bytes / 1e6, 1),
        tokens=tokens,
        seconds=round(seconds, 2),
        mb_per_second=round(text_bytes / 1e6 / seconds, 1),
        tokens_per_second=round(tokens / seconds),
        start_seconds=round(start, 2),
        verify_seconds=round(verify_seconds, 2),
        peak_pss_mb=round(peak_bytes / 1e6),
        padding_share=manifest.splits["train"].packing[0].padding_share,
        stages=manifest.stage_seconds,
    )


class _PeakMemory:
    """The largest sum of proportional set sizes of a process and its descendants."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._stopped = threading.Event()
        self._peak = 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> int:
        self._stopped.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._stopped.wait(0.5):
            try:
                family = [self._process, *self._process.children(recursive=True)]
            except psutil.Error:
                continue
            self._peak = max(self._peak, sum(map(_pss, family)))


def _pss(process: psutil.Process) -> int:
    try:
        with open(f"/proc/{process.pid}/smaps_rollup") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


def component_rates(shard: Path, tokenizer: Path) -> dict[str, float]:
    """MB/s of each step alone on one core: MB of raw lines for reading, MB of text for tokenizing."""
    begin = time.perf_counter()
    blocks = list(cut_blocks(read_chunks(shard), 64_000_000, 1 << 28))
    rates = {"decompress": sum(block.data.nbytes for block in blocks) / (time.perf_counter() - begin)}
    begin = time.perf_counter()
    lines = [line.data for block in blocks for line in lines_of(block, 1 << 28)]
    rates["split lines"] = sum(map(len, lines)) / (time.perf_counter() - begin)
    begin = time.perf_counter()
    texts = [parse_record(line)[0].encode() for line in lines if line]
    rates["parse"] = sum(map(len, lines)) / (time.perf_counter() - begin)
    loaded = load_tokenizer(tokenizer)
    fast, reference = FastBackend(loaded), ReferenceBackend(loaded)
    for name in ("gigatoken, first time", "gigatoken, again"):
        begin = time.perf_counter()
        for start in range(0, len(texts), 256):
            fast.encode(texts[start : start + 256])
        rates[name] = sum(map(len, texts)) / (time.perf_counter() - begin)
    few, num_bytes = [], 0
    for text in texts:
        few.append(text)
        num_bytes += len(text)
        if num_bytes > _REFERENCE_BYTES:
            break
    begin = time.perf_counter()
    for text in few:
        reference.encode([text])
    rates["tokenizers"] = num_bytes / (time.perf_counter() - begin)
    return {name: round(rate / 1e6, 1) for name, rate in rates.items()}


def packing(data: Path) -> dict[str, float]:
    """Best-fit packing of the corpus's document lengths, repeated to a million documents."""
    lengths = TokenFile(data / "train").lengths
    lengths = np.tile(lengths, -(-1_000_000 // len(lengths)))
    begin = time.perf_counter()
    rows = pack(lengths, 640)
    seconds = time.perf_counter() - begin
    return {
        "documents": len(lengths),
        "pieces": rows.num_pieces,
        "documents_per_second": round(len(lengths) / seconds),
        "padding_share": round(rows.padding_share, 6),
    }


def peer(options: argparse.Namespace) -> dict[str, float]:
    """datatrove's Megatron writer with as many workers as ours and one shard per worker, so that none is idle. Its start-up
    time is measured with one line per worker and subtracted."""
    workers = max(options.workers)
    seconds, text_bytes = {}, 0
    for name, max_lines in (("one line", 1), ("all", sys.maxsize)):
        with scratch() as folder:
            (folder / "raw").mkdir()
            text_bytes = sum(
                _write_head(shard, folder / "raw" / f"{number}.jsonl.zst", max_lines)
                for number, shard in enumerate(options.shards[:workers])
            )
            begin = time.perf_counter()
            paths = [str(path) for path in (folder / "raw", folder / "out", options.tokenizer.resolve(), folder / "logs")]
            script = folder / "peer.py"
            script.write_text(_PEER)
            subprocess.run([options.peer_python, str(script), *paths, str(workers)], check=True, capture_output=True)
            seconds[name] = time.perf_counter() - begin
    rate = text_bytes / 1e6 / (seconds["all"] - seconds["one line"])
    return {"text_mb": round(text_bytes / 1e6, 2), "workers": workers, "mb_per_second": round(rate, 3)}


def _write_head(shard: Path, target: Path, max_lines: int) -> int:
    """Write the first lines of a shard to `target`. Returns the number of bytes of their texts."""
    import zstandard

    lines = [line.data for _, line in zip(range(max_lines), read_lines(shard, 1 << 28), strict=False)]
    target.write_bytes(zstandard.ZstdCompressor().compress(b"\n".join(lines) + b"\n"))
    return sum(len(orjson.loads(line)["text"].encode()) for line in lines)


if __name__ == "__main__":
    main()
