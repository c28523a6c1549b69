"""How data preparation grows with files, with what a small file expands to, with large records and with long words.

    python benchmarks/prepare_growth.py                 # about a minute of CPU
    python benchmarks/prepare_growth.py --scale 0.1     # smaller sizes, to try it

Every size is measured in a process of its own: CPU seconds of the work alone, and the peak of the process's memory, imports
included. Inputs are written by another process. Times are CPU times, so that other programs on the machine change them little.
`prepare` runs on `tests/helpers/inline_ray.py`, so its times are without Ray's processes. The table goes into
docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

sys.path.append(str(Path(__file__).parents[1]))  # for `tests`, which is not installed

_MB = 10**6
_EVENTS = 2000


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One row of the table. `make` writes the input of a size, if it is not there, and returns the work. `unit` is in bold.

    `per`: the number of repetitions that the work does, so that one is shown.
    """

    title: str
    sizes: tuple[int, ...]
    named: str
    unit: str
    make: Callable[[Path, int], Callable[[], object]]
    per: int = 1


def progress_events(folder: Path, size: int) -> Callable[[], object]:
    """Finished files of a job with `size` of them, each told to a listener."""
    from data_prep.readers.input_files import InputFile
    from data_prep.units.job_progress import Clock
    from data_prep.units.reader import FileEnd

    files = [InputFile(index=i, split=None, path=Path(f"/{i}.jsonl"), name=str(i), bytes=45, version="") for i in range(size)]
    clock = Clock(files, 64 * _MB, lambda progress: None)

    def work() -> None:
        for number in range(_EVENTS):
            clock.add_end(FileEnd(file=number % size, bytes=45, sha256="", blocks=(0,)))
            clock.notify()

    return work


def small_files(folder: Path, size: int) -> Callable[[], object]:
    """`prepare` on `size` files of 45 bytes."""
    from data_prep.config import PrepareConfig
    from data_prep.prepare import prepare
    from tests.helpers.inline_ray import inline_ray

    if not (folder / "raw").exists():
        (folder / "raw").mkdir()
        for number in range(size):
            text = f'{{"text": "document {number}"}}'
            (folder / "raw" / f"{number:06}.jsonl").write_text(f"{text:<44}\n")
    config = PrepareConfig(input=[f"{folder}/raw/*"], output=folder / "data", tokenizer="bytes")

    def work() -> None:
        with inline_ray(folder):
            prepare(config)

    return work


def expanding_zst(folder: Path, size: int) -> Callable[[], object]:
    """Reading one zst file that holds `size` MB of one letter in lines of a MB."""
    path = folder / "x.jsonl.zst"
    if not path.exists():
        line = b'{"text": "' + b"a" * (_MB - 13) + b'"}\n'
        compressor = zstandard.ZstdCompressor(level=19).compressobj(size=size * len(line))
        with open(path, "wb") as file:
            for _ in range(size):
                file.write(compressor.compress(line))
            file.write(compressor.flush())
    return _reading(path)


def large_parquet_rows(folder: Path, size: int) -> Callable[[], object]:
    """Reading `size` Parquet rows of 1 MB, in row groups of 50."""
    path = folder / "x.parquet"
    if not path.exists():
        texts = [random.Random(number).randbytes(_MB // 2).hex() for number in range(50)]
        schema = pa.schema({"text": pa.string()})
        with pq.ParquetWriter(path, schema) as writer:
            for _ in range(0, size, 50):
                writer.write_table(pa.table({"text": texts}, schema=schema), row_group_size=50)
    return _reading(path)


def long_word(folder: Path, size: int) -> Callable[[], object]:
    """Training a tokenizer on one word of `size` kB of DNA."""
    from data_prep.tokenization.tokenizer import train_tokenizer

    word = "".join(random.Random(0).choices("ACGT", k=size * 1000))
    return lambda: train_tokenizer([word], 1000)


def _reading(path: Path) -> Callable[[], object]:
    from data_prep.readers.blocks import cut_blocks
    from data_prep.readers.streams import read_chunks

    def work() -> None:
        for block in cut_blocks(read_chunks(path), 64 * _MB, 256 * 2**20):
            del block

    return work


MEASUREMENTS = {
    "progress_events": Measurement(
        title="one progress event",
        sizes=(1_000, 10_000, 100_000),
        named="input files",
        unit="µs",
        make=progress_events,
        per=_EVENTS,
    ),
    "small_files": Measurement(
        title="`prepare` on files of 45 bytes, with the byte tokenizer",
        sizes=(100, 300, 900),
        named="files",
        unit="s",
        make=small_files,
    ),
    "expanding_zst": Measurement(
        title="reading one zst file that holds text of one letter",
        sizes=(100, 300, 900),
        named="MB",
        unit="MiB",
        make=expanding_zst,
    ),
    "large_parquet_rows": Measurement(
        title="reading Parquet with rows of 1 MB in row groups of 50",
        sizes=(50, 100, 200),
        named="rows",
        unit="MiB",
        make=large_parquet_rows,
    ),
    "long_word": Measurement(
        title="training a tokenizer on one word of DNA",
        sizes=(30, 60, 120),
        named="kB",
        unit="s",
        make=long_word,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="factor of all sizes")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), help="lines to measure")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--one", nargs=4, metavar=("NAME", "SIZE", "FOLDER", "STEP"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, size, folder, step = options.one
        work = MEASUREMENTS[name].make(Path(folder), int(size))
        if step == "measure":
            print(json.dumps(measured(work, MEASUREMENTS[name].per)))
        return
    results: dict[str, dict[int, dict[str, float]]] = {}
    print("| what | sizes | CPU | peak memory |\n| --- | --- | --- | --- |")
    for name in options.only:
        measurement = MEASUREMENTS[name]
        sizes = [max(1, round(size * options.scale)) for size in measurement.sizes]
        results[name] = {size: in_a_process(name, size) for size in sizes}
        print(line(measurement, results[name]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def in_a_process(name: str, size: int) -> dict[str, float]:
    """The result of `measured`, from a new process: memory that was used once is not given back."""
    with tempfile.TemporaryDirectory(prefix="fnet-t5-bench-") as folder:
        command = [sys.executable, __file__, "--one", name, str(size), folder]
        subprocess.run([*command, "write"], check=True)
        done = subprocess.run([*command, "measure"], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measured(work: Callable[[], object], repetitions: int) -> dict[str, float]:
    """CPU seconds of one repetition of the work, and the peak memory in MiB of this process."""
    begin = time.process_time()
    work()
    seconds = (time.process_time() - begin) / repetitions
    return {"cpu_seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def line(measurement: Measurement, found: dict[int, dict[str, float]]) -> str:
    """The line of the table; what it is about is in bold."""
    factor, digits, unit = (1e6, 1, "µs") if measurement.unit == "µs" else (1, 2, "s")
    seconds = ", ".join(f"{one['cpu_seconds'] * factor:.{digits}f}" for one in found.values()) + f" {unit}"
    memory = ", ".join(f"{one['peak_mib']:,.0f}" for one in found.values()) + " MiB"
    shown = [f"**{text}**" if text.endswith(f" {measurement.unit}") else text for text in (seconds, memory)]
    return f"| {measurement.title} | {', '.join(f'{size:,}' for size in found)} {measurement.named} | {shown[0]} | {shown[1]} |"


if __name__ == "__main__":
    main()
