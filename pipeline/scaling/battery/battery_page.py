"""The report of the battery, made from its results: README.md, runs.csv, results.parquet and solved.svg.

`notes.md` in the folder of the report is written by hand; it stands below the figure and is kept.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean

from data_prep.files import atomic_write
from pipeline.scaling.battery.battery_figure import solved_figure
from pipeline.scaling.battery.outcomes import RESULTS, BatteryOutcome, check_rows, read_outcomes, write_table
from pipeline.scaling.battery.settings import BatteryRecipe
from pipeline.scaling.battery.tasks.by_name import TASKS

NOTES = "notes.md"
SOLVES = 0.95
"""Mean share of solved rows, over the seeds that are there, from which an arm is said to solve a task."""

_Value = Callable[[BatteryOutcome], float]
_COLUMNS = (
    *("task", "length", "arm", "size", "seed", "learning_rate", "steps", "solved", "tokens", "shuffled_solved"),
    *("shuffled_tokens", "num_parameters", "flops", "seconds", "diverged", "settings_sha256"),
)


def write_battery_report(folder: Path, recipe: BatteryRecipe, results: Path, *, command: str, machine: str) -> list[Path]:
    """Write the report of the recipe's runs whose results are there, and return its files.

    `command` and `machine` are shown in it. Raises ValueError if there is no result yet.
    """
    planned = {run.name for run in recipe.runs()}
    outcomes = [one for one in read_outcomes(results) if one.name in planned]
    if not outcomes:
        raise ValueError(f"{results} holds no result of this recipe: make runs before a report")
    check_rows(outcomes)
    folder.mkdir(parents=True, exist_ok=True)
    notes = folder / NOTES
    written = notes.read_text(encoding="utf-8").strip() if notes.is_file() else ""
    page = "\n\n".join(_page(recipe, outcomes, len(planned), written, command, machine)) + "\n"
    contents = {"README.md": page, "runs.csv": _runs_csv(outcomes), "solved.svg": solved_figure(outcomes, recipe)}
    for name, text in contents.items():
        with atomic_write(folder / name) as file:
            file.write(text.encode())
    write_table(folder / RESULTS, outcomes)
    return [folder / name for name in (*contents, RESULTS)]


def _page(
    recipe: BatteryRecipe, outcomes: Sequence[BatteryOutcome], planned: int, notes: str, command: str, machine: str
) -> Iterator[str]:
    yield "# The synthetic battery: which encoders can use the order of their input"
    if len(outcomes) < planned:
        yield f"> **Partial: {len(outcomes)} of {planned} runs are made.** Cells with fewer seeds than planned say how many."
    yield (
        "Each task is one that a model can only solve if it uses the order of its input (except sort, the control). Each cell "
        "is the share of held-out rows in which every token is right, in percent: the mean over seeds, and in brackets the "
        "smallest and the largest. The tasks and how to read this: [docs/battery.md](../../battery.md)."
    )
    yield "## Answer"
    yield "\n".join(f"- {sentence}" for sentence in answer(recipe, outcomes))
    yield "![Share of rows solved by length, one panel a task, one line an arm; the tables below hold the values](solved.svg)"
    if notes:
        yield notes
    yield "## Rows solved"
    yield from _tables(recipe, outcomes, lambda one: one.solved, with_chance="row")
    yield "## Tokens right"
    yield (
        "The decoder reads the right earlier targets. Beside reading the input, an arm can gain here by knowing which tokens "
        "the input holds, without their order."
    )
    yield from _tables(recipe, outcomes, lambda one: one.tokens, with_chance="token")
    yield "## Rows solved when the input is shuffled"
    yield "The same models and rows, with the encoder's tokens of each row in a random order: what is left needs no order."
    yield from _tables(recipe, outcomes, lambda one: one.shuffled_solved, with_chance="row")
    yield "## How it was made"
    yield from _how(recipe, outcomes, command, machine)


def answer(recipe: BatteryRecipe, outcomes: Sequence[BatteryOutcome]) -> list[str]:
    """One sentence a task: which arms solve it, and up to which length."""
    sentences = []
    for task in recipe.tasks:
        made = [one for one in outcomes if one.task == task]
        if not made:
            continue
        longest = {arm: _longest_solved([one for one in made if one.arm == arm]) for arm in recipe.arms}
        words = [
            f"up to {length} tokens by {listed([arm for arm in recipe.arms if longest[arm] == length])}"
            for length in sorted({length for length in longest.values() if length}, reverse=True)
        ]
        tried = max(one.length for one in made)
        sentence = f"**{task}** (tried up to {tried} tokens): solved {'; '.join(words) or 'by no arm'}"
        without = [arm for arm in recipe.arms if all(one.arm != arm for one in made)]
        if without:
            sentence += f". No result yet: {listed(without)}"
        elif not words:
            best = max(made, key=lambda one: one.solved)
            share = f"{percent(best.solved)} % at {best.length} tokens"
            sentence += f", so nothing follows for mixing (best run: {best.arm}, {share})"
        sentences.append(sentence + ".")
    return [*sentences, f"Solved: {100 * SOLVES:g} % of the rows or more, mean over the seeds that are there."]


def _longest_solved(outcomes: Sequence[BatteryOutcome]) -> int:
    """The longest length at which the mean over seeds is enough; 0 if there is none."""
    by_length: defaultdict[int, list[float]] = defaultdict(list)
    for one in outcomes:
        by_length[one.length].append(one.solved)
    return max((length for length, solved in by_length.items() if mean(solved) >= SOLVES), default=0)


def listed(names: Sequence[str]) -> str:
    """In words: "a, b and c"."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def _tables(recipe: BatteryRecipe, outcomes: Sequence[BatteryOutcome], value: _Value, *, with_chance: str) -> Iterator[str]:
    for size in recipe.sizes:
        for length in recipe.lengths:
            here = [one for one in outcomes if (one.size, one.length) == (size, length)]
            if not here:
                continue
            lines = [
                f"| {size}, length {length} | chance | {' | '.join(recipe.arms)} |",
                f"| --- | ---: | {' | '.join('---:' for _ in recipe.arms)} |",
            ]
            for task in [task for task in recipe.tasks if any(one.task == task for one in here)]:
                chance = getattr(TASKS[task](length).chance(), with_chance)
                cells = [
                    cell([value(one) for one in here if (one.task, one.arm) == (task, arm)], recipe.seeds)
                    for arm in recipe.arms
                ]
                lines.append(f"| {task} | {percent(chance)} | {' | '.join(cells)} |")
            yield "\n".join(lines)


