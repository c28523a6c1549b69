"""The results of ladders and of single run folders: each is a point with further columns of the report, or excluded with
a reason.

Arms of one objective form a set. On prefix-LM all arms, gpt2 among them, are measured by suffix bits per byte on the same text.
On other objectives encoder-decoders are measured by their own loss, never on one axis with another objective's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.sizes import shape_of
from pipeline.eval.measurements import Measurements, read_measurements
from pipeline.eval.suffix_bpb import ALL, suffix_bpb_file
from pipeline.run_folder import METRICS
from pipeline.scaling.curves import read_curve
from pipeline.scaling.fit.points import CheckedRuns, Excluded, Point, check_runs
from pipeline.scaling.ladder.ladder import LADDER_FILE, End, Ladder, PlannedRun, read_ladder
from pipeline.scaling.ladder.learning_rates import rate_for
from pipeline.scaling.ladder.run_configs import run_config, runs_of
from pipeline.scaling.run_result import RunResult
from pipeline.scaling.run_table import read_table
from pipeline.scaling.runs import read_run
from pipeline.tracking.metrics import read_metrics

_ONE_BUDGET = 1.05
"""Run folders without a ladder whose FLOPs are within 5 % of each other have one budget."""
_POSITIONS = {"learned": "_positions", "learned_only": "_learned_only", "none": "_no_positions"}
"""Endings of arms by `model.encoder_positions`."""


@dataclass(frozen=True, kw_only=True)
class ResultSet:
    """Results that may be compared with each other."""

    name: str
    """The objective. prefix_lm includes gpt2's causal_lm."""
    measure: str
    checked: CheckedRuns
    results: tuple[RunResult, ...]
    """One for each point, in the order of the points."""


@dataclass(frozen=True)
class Collected:
    ladders: tuple[tuple[Path, Ladder], ...]
    sets: tuple[ResultSet, ...]
    excluded: tuple[Excluded, ...]
    """Of all sets."""


def collect(places: Sequence[Path]) -> Collected:
    """Read ladders, run folders, and tables of earlier reports (runs.csv).

    Raises ValueError for runs that contradict each other (`points.check_runs`).
    """
    if missing := next((place for place in places if not place.exists()), None):
        raise ValueError(f"{missing}: there is no such folder")
    tables = [place for place in places if place.is_file()]
    folders = [place for place in places if not place.is_file()]
    ladders = [(folder, read_ladder(folder)) for folder in folders if (folder / LADDER_FILE).is_file()]
    found: list[RunResult | Excluded] = []
    for folder, ladder in ladders:
        for run in ladder.runs:
            if run.phase == "main":
                found += [_of_ladder(folder, name, ladder, run, end) for end, name in run.folders()]
    found += _singles([folder for folder in folders if not (folder / LADDER_FILE).is_file()])
    for table in tables:
        found += read_table(table)
    results = [one for one in found if isinstance(one, RunResult)]
    sets, excluded = [], [one for one in found if isinstance(one, Excluded)]
    for name in dict.fromkeys(_set_of(one) for one in results):
        of_set = _by_text_loss([one for one in results if _set_of(one) == name])
        members = {one.point.run: one for one in of_set}
        checked = check_runs([one.point for one in of_set])
        excluded += checked.excluded
        if checked.points:
            chosen = tuple(members[point.run] for point in checked.points)
            sets.append(ResultSet(name=name, measure=checked.points[0].measure, checked=checked, results=chosen))
    return Collected(tuple(ladders), tuple(sets), tuple(excluded))


def _by_text_loss(results: list[RunResult]) -> list[RunResult]:
    """Results of an objective other than prefix-LM, with their losses on text targets if all finished ones have been measured.

    Sentinels and end tokens are a part of their own losses, and say nothing about text.
    """
    finished = [one for one in results if one.point.problem is None]
    if _set_of(results[0]) == "prefix_lm" or any(one.measurements is None or one.folder is None for one in finished):
        return results
    return [one if one.measurements is None else _with_text_loss(one, one.measurements) for one in results]


