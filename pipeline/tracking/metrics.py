"""metrics.jsonl: one JSON object for each logged row, flushed at once. Reports read this file and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_prep.files import atomic_write


@dataclass(kw_only=True)
class Counters:
    """What a run has spent so far. Saved with every checkpoint."""

    raw_tokens: int = 0
    """Tokens of the corpus that the rows were made from: the D of comparisons, for any objective."""
    encoder_tokens: int = 0
    """Encoder positions computed, padding included."""
    decoder_tokens: int = 0
    """Decoder positions computed, padding included."""
    target_tokens: int = 0
    """Tokens that the loss is computed on."""
    flops: float = 0.0
    """Model FLOPs of training: 3 x forward."""
    seconds: float = 0.0
    """Wall-clock of training steps, without validation and checkpoints."""


class MetricsFile:
    """Appends rows. A run that resumes at step s first drops the rows after s, which it will write again."""

    def __init__(self, path: Path, resume_step: int) -> None:
        kept = [row for row in read_metrics(path) if row["step"] <= resume_step]
        with atomic_write(path) as file:
            for row in kept:
                file.write(orjson.dumps(row) + b"\n")
        self._file = path.open("ab")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row, which has at least `step`, and flush it."""
        self._file.write(orjson.dumps(row) + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows of a metrics file, without a last line that a crash cut short. Empty if there is no file.

    Raises ValueError naming the line for any other line that is not JSON.
    """
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
            if number == len(lines):  # no newline at its end: a crash cut the write
                break
            raise ValueError(f"{path} line {number} is not JSON ({error}): remove that line") from error
    return rows
