"""metrics.jsonl: one JSON object a logged step, always written, flushed at once; reports read this file and nothing else."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from data_prep.files import atomic_write


@dataclass
class Counters:
    """What a run has spent so far; saved with every checkpoint."""

    raw_tokens: int = 0
    """Tokens of the corpus that rows were made of: the D of comparisons, whatever the objective."""
    encoder_tokens: int = 0
    """Encoder positions computed, padding included."""
    decoder_tokens: int = 0
    """Decoder positions computed, padding included."""
    target_tokens: int = 0
    """Tokens that the loss was taken on."""
    flops: float = 0.0
    """Model FLOPs of training: 3 x forward."""
    seconds: float = 0.0
    """Wall-clock of training steps; validation and checkpoints are not in it."""


class MetricsFile:
    """Appends rows; a run that continues at step s first drops the rows after s, which it will write again."""

    def __init__(self, path: Path, resume_step: int) -> None:
        kept = [row for row in read_metrics(path) if row["step"] <= resume_step]
        with atomic_write(path) as file:
            for row in kept:
                file.write(orjson.dumps(row) + b"\n")
        self._file = path.open("ab")

    def write(self, step: int, counters: Counters, **values: Any) -> dict[str, Any]:
        row = {"step": step, **values, **asdict(counters)}
        self._file.write(orjson.dumps(row) + b"\n")
        self._file.flush()
        return row

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a metrics file; a last line cut short by a crash is left out. Empty where there is no file."""
    if not path.is_file():
        return []
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            rows.append(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            if number == len(lines):  # no newline after it: the write was cut
                break
            raise ValueError(f"{path} line {number} is not JSON ({error}): remove that line") from error
    return rows