def _with_text_loss(one: RunResult, found: Measurements) -> RunResult:
    measure = f"nats per text target token of {found.num_rows} rows, text {found.text_sha256[:8]}"
    return replace(one, point=replace(one.point, loss=found.text_loss, measure=measure))


def _set_of(result: RunResult) -> str:
    return "prefix_lm" if result.objective == "causal_lm" else result.objective


def _of_ladder(place: Path, name: str, ladder: Ladder, run: PlannedRun, end: End) -> RunResult | Excluded:
    folder = runs_of(place) / name
    if not folder.exists():
        return Excluded(str(folder), "was not started yet")
    try:
        rate = rate_for(place, ladder, run)
    except ValueError:  # the sweeps are not in this folder
        rate = None
    planned = run_config(ladder, run, end, rate or 1.0, None).model_dump(mode="json")
    there = _config_of(folder / "config.json")
    # places of data are the machine's; equal fingerprints show that the data are the same
    sections = ("model", "mesh", "train", "optimizer", "data")
    own = {"data.path", "data.blend", *(() if rate else ("optimizer.learning_rate",))}
    for key in (key for name in sections for key in _differences(planned[name], there.get(name, {}), f"{name}.")):
        if key not in own:
            return Excluded(str(folder), f"is not the run that was planned: its {key} differs")
    result = _result(folder, run.arm, end.budget, run.size, True)
    if isinstance(result, RunResult):
        result = replace(result, needed_flops=_needed_flops(run, end))
    if isinstance(result, RunResult) and result.point.problem is None and _set_of(result) == "prefix_lm" and not result.sources:
        return Excluded(str(folder), "has no suffix bits per byte yet: complete it with `fnet-t5 scaling run`")
    return result


def _needed_flops(run: PlannedRun, end: End) -> float | None:
    per_row = getattr(run, "needed_flops_per_row", None)
    return None if per_row is None else float(end.steps * run.rows * per_row)


def _singles(folders: Sequence[Path]) -> list[RunResult | Excluded]:
    """Run folders without a ladder: the arm follows from the model, the budget from the FLOPs that were spent."""
    are_measured = all(suffix_bpb_file(folder) for folder in folders)
    found: list[RunResult | Excluded] = []
    for folder in folders:
        model = _config_of(folder / "config.json").get("model", {})
        size = model.get("size", "custom")
        size = f"d{model.get('d_model')}" if size == "custom" else size
        found.append(_result(folder, _arm_of(model), 0.0, size, are_measured))
    results = sorted((one for one in found if isinstance(one, RunResult)), key=lambda one: one.point.flops)
    first = 0.0
    budgets: dict[str, float] = {}
    for one in results:
        first = one.point.flops if one.point.flops > _ONE_BUDGET * first else first
        budgets[one.point.run] = first
    return [
        replace(one, point=replace(one.point, budget=budgets[one.point.run])) if isinstance(one, RunResult) else one
        for one in found
    ]


def _config_of(config_file: Path) -> dict[str, Any]:
    """The values of a config.json; empty if it is unreadable, which `read_run` then reports."""
    with suppress(OSError, ValueError, TypeError):
        return dict(json.loads(config_file.read_bytes()))
    return {}


