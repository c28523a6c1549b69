"""Timing of alternatives in one process: same inputs, alternating calls, medians, equal numbers of threads."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from launch.bench.machine import machine

__all__ = ["Timed", "interleaved", "machine", "paired_ratio", "write_record"]


@dataclass(frozen=True)
class Timed:
    """Times of one alternative in milliseconds."""

    median: float
    low: float
    """First decile."""
    high: float
    """Ninth decile."""
    rounds: tuple[float, ...]
    """The time of each round, in order."""


def paired_ratio(slower: Timed, faster: Timed) -> float:
    """Median over rounds of the ratio of the two times. A busy machine slows both times of a round."""
    return statistics.median(a / b for a, b in zip(slower.rounds, faster.rounds, strict=True))


def interleaved(
    contestants: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 3, device: str = "cpu"
) -> dict[str, Timed]:
    """Call every alternative `repeats` times and time each call. Each round calls all of them once, in shuffled order.

    The calls alternate because the speed of a shared machine changes over minutes, which then affects all alternatives equally.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    shuffle = random.Random(0)
    for repeat in range(warmup + repeats):
        shuffle.shuffle(names)
        for name in names:
            start = time.perf_counter()
            contestants[name]()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: _summary(values) for name, values in seconds.items()}


def _summary(seconds: list[float]) -> Timed:
    rounds = tuple(1000 * value for value in seconds)
    ordered, tenth = sorted(rounds), len(rounds) // 10
    return Timed(statistics.median(ordered), ordered[tenth], ordered[-1 - tenth], rounds)


def write_record(path: Path | None, record: Mapping[str, Any]) -> None:
    """Append a record to a file of JSON lines."""
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