def cell(values: Sequence[float], seeds: int) -> str:
    """Mean, smallest and largest in percent; how many seeds where not all are there."""
    if not values:
        return "–"
    middle = percent(mean(values))
    ends = percent(min(values)), percent(max(values))
    text = middle if ends[0] == ends[1] else f"{middle} ({ends[0]}–{ends[1]})"
    return text if len(values) == seeds else f"{text}, {len(values)} of {seeds}"


def percent(share: float) -> str:
    """With one digit after the point; what would look like 0 or 100 and is not is marked."""
    value = 100 * share
    if 0 < value < 0.05:
        return "<0.1"
    if 99.95 <= value < 100:
        return ">99.9"
    return f"{value:.1f}".removesuffix(".0")


def _how(recipe: BatteryRecipe, outcomes: Sequence[BatteryOutcome], command: str, machine: str) -> Iterator[str]:
    training = recipe.training
    minutes = sum(one.seconds for one in outcomes) / 60
    solved = sum(one.steps < training.steps and not one.diverged for one in outcomes)
    yield (
        f"Up to {training.steps} steps a run; {solved} of {len(outcomes)} runs stopped earlier, because "
        f"{100 * training.solved:g} % of {training.validation_rows} validation rows were solved; "
        f"{sum(one.diverged for one in outcomes)} diverged. Tested on {training.test_rows} further rows. {minutes:.0f} minutes "
        f"of one processor core. Report: {_today()}, {machine}."
    )
    yield "\n".join(
        f"- {size}: `{', '.join(f'{key} {setting}' for key, setting in config.model.items())}`"
        for size, config in recipe.sizes.items()
    )
    yield (
        "Every run, with its learning rate, steps, parameters, FLOPs and seconds: [runs.csv](runs.csv); with its validations: "
        f"[{RESULTS}]({RESULTS})."
    )
    yield f"```\n{command}\n```"


def _today() -> str:
    return datetime.now(timezone.utc).strftime("%d %B %Y").lstrip("0")


def _runs_csv(outcomes: Sequence[BatteryOutcome]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for one in outcomes:
        writer.writerow(getattr(one, name) if hasattr(one, name) else one.settings[name] for name in _COLUMNS)
    return out.getvalue()
