"""Extending a ladder: further arms, sizes, budgets and seeds, recorded in ladder.json. What was planned before stays as it is.

A larger plan is made from the changed recipe, and only what it adds is kept. A budget that is added to a planned run becomes a
run of its own, trained from its first step: the plateau of the planned run may have been trained and removed. Arms that were
swept keep their sweeps, and with them the rates of runs that were trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.scaling.ladder.ladder import Extension, Ladder, Pair, PlannedRun, make_pairs, now
from pipeline.scaling.ladder.planned_runs import all_runs, check_length
from pipeline.scaling.ladder.recipe import LadderRecipe

_MAY_GROW = ("arms", "sizes", "budgets", "seeds", "objectives", "hypotheses", "device", "tracking")
"""Keys that an extension may change."""


def extend(ladder: Ladder, recipe: LadderRecipe) -> Ladder:
    """The ladder with what a changed recipe adds to it. Raises ValueError if the recipe changes or removes what was planned, or
    if it adds nothing."""
    # where the data are is no part of a comparison: their fingerprint is
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": ladder.recipe.data.path})})
    _check_keys(ladder.recipe, recipe)
    runs = tuple(_added(ladder, tuple(all_runs(recipe, ladder.vocab_size))))
    if not runs:
        raise ValueError("the recipe adds no run to the ladder: give further arms, sizes, budgets or seeds")
    check_length(recipe, runs)
    before = {_place(pair) for pair in ladder.pairs}
    pairs = tuple(pair for pair in make_pairs(recipe, (*ladder.runs, *runs)) if _place(pair) not in before)
    added = Extension(added_at=now(), previous_sha256=ladder.sha256, recipe=recipe, runs=runs, pairs=pairs)
    return replace(ladder, extensions=(*ladder.extensions, added), stored=None)


def _check_keys(before: LadderRecipe, after: LadderRecipe) -> None:
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    changed = [key for key in new if key not in _MAY_GROW and new[key] != old.get(key)]
    changed += [f"sizes.{name}" for name, size in old["sizes"].items() if new["sizes"].get(name) != size]
    changed += [f"arms.{name}" for name in old["arms"] if name not in new["arms"]]
    for key in ("objectives", "hypotheses"):
        if list(new[key])[: len(old[key])] != list(old[key]):
            changed.append(key)
    if changed:
        raise ValueError(
            f"an extension cannot change what was planned, and this one changes {', '.join(changed)}: plan another ladder for "
            "that, or add arms, sizes, budgets and seeds only"
        )


def _added(ladder: Ladder, wanted: Sequence[PlannedRun]) -> Iterator[PlannedRun]:
    """The planned runs that the ladder lacks, in their order."""
    planned: dict[str, list[PlannedRun]] = {}
    for run in ladder.runs:
        planned.setdefault(run.name.partition("+")[0], []).append(run)
    _check_kept(planned, wanted)
    swept = {(run.objective, run.arm) for run in ladder.runs}
    for run in wanted:
        there = planned.get(run.name)
        if there is None:
            if run.phase == "main" or (run.objective, run.arm) not in swept:
                yield run
        elif run.phase == "main" and (more := _further_ends(there, run)) is not None:
            yield more


def _check_kept(planned: Mapping[str, Sequence[PlannedRun]], wanted: Sequence[PlannedRun]) -> None:
    """Raise ValueError if a run would disappear or be another one. A sweep or check that is no longer wanted stays."""
    names = {run.name: run for run in wanted}
    for name, runs in planned.items():
        found, first = names.get(name), runs[0]
        if first.phase != "main":
            continue
        if found is None or not {end.budget for run in runs for end in run.ends} <= {end.budget for end in found.ends}:
            raise ValueError(f"an extension cannot remove what was planned, and this one removes {name} or a budget of it")
        for key, value in _fixed(first).items():
            if _fixed(found)[key] != value:
                raise ValueError(f"an extension cannot change what was planned, and this one changes {key} of {name}")


def _fixed(run: PlannedRun) -> dict[str, Any]:
    return {"model": run.model, "rows": run.rows, "flops_per_row": run.flops_per_row, "seed": run.seed}


def _further_ends(there: Sequence[PlannedRun], run: PlannedRun) -> PlannedRun | None:
    """A run with the budgets that planned ones lack, after their warm-up; None if they lack none."""
    budgets = {end.budget for one in there for end in one.ends}
    number = sum(len(one.ends) for one in there)
    ends = [end for end in run.ends if end.budget not in budgets]
    if not ends:
        return None
    labelled = tuple(replace(end, label=f"b{number + place}") for place, end in enumerate(ends, start=1))
    return replace(run, name=f"{run.name}+{len(there)}", ends=labelled, warmup_steps=there[0].warmup_steps)


def _place(pair: Pair) -> tuple[Any, ...]:
    return (pair.objective, pair.arm, pair.size, pair.budget, pair.seed)
