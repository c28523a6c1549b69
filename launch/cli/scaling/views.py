"""A ladder on the terminal: its plan with the costs, and the state of its runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from models.sizes import shape_of
from pipeline.scaling.fit.points import MOST_EPOCHS
from pipeline.scaling.ladder.costs import costs_of
from pipeline.scaling.ladder.ladder import Ladder
from pipeline.scaling.ladder.states import RunState

_WIDTH = 110
"""Names of runs are not cut where the output is a file."""


def show_plan(ladder: Ladder) -> None:
    """Print runs, cost, pairs, and the effect that the design can detect."""
    recipe = ladder.recipe
    console = Console(width=max(_WIDTH, Console().width))
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{recipe.name}: {len(ladder.runs)} runs; rows a step, steps and tokens of the largest budget",
        title_justify="left",
    )
    table.add_column("run", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    for name in ("M parameters", "rows", "steps", "M tokens", "FLOPs"):
        table.add_column(name, justify="right")
    for run in ladder.runs:
        last = run.ends[-1]
        steps = f"{len(run.rates)} x {last.steps:,}" if run.phase == "sweep" else f"{last.steps:,}"
        cells = f"{run.num_parameters / 1e6:,.2f}", f"{run.rows:,}", steps, f"{last.tokens / 1e6:,.1f}", f"{run.flops:.3g}"
        table.add_row(run.name, shape_of(run.model), *cells)
    console.print(table)
    _show_rules(console, ladder)
    costs = costs_of(ladder)
    console.print(
        f"Cost: {costs.flops:.3g} FLOPs ({costs.sweep_flops:.3g} of them sweeps), {costs.device_hours:,.1f} device hours, "
        f"{costs.wall_hours:,.1f} hours on {recipe.device.count} devices ({costs.basis}); "
        f"{costs.disk_bytes / 1e9:,.1f} GB of disk"
    )
    repeated = [
        run.name for run in ladder.runs if ladder.train_tokens and run.ends[-1].tokens > MOST_EPOCHS * ladder.train_tokens
    ]
    if repeated:
        console.print(
            f"Warning: {', '.join(repeated)} repeat the data more than {MOST_EPOCHS:.0f} times and will be excluded from all "
            "fits: prepare more text, or lower the budgets",
            style="yellow",
        )
    console.print(f"SHA-256 of the plan: {ladder.sha256}")


def show_states(folder: Path, states: Sequence[RunState]) -> None:
    """Print one line a run, and how many runs are in each state."""
    table = Table(box=box.SIMPLE_HEAD, title=str(folder), title_justify="left")
    table.add_column("run", no_wrap=True)
    table.add_column("state")
    table.add_column("", overflow="fold")
    for state in states:
        table.add_row(state.run.name, state.state, state.detail)
    console = Console(width=max(_WIDTH, Console().width))
    console.print(table)
    counted = Counter(state.state for state in states)
    console.print(", ".join(f"{count} {state}" for state, count in counted.items()))


def _show_rules(console: Console, ladder: Ladder) -> None:
    recipe = ladder.recipe
    for hypothesis in recipe.hypotheses:
        console.print(hypothesis)
    equal = sum(pair.equal_parameters for pair in ladder.pairs)
    console.print(
        f"Pairs: {len(ladder.pairs)} of equal FLOPs (same size, budget and seed), {equal} of them also of equal parameters; "
        "each also at equal wall-clock time, interpolated between the arm's own budgets"
    )
    if ladder.detectable is None:
        console.print(
            "The effect that it can detect is unknown: give `assumed` (surface and noise), and 10 runs of the baseline"
        )
    else:
        console.print(
            f"It would detect a compute multiplier below {ladder.detectable:.3f} (or above {1 / ladder.detectable:.3f}) 4 "
            f"times in 5, assuming: {recipe.assumed.source if recipe.assumed else ''}"
        )
