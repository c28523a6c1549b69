"""The input of fits: one point a finished run, and the checks that exclude runs.

An invalid run (unfinished, diverged, repeats its data too often, a copy of another) is excluded with a reason. If runs
contradict each other (two tokenizers, two data sets, two kinds of loss, two results for one place of the ladder), any choice
would be arbitrary, and the whole set is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_EPOCHS = 4.0
"""Repeated text is nearly worth new text up to about 4 passes, and worth less beyond (Muennighoff et al. 2023,
arXiv:2305.16264)."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run, at its end."""

    run: str
    """Its folder, for messages."""
    arm: str
    size: str
    """Name of its size on the ladder. Runs of two arms with equal size, budget and seed are a pair."""
    budget: float
    """Planned training FLOPs."""
    seed: int
    num_parameters: int
    """Parameters of the whole model, embeddings and head included, tied ones once."""
    tokens: float
    """Raw tokens of the corpus that were read: the D of every fit, whatever the objective."""
    flops: float
    """Model FLOPs of the training: 3 x forward."""
    loss: float
    seconds: float
    measure: str
    """Unit of `loss`, such as "nats per target token, prefix_lm". Only equal measures may be compared."""
    data: str
    """Fingerprint of the training data."""
    tokenizer: str
    """Hash of the tokenizer."""
    epochs: float
    """Passes over the source that is repeated most."""
    problem: str | None = None
    """Why the run is no result, such as "diverged"; None if it is one."""


@dataclass(frozen=True)
class Excluded:
    """A run that no fit reads."""

    run: str
    reason: str


@dataclass(frozen=True)
class CheckedRuns:
    """A set of runs after the checks."""

    points: tuple[Point, ...]
    excluded: tuple[Excluded, ...]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Points as arrays (R,), R runs in the order given."""

    num_parameters: Floats
    tokens: Floats
    flops: Floats
    loss: Floats

    def __len__(self) -> int:
        return len(self.loss)

    def take(self, chosen: NDArray[Any]) -> Columns:
        """The runs at which `chosen` (R,) is true, or whose numbers it has."""
        return Columns(
            num_parameters=self.num_parameters[chosen],
            tokens=self.tokens[chosen],
            flops=self.flops[chosen],
            loss=self.loss[chosen],
        )


def columns(points: Sequence[Point]) -> Columns:
    """The points as columns, for fits."""
    return Columns(
        num_parameters=np.array([point.num_parameters for point in points], dtype=np.float64),
        tokens=np.array([point.tokens for point in points], dtype=np.float64),
        flops=np.array([point.flops for point in points], dtype=np.float64),
        loss=np.array([point.loss for point in points], dtype=np.float64),
    )


def check_runs(runs: Sequence[Point | Excluded]) -> CheckedRuns:
    """Check the runs of all arms that will be compared, and exclude invalid ones; no value is averaged or changed.

    Raises ValueError, with runs and remedy, if tokenizers, data or measures are mixed, or if two different results have the
    same arm, size, budget and seed.
    """
    excluded = [run for run in runs if isinstance(run, Excluded)]
    kept: list[Point] = []
    seen: dict[tuple[str, str, float, int], Point] = {}
    results: dict[tuple[str, str, float, float, float], Point] = {}
    for point in (run for run in runs if isinstance(run, Point)):
        reason = _reason(point)
        place = (point.arm, point.size, point.budget, point.seed)
        if reason is None and place in seen:
            reason = _copy_of(seen[place], point)
        result = (point.arm, point.size, point.loss, point.tokens, point.seconds)
        if reason is None and result in results:  # runs of two seeds never have the same loss and time to the last bit
            reason = f"a copy of {results[result].run}"
        if reason is not None:
            excluded.append(Excluded(point.run, reason))
            continue
        seen[place] = results[result] = point
        kept.append(point)
    _refuse_mixed(kept, "tokenizers", lambda point: point.tokenizer, "prepare the data of all runs with one --tokenizer")
    _refuse_mixed(kept, "training data", lambda point: point.data, "train all runs on one data folder, with equal row lengths")
    _refuse_mixed(
        kept,
        "measures of loss",
        lambda point: point.measure,
        "compare one objective at a time, or evaluate suffix bits per byte of all: fnet-t5 scaling measure RUNS…",
    )
    return CheckedRuns(tuple(kept), tuple(excluded))


def _reason(point: Point) -> str | None:
    if point.problem is not None:
        return point.problem
    if not (math.isfinite(point.loss) and point.loss > 0):
        return f"diverged: its loss is {point.loss}"
    for name in ("num_parameters", "tokens", "flops"):
        value = getattr(point, name)
        if not (math.isfinite(value) and value > 0):
            return f"its {name} is {value}: the run counted nothing"
    if not point.epochs <= MOST_EPOCHS:
        return f"repeats its data {point.epochs:.1f} times: more than {MOST_EPOCHS:.0f} passes are no longer new text"
    return None


def _copy_of(first: Point, second: Point) -> str:
    if (first.loss, first.tokens, first.flops) == (second.loss, second.tokens, second.flops):
        return f"a copy of {first.run}"
    raise ValueError(
        f"{first.run} and {second.run} are both arm {first.arm}, size {first.size}, budget {first.budget:.3g}, seed "
        f"{first.seed}, with losses {first.loss:.4f} and {second.loss:.4f}: leave one out, or set their true seeds"
    )


def _refuse_mixed(points: Sequence[Point], what: str, key: Callable[[Point], str], remedy: str) -> None:
    examples: dict[str, str] = {}
    for point in points:
        examples.setdefault(key(point), point.run)
    if len(examples) > 1:
        found = "; ".join(f"{value} in {run}" for value, run in examples.items())
        raise ValueError(f"mixed {what} cannot be compared ({found}): {remedy}")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The losses of one size by compute: arrays (T,)."""

    num_parameters: int
    tokens: Floats
    flops: Floats
    loss: Floats
