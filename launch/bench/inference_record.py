"""The output of `bench inference`: a flat list of records, and tables of them for people."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from data_prep.files import write_json_atomically
from models.sizes import shape_of

BASELINE = "t5"


@dataclass(frozen=True, kw_only=True)
class InferenceRecord:
    """One model in one cell of the grid, as in the JSON file; docs/inference.md describes the same fields."""

    benchmark: Literal["inference"] = "inference"
    pairing: str
    """What is equal in one comparison: equal_parameters or equal_training_compute."""
    arm: str
    """fnet_t5, t5 or gpt2. The t5 is one model, measured once and listed in both pairings."""
    size: str
    """The size of the T5 that the others are matched to."""
    batch: int
    prefix: int
    new_tokens: int
    first_token_seconds: float
    """From token ids to the first new token of every row, median over rounds."""
    token_seconds: float
    """Of each next token of every row: the mean over a text, then the median over rounds."""
    first_token_rounds: list[float]
    token_rounds: list[float]
    """One value a round, in the same order for all models of a cell, so that ratios can be taken within a round."""
    parameters: int
    training_flops: float
    """Of one row of training_encoder_length + training_decoder_length raw tokens, 3 x forward."""
    mismatch: float
    """The quantity that the pairing makes equal, relative to the t5's, minus 1."""
    first_token_flops: float
    """Of one row: the prefix and the logits of the first token."""
    token_flops: float
    """Of one row and one next token, the mean over a text."""
    step_bytes: float
    """Fewest bytes that a next token of the whole batch reads: the weights of decoder and head once, and every row's cache."""
    weight_bytes: int
    cache_bytes: int
    """Of keys and values at the end of the text, by formula."""
    self_cache_bytes: int
    cross_cache_bytes: int
    measured_cache_bytes: int
    """The same, counted in the tensors that were used."""
    held_cache_bytes: int
    """The storage behind these tensors: caches grow in steps of more than one token."""
    peak_bytes: int | None
    """Peak of allocated GPU memory from prefix to end of text, with the weights of this model only; None on a CPU."""
    encoder_layers: int
    decoder_layers: int
    d_model: int
    encoder_d_ff: int
    d_ff: int
    vocab_size: int
    training_encoder_length: int
    training_decoder_length: int
    num_heads: int | None = None
    """None in a file that was written before this field was."""
    fourier_backend: str | None
    """None for models without Fourier mixing."""
    precision: str
    device: str
    threads: int
    machine: str
    weights: Literal["random"] = "random"


def write_records(path: Path, records: Sequence[InferenceRecord]) -> None:
    """Write a JSON list of flat objects, atomically."""
    write_json_atomically(path, [asdict(record) for record in records])


def read_records(path: Path) -> list[InferenceRecord]:
    """Read a file of `write_records`. Raises ValueError for any other file."""
    try:
        return [InferenceRecord(**entry) for entry in json.loads(path.read_bytes())]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is not a file of `fnet-t5 bench inference --output` ({error}): run that command again"
        ) from error


COLUMNS = (
    "batch",
    "prefix",
    "new",
    "arm",
    "shape",
    "M par.",
    "first, ms",
    "of t5",
    "next, ms",
    "of t5",
    "GFLOP first",
    "next",
    "MB read, next",
    "weights",
    "caches",
)


def columns(records: Sequence[InferenceRecord]) -> tuple[str, ...]:
    """Column names of the rows of `tables`; the peak is measured on GPUs only."""
    return COLUMNS if records[0].peak_bytes is None else (*COLUMNS, "peak")


def tables(records: Sequence[InferenceRecord]) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """For each pairing its name and rows of `columns`. A ratio is the median over rounds of the ratio within a round."""
    for pairing in dict.fromkeys(record.pairing for record in records):
        chosen = [record for record in records if record.pairing == pairing]
        baselines = {_place(record): record for record in chosen if record.arm == BASELINE}
        yield pairing.replace("_", " "), [_row(record, baselines[_place(record)]) for record in chosen]


def markdown(records: Sequence[InferenceRecord]) -> str:
    """The tables as Markdown."""
    lines, names = [], columns(records)
    for title, rows in tables(records):
        lines += [f"**{title.capitalize()}**", "", "| " + " | ".join(names) + " |"]
        lines += ["| " + " | ".join("---" if name in ("arm", "shape") else "---:" for name in names) + " |"]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    return "\n".join(lines)


def _place(record: InferenceRecord) -> tuple[int, int, int]:
    return record.batch, record.prefix, record.new_tokens


def _row(record: InferenceRecord, baseline: InferenceRecord) -> tuple[str, ...]:
    return (
        *map(str, _place(record)),
        record.arm,
        _shape(record),
        f"{record.parameters / 1e6:.1f}",
        f"{1e3 * record.first_token_seconds:.1f}",
        _ratio(record.first_token_rounds, baseline.first_token_rounds),
        f"{1e3 * record.token_seconds:.2f}",
        _ratio(record.token_rounds, baseline.token_rounds),
        f"{record.first_token_flops / 1e9:.2f}",
        f"{record.token_flops / 1e9:.3f}",
        _megabytes(record.step_bytes),
        _megabytes(record.weight_bytes),
        _megabytes(record.cache_bytes),
        *([] if record.peak_bytes is None else [_megabytes(record.peak_bytes)]),
    )


def _shape(record: InferenceRecord) -> str:
    layers = {"num_encoder_layers": record.encoder_layers, "num_decoder_layers": record.decoder_layers}
    return shape_of({**layers, "d_model": record.d_model, "num_heads": record.num_heads})


def _ratio(seconds: Sequence[float], baseline: Sequence[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(seconds, baseline, strict=True)):.2f}"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.1f}"
