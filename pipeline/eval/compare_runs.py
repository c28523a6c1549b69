"""Two runs: settings that differ, cost, and suffix bits per byte by source on exactly the same text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.cost.parameters import num_parameters
from pipeline.config import RunConfig, flatten
from pipeline.eval.evaluate import evaluate_sources
from pipeline.eval.suffix_bpb import Score, overall
from pipeline.run_folder import METRICS
from pipeline.tracking.metrics import read_metrics

_SAME_ANYWAY = ("tracking.",)


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """Rows of three tables, as text: how two runs differ."""

    prefix: int
    settings: list[tuple[str, str, str]]
    cost: list[tuple[str, str, str, str]]
    quality: list[tuple[str, str, str, str]]


def compare_runs(first: Path, second: Path, prefix: int | None, suffix: int, rows: int) -> RunComparison:
    """Compare two run folders; `prefix` and `suffix` in tokens, `rows` of each source.

    Raises ValueError if one is no run, or if the two cannot be evaluated on the same text.
    """
    configs = RunConfig.load(first), RunConfig.load(second)
    given = prefix or min(config.data.encoder_length for config in configs)
    scores = [evaluate_sources(run, prefix_length=given, suffix_length=suffix, rows_per_source=rows) for run in (first, second)]
    return RunComparison(
        prefix=given,
        settings=_settings(*configs),
        cost=_cost((first, second), configs),
        quality=_quality(first, second, *scores),
    )


def _settings(first: RunConfig, second: RunConfig) -> list[tuple[str, str, str]]:
    ours, theirs = (flatten(config.model_dump(mode="json")) for config in (first, second))
    keys = [key for key in {**ours, **theirs} if not key.startswith(_SAME_ANYWAY)]
    missing = "absent"
    return [
        (key, _text(ours.get(key, missing)), _text(theirs.get(key, missing)))
        for key in keys
        if ours.get(key, missing) != theirs.get(key, missing)
    ]


def _cost(runs: tuple[Path, Path], configs: tuple[RunConfig, RunConfig]) -> list[tuple[str, str, str, str]]:
    last = []
    for run in runs:
        found = read_metrics(run / METRICS)
        if not found:
            raise ValueError(f"{run} holds no metrics: it has not been trained")
        last.append(found[-1])
    pairs: dict[str, tuple[float, float]] = {"parameters": tuple(num_parameters(config.model) for config in configs)}  # type: ignore[dict-item]
    for key in ("raw_tokens", "target_tokens", "flops", "seconds"):
        pairs[key.replace("_", " ")] = (last[0][key], last[1][key])
    return [(name, f"{a:.4g}", f"{b:.4g}", f"{b / a:.3f}" if a else "") for name, (a, b) in pairs.items()]


def _quality(
    first: Path, second: Path, ours: Mapping[str, Score], theirs: Mapping[str, Score]
) -> list[tuple[str, str, str, str]]:
    a, b = ({**scores, "all together": overall(scores)} for scores in (ours, theirs))
    differing = [name for name in {**a, **b} if name not in a or name not in b or a[name].text_sha256 != b[name].text_sha256]
    if differing:
        raise ValueError(
            f"{first} and {second} are not measured on the same text (sources {', '.join(differing)}): both need one data "
            "folder, one tokenizer and the same --prefix"
        )
    return [
        (
            name,
            f"{a[name].bits_per_byte:.4f}",
            f"{b[name].bits_per_byte:.4f}",
            f"{b[name].bits_per_byte - a[name].bits_per_byte:+.4f}",
        )
        for name in a
    ]


def _text(value: Any) -> str:
    return json.dumps(value)
