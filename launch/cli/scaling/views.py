"""A ladder on the terminal: its plan with the costs, and the state of its runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from models.sizes import shape_of
from pipeline.scaling.fit.intervals import Interval
from pipeline.scaling.fit.points import MOST_EPOCHS
from pipeline.scaling.ladder.arm_models import DECODER_ONLY_ARMS
from pipeline.scaling.ladder.costs import costs_of
from pipeline.scaling.ladder.ladder import Ladder
from pipeline.scaling.ladder.planned_runs import CHECK_FACTORS, PlannedRun, short_ends
from pipeline.scaling.ladder.power import predicted
from pipeline.scaling.ladder.states import RunState
from pipeline.scaling.predict import Prediction

_WIDTH = 110
"""Names of runs are not cut where the output is a file."""
_SHOWN = 3
"""Short ends in a warning."""
FEWEST_SIZES = 4
"""Sizes from which a parabola gives the best one (pipeline/scaling/fit/isoflop.py)."""


def show_plan(ladder: Ladder) -> None:
    """Print runs, cost, pairs, and the effect that the design can detect."""
    recipe = ladder.recipe
    console = Console(width=max(_WIDTH, Console().width))
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{recipe.name}: {len(ladder.runs)} runs; rows a step, and steps of the largest budget",
        title_justify="left",
    )
    table.add_column("run", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    for name in ("M param.", "rows", "steps", "FLOPs", "needed"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in ladder.runs:
        last = run.ends[-1]
        tries = {"sweep": len(run.rates), "check": len(CHECK_FACTORS), "main": 1}[run.phase]
        steps = f"{tries} x {last.steps:,}" if tries > 1 else f"{last.steps:,}"
        needed = "" if run.needed_flops_per_row is None else f"{run.needed_flops_per_row / run.flops_per_row:.1%}"
        cells = f"{run.num_parameters / 1e6:,.2f}", f"{run.rows:,}", steps, f"{run.flops:.3g}"
        table.add_row(run.name, shape_of(run.model), *cells, needed)
    console.print(table)
    console.print(
        "FLOPs are as executed. Needed is the share of them without the head where there is no loss, and without the masked "
        "half of causal attention"
    )
    _show_tokens(console, [run for run in ladder.runs if run.phase == "main" and run.seed == 0])
    _show_short(console, ladder)
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


def _show_tokens(console: Console, runs: Sequence[PlannedRun]) -> None:
    """Text that each arm reads at each end, with the text for each parameter."""
    budgets = sorted({end.budget for run in runs for end in run.ends})
    table = Table(box=box.SIMPLE_HEAD, title="M tokens (tokens a parameter), by budget in FLOPs", title_justify="left")
    table.add_column("run", no_wrap=True)
    for budget in budgets:
        table.add_column(f"{budget:.3g}", justify="right", no_wrap=True)
    for run in runs:
        shown = {end.budget: f"{end.tokens / 1e6:,.1f} ({end.tokens / run.num_parameters:,.1f})" for end in run.ends}
        table.add_row(run.name, *(shown.get(budget, "") for budget in budgets))
    console.print(table)


def _show_short(console: Console, ladder: Ladder) -> None:
    short = short_ends(ladder.runs)
    if short:
        more = f"; and {len(short) - _SHOWN} more" if len(short) > _SHOWN else ""
        reasons = "; ".join(one.reason for one in short[:_SHOWN])
        console.print(f"Too short to compare arms (schedule.allow_short): {reasons}{more}", style="yellow")
    sizes: dict[str, set[str]] = {}
    for run in ladder.runs:
        if run.phase == "main" and run.arm in DECODER_ONLY_ARMS:
            sizes.setdefault(run.arm, set()).add(run.size)
    for arm, own in sizes.items():
        if len(own) < FEWEST_SIZES:
            console.print(
                f"{arm} is trained at {len(own)} of the {FEWEST_SIZES} sizes that show its best size at a budget: it is "
                f"compared at equal sizes only, where it spends more FLOPs a token (arms.{arm}.sizes)",
                style="yellow",
            )


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


def show_predictions(measure: str, predictions: Sequence[Prediction], refused: Mapping[str, str]) -> None:
    """Print a line an arm, and what lies outside of its runs."""
    console = Console(width=max(_WIDTH, Console().width))
    table = Table(box=box.SIMPLE_HEAD, title=f"Predicted: {measure}", title_justify="left")
    for name in ("arm", "parameters", "tokens", "FLOPs", "loss"):
        table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    for one in predictions:
        places = (f"{part.value:.3g}" + _bounds(part, ".3g") for part in (one.num_parameters, one.tokens, one.flops))
        table.add_row(one.arm, *places, f"{one.loss.value:.4f}" + _bounds(one.loss, ".4f"))
    console.print(table)
    for one in predictions:
        if one.outside:
            console.print(f"{one.arm} is extrapolated: {'; '.join(one.outside)} in its runs", style="yellow")
    for arm, reason in refused.items():
        console.print(f"{arm} is not predicted: {reason}", style="yellow")


def _bounds(part: Interval, form: str) -> str:
    return "" if part.low == part.high else f" ({part.low:{form}} to {part.high:{form}})"


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
    for arm in recipe.arms:
        if recipe.assumed is not None and arm != recipe.baseline and len(recipe.sizes_of(arm)) >= FEWEST_SIZES:
            try:
                found = predicted(recipe, ladder.runs, arm)
            except ValueError as error:
                console.print(f"{arm} is expected to give no multiplier: {error}", style="yellow")
                continue
            console.print(
                f"Expected for {arm}, if its multiplier is {found.multiplier:.2f}: {found.low:.2f} to {found.high:.2f} (95 %, "
                f"median of simulated ladders with the noise and lack of fit that were measured), a half-width of "
                f"{found.half_width:.0%}"
            )