def _differences(planned: Mapping[str, Any], there: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Keys with different values. A key that only one of the two has was added to the code later, and is ignored."""
    for key in planned.keys() & there.keys():
        mine, its = planned[key], there[key]
        if isinstance(mine, Mapping) and isinstance(its, Mapping):
            yield from _differences(mine, its, f"{prefix}{key}.")
        elif mine != its and not (isinstance(mine, float) and math.isclose(mine, its, rel_tol=1e-9)):
            yield prefix + key


def _arm_of(model: dict[str, Any]) -> str:
    name = str(model.get("architecture"))
    if name == "gpt2" and model.get("position") == "relative":
        return "causal"
    positions = _POSITIONS.get(str(model.get("encoder_positions")), "")
    if name != "fnet_t5":
        return name + positions
    if model["mixing"] == "identity":
        return "ff_only" + positions
    kept = f"_{model['attention_layout']}{model['num_attention_layers']}" if model["num_attention_layers"] else ""
    wide = f"_encoder_d_ff{model['encoder_d_ff']}" if model["encoder_d_ff"] else ""
    mixing = "" if model["mixing"] == "fourier" else f"_{model['mixing']}"
    return name + mixing + kept + wide + positions


def _result(folder: Path, arm: str, budget: float, size: str, by_suffix_bpb: bool) -> RunResult | Excluded:
    """The end of a run, measured by suffix bits per byte if asked for and evaluated, else by its own loss."""
    try:
        return _read_result(folder, arm, budget, size, by_suffix_bpb)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Excluded(str(folder), f"holds a file that cannot be read ({type(error).__name__}: {error})")


def _read_result(folder: Path, arm: str, budget: float, size: str, by_suffix_bpb: bool) -> RunResult | Excluded:
    point = read_run(folder, arm=arm, budget=budget, size=size)
    if isinstance(point, Excluded):
        return point
    config = json.loads((folder / "config.json").read_bytes())
    rows = read_metrics(folder / METRICS)
    last = rows[-1]
    objective = str(config["data"]["objective"]["name"])
    own_loss = point.loss
    sources: dict[str, float] = {}
    scores = suffix_bpb_file(folder)
    if by_suffix_bpb and objective in ("prefix_lm", "causal_lm") and scores is not None and point.problem is None:
        measured = _with_suffix_bpb(point, scores)
        if isinstance(measured, Excluded):
            return measured
        point, sources = measured
    provenance = folder / "provenance.json"
    memory = [row["memory_gb"] for row in rows if row.get("memory_gb") is not None]
    return RunResult(
        point=point,
        name=folder.name,
        folder=folder,
        objective=objective,
        own_loss=own_loss,
        sources=sources,
        steps=int(config["train"]["steps"]),
        warmup_steps=int(config["optimizer"]["warmup_steps"]),
        rows=int(config["train"]["global_batch_size"]),
        learning_rate=float(config["optimizer"]["learning_rate"]),
        encoder_tokens=float(last["encoder_tokens"]),
        decoder_tokens=float(last["decoder_tokens"]),
        target_tokens=float(last["target_tokens"]),
        memory_gb=max(memory, default=None),
        non_embedding=_non_embedding(point.num_parameters, config["model"]),
        needed_flops=None,
        shape=shape_of(config["model"]),
        config=config,
        provenance=json.loads(provenance.read_bytes()) if provenance.is_file() else {},
        measurements=read_measurements(folder),
        curve=read_curve(folder),
    )


def _with_suffix_bpb(point: Point, scores: Path) -> tuple[Point, dict[str, float]] | Excluded:
    """The point with suffix bits per byte as its loss, and bits per byte by source. Excluded if the file was edited."""
    measured = json.loads(scores.read_bytes())
    for name, one in measured["sources"].items():
        if not math.isclose(one["bits_per_byte"], one["nll"] / math.log(2) / one["target_bytes"], rel_tol=1e-9):
            return Excluded(point.run, f"{scores.name} was changed: bits_per_byte of {name} is not nll / ln 2 / target_bytes")
    whole = measured["sources"][ALL]
    measure = f"bits per byte of {measured['suffix']} tokens given {measured['prefix']} tokens, text {whole['text_sha256'][:8]}"
    sources = {name: float(one["bits_per_byte"]) for name, one in measured["sources"].items() if name != ALL}
    return replace(point, loss=float(whole["bits_per_byte"]), measure=measure), sources


def _non_embedding(num_parameters: int, model: dict[str, Any]) -> int:
    """Parameters without the embedding table and an untied head."""
    multiple = model["vocab_multiple"]
    rows = math.ceil(model["vocab_size"] / multiple) * multiple
    return num_parameters - rows * model["d_model"] * (1 if model["tie_embeddings"] else 2)
