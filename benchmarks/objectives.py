"""Speed of objectives and batches on one core: span corruption and the published numpy collator, start, and resume.

    python benchmarks/objectives.py [--json FILE]

The reference is the collator of transformers' T5 masked-language-model example (`run_t5_mlm_flax.py`), rewritten in numpy from
its description: one noise mask per row in a Python loop, then operations on the whole batch. It calls numpy's bincount where
the example calls jax.ops.segment_sum, which is slower. Rates are raw tokens (10^6) per second of CPU time of one thread, which
other load on a shared machine affects little. Both get the same rows and alternate; the median of the repetitions is
reported. The start is wall-clock time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.dataset.indexed_dataset import write_index
from data_prep.dataset.manifest import FileRecord, PackingRecord, SourceCounts, SplitRecord, TokenizerRecord, write_manifest
from data_prep.dataset.packing import rows_file
from data_prep.dataset.row_index import write_row_index
from data_prep.files import sha256_bytes
from pipeline.data.batches import DataShard, Rows, StreamRows, TrainingBatches
from pipeline.objectives.catalogue import ObjectiveField, build_objective
from pipeline.objectives.interface import Objective
from pipeline.objectives.vocabulary import Vocabulary

sys.path.append(str(Path(__file__).parents[1]))  # for `tests`, which is not installed
from tests.helpers.datasets import synthetic_manifest

Ints = NDArray[np.int64]

BATCH, ENCODER_LENGTH = 128, 512
VOCABULARY = Vocabulary(
    start=0,
    end=1,
    sentinels=tuple(range(32_099, 32_004, -1)),
    named={"[MASK]": 32_099, "[CLS]": 32_000, "[SEP]": 32_001, "[NLU]": 32_002, "[NLG]": 32_003, "[S2S]": 32_004},
    ordinary=np.arange(3, 32_000),
    ends_sentence=np.arange(32_128) % 17 == 3,
    ends_line=np.arange(32_128) % 29 == 3,
)


class NumpyCollator:
    """T5's masking as in the example; see the module's docstring."""

    def __init__(self, noise_density: float, mean_span_length: float, seed: int) -> None:
        self.noise_density, self.mean_span_length = noise_density, mean_span_length
        self.rng = np.random.RandomState(seed)

    def __call__(self, rows: Ints) -> tuple[Ints, Ints, Ints]:
        """rows (B, L) → input ids, labels, decoder input ids."""
        is_noise = np.stack([self._noise_mask(rows.shape[1]) for _ in range(len(rows))])
        inputs = self._filtered(rows, self._sentinels(is_noise))
        labels = self._filtered(rows, self._sentinels(~is_noise))
        shifted = np.zeros_like(labels)
        shifted[:, 1:] = labels[:, :-1]
        return inputs, labels, shifted

    def _noise_mask(self, length: int) -> NDArray[np.bool_]:
        num_noise = min(max(int(np.round(length * self.noise_density)), 1), length - 1)
        num_spans = max(int(np.round(num_noise / self.mean_span_length)), 1)
        noise, kept = self._segmented(num_noise, num_spans), self._segmented(length - num_noise, num_spans)
        starts = np.cumsum(np.stack([kept, noise], axis=1).reshape(-1))[:-1]
        is_start = np.zeros(length, dtype=np.int8)
        is_start[starts] = 1
        return np.cumsum(is_start) % 2 == 1

    def _segmented(self, num_items: int, num_segments: int) -> Ints:
        is_first = np.arange(num_items - 1) < num_segments - 1
        self.rng.shuffle(is_first)
        return np.bincount(np.cumsum(np.pad(is_first, [[1, 0]])))

    def _sentinels(self, removed: NDArray[np.bool_]) -> Ints:
        """The sentinel at the first token of each removed span, -1 at its other tokens, 0 elsewhere."""
        flags = removed.astype(np.int8)
        first = flags - np.roll(flags, 1, axis=-1) * flags
        first[:, 0] = flags[:, 0]
        number = np.where(first != 0, np.cumsum(first, axis=-1), first)
        ids = np.where(number != 0, 32_100 - number, 0)
        return ids - (flags - first)

    def _filtered(self, rows: Ints, sentinels: Ints) -> Ints:
        merged = np.where(sentinels != 0, sentinels, rows)
        kept = merged[merged > 0].reshape(len(rows), -1)
        return np.concatenate([kept, np.ones((len(rows), 1), dtype=np.int64)], axis=-1)


def objective_named(spec: Any, architecture: str = "fnet_t5", encoder_length: int = ENCODER_LENGTH) -> Objective:
    config = ObjectiveField.model_validate({"objective": spec}).objective
    return build_objective(
        config,
        architecture=architecture,
        encoder_length=encoder_length,
        decoder_length=config.default_decoder_length(encoder_length),
        vocabulary=VOCABULARY,
        seed="0",
    )


def synthetic_folder(folder: Path, num_tokens: int, row_lengths: Sequence[int], document: int, blank: bool) -> Path:
    """A dataset folder of documents of uneven lengths around `document`. With `blank`, its `.bin` is a sparse file of zeros."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    lengths = rng.integers(document // 2, 2 * document, 2 * num_tokens // document).astype(np.int32)
    ends = np.cumsum(lengths, dtype=np.int64)
    lengths = lengths[: int(np.searchsorted(ends, num_tokens)) + 1]
    lengths[-1] -= int(lengths.sum(dtype=np.int64)) - num_tokens
    path = folder / "train.bin"
    if blank:
        with path.open("wb") as file:
            file.truncate(2 * num_tokens)
    else:
        rng.integers(3, 32_000, num_tokens).astype("<u2").tofile(path)
    write_index(folder / "train.idx", lengths, np.dtype("<u2"))
    packing: list[PackingRecord] = [
        write_row_index(folder / rows_file("train", n), lengths, n, "concatenate" if blank else "best_fit") for n in row_lengths
    ]
    files = {p.name: FileRecord(bytes=p.stat().st_size, sha256=sha256_bytes(p.name.encode())) for p in folder.iterdir()}
    counts = SourceCounts(documents=len(lengths), tokens=num_tokens, bytes=4 * num_tokens)
    manifest = synthetic_manifest(
        TokenizerRecord(sha256="", vocab_size=32_100, eos_id=1),
        "uint16",
        {"train": SplitRecord(sources={"random": counts}, length_histogram={}, packing=packing)},
        command="benchmarks/objectives.py",
        files=files,
    )
    write_manifest(folder, manifest)
    return folder


def seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started


def taking_turns(works: dict[str, Callable[[int], object]], calls: int, repetitions: int) -> dict[str, float]:
    """Median seconds of CPU time of one call of each function. Each call gets a number that is not used again."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    number = 1
    for repetition in range(repetitions + 1):
        for name, work in works.items():
            started = time.process_time()
            for _ in range(calls):
                work(number)
                number += 1
            if repetition:  # the first repetition is a warm-up
                taken[name].append((time.process_time() - started) / calls)
    return {name: statistics.median(values) for name, values in taken.items()}


def collators(calls: int, repetitions: int) -> dict[str, float]:
    """Million raw tokens per second of span corruption on rows in memory."""
    objective = objective_named("span_corruption")
    length = objective.row_length
    rows = np.random.default_rng(0).integers(3, 32_000, (BATCH, length))
    lengths = np.full(BATCH, length)
    peer = NumpyCollator(0.15, 3.0, 0)
    inputs, labels, _ = peer(rows)
    batch = objective(rows, lengths, np.arange(BATCH))
    assert (inputs.shape, labels.shape) == (batch.inputs[0].shape, batch.losses[0][0].shape)
    found = taking_turns(
        {
            "peer": lambda number: peer(rows),
            "ours": lambda number: objective(rows, lengths, np.arange(number * BATCH, (number + 1) * BATCH)),
        },
        calls,
        repetitions,
    )
    return {name: BATCH * length / value / 1e6 for name, value in found.items()}


def from_folder(base: Path, calls: int, repetitions: int) -> dict[str, float]:
    """Million raw tokens per second from a dataset folder: order, reading, objective and tensors of a step of 128 rows."""
    objectives = {
        "prefix_lm": objective_named("prefix_lm"),
        "causal_lm": objective_named("causal_lm", "gpt2"),
        "span_corruption": objective_named("span_corruption"),
        "ul2": objective_named({"name": "ul2", "repeat_sentinels": True}),
        "text_infilling": objective_named("text_infilling"),
        "masked_lm": objective_named("masked_lm", "fnet"),
    }
    lengths = sorted({objective.row_length for objective in objectives.values()})
    folder = synthetic_folder(base / "small", 20_000_000, lengths, 700, blank=False)
    result = {}
    for layout, kind in (("packed", Rows), ("stream", StreamRows)):
        works: dict[str, Callable[[int], object]] = {}
        for name, objective in objectives.items():
            rows = kind(folder, "train", objective.row_length)
            works[name] = TrainingBatches(rows, objective, DataShard(BATCH), BATCH, 0).step
        taken = taking_turns(works, calls, repetitions)
        for name, value in taken.items():
            result[f"{name}, {layout}"] = BATCH * objectives[name].row_length / value / 1e6
    return result


def start_and_resume(base: Path, repetitions: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds to the first batch from a folder of 10^9 tokens, and to the batch at a given position on resume."""
    objective = objective_named("span_corruption")
    folder = synthetic_folder(base / "large", 1_000_000_000, [objective.row_length], 1000, blank=True)
    start, resume = {}, {}
    for layout, kind in (("packed", Rows), ("stream", StreamRows)):

        def first_batch(kind: type[Rows] | type[StreamRows] = kind) -> TrainingBatches:
            rows = kind(folder, "train", objective.row_length)
            batches = TrainingBatches(rows, objective, DataShard(8), BATCH, 0)
            batches.step(1)
            return batches

        start[layout] = statistics.median(seconds(first_batch, time.perf_counter) for _ in range(repetitions))
        if layout == "packed":
            batches = first_batch()
            for position in (0, 10**6, 10**9, 10**12, 10**15):

                def resume_at(position: int = position, batches: TrainingBatches = batches) -> None:
                    batches.continue_at(7, position)
                    batches.step(8)

                resume_at()
                resume[f"{position:.0e}"] = statistics.median(
                    seconds(resume_at, time.process_time) for _ in range(10 * repetitions)
                )
    return start, resume


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20, help="batches per repetition")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as base:
        rates = collators(options.calls, options.repetitions)
        complete = from_folder(Path(base), options.calls, options.repetitions)
        start, resume = start_and_resume(Path(base), options.repetitions)
    print(f"Span corruption of rows in memory, {BATCH} x 568 → 512 + 114, million raw tokens/s on one core")
    print(f"  published collator, in numpy {rates['peer']:8.1f}")
    print(f"  ours                         {rates['ours']:8.1f}   {rates['ours'] / rates['peer']:.1f} times")
    print(f"From a dataset folder to tensors, steps of {BATCH} rows, million raw tokens/s on one core")
    for name, rate in complete.items():
        print(f"  {name:28} {rate:8.1f}")
    print("From a folder of 10^9 tokens to the first batch, seconds")
    for name, value in start.items():
        print(f"  {name:28} {value:8.3f}")
    print("From a position (global sample) to the batch there, milliseconds")
    for name, value in resume.items():
        print(f"  {name:28} {1e3 * value:8.2f}")
    if options.json:
        figures = {"rates": rates, "from_folder": complete, "start_seconds": start, "resume_seconds": resume}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
