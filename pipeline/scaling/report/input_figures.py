"""Figures of the checks of a report's beginning, and of what shuffling the input costs: at the end, and during training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.scaling.curves import TIMES_NOISE, threshold
from pipeline.scaling.fit.points import Point
from pipeline.scaling.input_checks import CONTROLS, REFERENCE, InputChecks, seed_noise
from pipeline.scaling.report.drawing import SMALL, WIDE, Figure, Plot, draw, legend_below, logarithmic
from pipeline.scaling.report.figures import line_width, short, sizes_of
from pipeline.scaling.report.input_tables import longest_runs
from pipeline.scaling.report.palette import MARKERS, Look
from pipeline.scaling.results import ResultSet
from pipeline.scaling.run_result import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = {True: "holds", False: "does not hold", None: "not measured"}
"""What a check found, in words."""
_MEASURED: dict[str, Any] = {"marker": "o", "markersize": 6, "color": "#0072B2"}
_NEEDED: dict[str, Any] = {"marker": "_", "markersize": 18, "markeredgewidth": 2.5, "color": "#D55E00", "linestyle": "none"}


def check_figure(results: ResultSet, checks: InputChecks) -> Figure | None:
    """The checks of T5 as panels, what was measured and what is needed; None if nothing was measured."""
    noise = seed_noise(results.checked.points)
    top = _at_largest_budgets(results)
    order = [
        (one.point.size, one.shuffle_cost, TIMES_NOISE * noise * one.text_loss)
        for one in top
        if one.shuffle_cost is not None and one.text_loss is not None and noise is not None
    ]
    floors = [
        (one.point.size, one.text_loss, one.measurements.floors.trigram_loss)
        for one in top
        if one.text_loss is not None and one.measurements is not None and one.measurements.floors is not None
    ]
    sizes = sizes_of(top)
    titles = [
        f"{number} {name}: {RESULTS[check.holds]}"
        for number, (name, check) in enumerate(zip(("Order", "Trigram floor", "Mixing"), checks.all, strict=True), 1)
    ]
    cost = ("cost of shuffling", f"needed: above {TIMES_NOISE:g} x the noise", "nats per text token")
    floor = ("loss of T5", "needed: below the trigram floor", "nats per text token")
    control, shared = _control(results)
    plots = [
        Plot(paint=partial(_against, title=titles[0], values=order, labels=cost, sizes=sizes), alt=checks.order.sentence),
        Plot(paint=partial(_against, title=titles[1], values=floors, labels=floor, sizes=sizes), alt=checks.floor.sentence),
        Plot(
            paint=partial(_at_equal_text, title=titles[2], results=results, control=control, sizes=shared),
            alt=checks.control.sentence,
        ),
    ]
    known = [bool(order), bool(floors), bool(shared)]
    drawn = [plot for plot, is_known in zip(plots, known, strict=True) if is_known]
    if not drawn:
        return None
    missing = [title for title, is_known in zip(titles, known, strict=True) if not is_known]
    caption = (
        "What a statement about mixing needs, for T5 at the largest budget of each size: 1, shuffling its input must cost more "
        f"than {TIMES_NOISE:g} x the noise between seeds; 2, its loss must be below that of counted trigrams; 3, at equal text "
        f"it must be ahead of the encoder without mixing by {TIMES_NOISE:g} x the noise."
    )
    if missing:
        caption += f" Without data and so not drawn: {'; '.join(missing)}."
    return Figure(title="The three checks", caption=caption, panels=draw(drawn, SMALL if len(drawn) > 1 else WIDE))


def _at_largest_budgets(results: ResultSet) -> list[RunResult]:
    """T5's results at the largest budget of each size: the checks read these."""
    own = [one for one in results.results if one.point.arm == REFERENCE]
    largest = {size: max(one.point.budget for one in own if one.point.size == size) for size in sizes_of(own)}
    return [one for one in own if one.point.budget == largest[one.point.size]]


def _against(
    axis: Axes, *, title: str, values: Sequence[tuple[str, float, float]], labels: tuple[str, str, str], sizes: Sequence[str]
) -> None:
    """Measured values beside what is needed, by size, means over seeds."""
    shown = [size for size in sizes if any(name == size for name, _, _ in values)]
    means = [np.mean([(value, needed) for name, value, needed in values if name == size], axis=0) for size in shown]
    places = range(len(shown))
    axis.plot(places, [value for value, _ in means], linestyle="none", label=labels[0], **_MEASURED)
    axis.plot(places, [needed for _, needed in means], label=labels[1], **_NEEDED)
    axis.set_xticks(places, shown)
    axis.margins(x=0.2, y=0.2)
    axis.set(title=title, ylabel=labels[2], xlabel="size")
    legend_below(axis, 1)


def _control(results: ResultSet) -> tuple[str, list[str]]:
    """The encoder without mixing, and the sizes at which both it and T5 were trained."""
    arms = {one.point.arm for one in results.results}
    control = next((arm for arm in CONTROLS if arm in arms), CONTROLS[0])
    trained = [{one.point.size for one in results.results if one.point.arm == arm} for arm in (REFERENCE, control)]
    return control, [size for size in sizes_of(results.results) if size in trained[0] & trained[1]]


def _at_equal_text(axis: Axes, *, title: str, results: ResultSet, control: str, sizes: Sequence[str]) -> None:
    """Losses of T5 and of the control by text."""
    looks = ((REFERENCE, _MEASURED, "-"), (control, {**_MEASURED, "marker": "s", "color": "#D55E00"}, "--"))
    for number, size in enumerate(sizes):
        for arm, look, dash in looks:
            here = [one.point for one in results.results if (one.point.arm, one.point.size) == (arm, size)]
            label = arm if number == 0 else None
            axis.plot(*_by_text(here), **look, linestyle=dash, linewidth=line_width(size, sizes), label=label)
    logarithmic(axis, "x")
    axis.set(title=title, xlabel=f"raw tokens, at {', '.join(sizes)}", ylabel=short(results.measure))
    legend_below(axis, 1)


def _by_text(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Tokens and mean losses of the budgets."""
    budgets = sorted({point.budget for point in points})
    groups = [[point for point in points if point.budget == budget] for budget in budgets]
    return [group[0].tokens for group in groups], [float(np.mean([point.loss for point in group])) for group in groups]


def input_figures(results: ResultSet) -> list[Figure]:
    """What shuffling the input costs, by arm; none where it was not measured."""
    look = Look(list(dict.fromkeys(one.point.arm for one in results.results)))
    return [*_at_the_end(results, look), *_in_training(results, look)]


def _at_the_end(results: ResultSet, look: Look) -> list[Figure]:
    known = [(one, one.shuffle_cost, one.text_loss) for one in longest_runs(results)]
    runs = [(one, cost, loss) for one, cost, loss in known if cost is not None and loss is not None]
    if not runs:
        return []
    noise = seed_noise(results.checked.points)
    arms = list(dict.fromkeys(one.point.arm for one, _, _ in runs))
    sizes = sizes_of([one for one, _, _ in runs])

    def paint(axis: Axes) -> None:
        for one, cost, loss in runs:
            number = sizes.index(one.point.size)
            place = -arms.index(one.point.arm) - 0.14 * (number - (len(sizes) - 1) / 2)
            style = {**look.of(one.point.arm, dash=False), "marker": MARKERS[number % len(MARKERS)]}
            axis.plot([cost], [place], **style)
            axis.plot([threshold(loss, noise)], [place], marker="|", color="0.45", markersize=7)
        for number, size in enumerate(sizes):
            axis.plot([], [], marker=MARKERS[number % len(MARKERS)], color="0.3", linestyle="none", label=size)
        axis.plot([], [], marker="|", color="0.45", linestyle="none", label="threshold")
        axis.set_yticks([-number for number in range(len(arms))], arms)
        axis.set_ylim(0.7 - len(arms), 0.7)
        axis.set_xlabel("nats per text token")
        legend_below(axis, 5)

    costs = [f"{arm} {', '.join(f'{cost:+.3f}' for one, cost, _ in runs if one.point.arm == arm)}" for arm in arms]
    caption = (
        "What shuffling the encoder's text costs at the end of training: a mark for each seed of an arm and size, at the "
        "largest budget. A model left of its threshold does not read the order of its input."
    )
    plot = Plot(paint=paint, alt=f"Cost of shuffling the input, in nats per text token: {'; '.join(costs)}.")
    panels = draw([plot], (WIDE[0], 1.3 + 0.4 * len(arms)))
    return [Figure(title="What order is worth at the end, by arm", caption=caption, panels=panels)]


def _in_training(results: ResultSet, look: Look) -> list[Figure]:
    """By compute and by text, a panel an arm."""
    runs = [one for one in longest_runs(results) if any(point.shuffle_cost is not None for point in one.curve)]
    if not runs:
        return []
    noise = seed_noise(results.checked.points)
    sizes = sizes_of(runs)
    arms = list(dict.fromkeys(one.point.arm for one in runs))
    made = []
    for name, label, title in (
        ("flops", "training FLOPs", "When order is read, by compute"),
        ("raw_tokens", "raw tokens", "When order is read, by text"),
    ):
        paint = partial(_arm_order, runs=runs, look=look, sizes=sizes, noise=noise, place=name, label=label)
        plots = [Plot(paint=partial(paint, arm=arm), alt=_last_costs(runs, arm)) for arm in arms]
        caption = (
            "What shuffling the encoder's text costs during training, a line for each size and seed; larger models have wider "
            "lines. From the grey line on a run is said to read order. A run that stays at 0 reads a bag of words. All panels "
            "have the same axes."
        )
        made.append(Figure(title=title, caption=caption, panels=draw(plots, SMALL, "xy")))
    return made


def _arm_order(
    axis: Axes,
    *,
    runs: Sequence[RunResult],
    look: Look,
    sizes: Sequence[str],
    noise: float | None,
    place: str,
    label: str,
    arm: str,
) -> None:
    named: set[str] = set()
    for one in (one for one in runs if one.point.arm == arm):
        found = [(getattr(point, place), cost) for point in one.curve if (cost := point.shuffle_cost) is not None]
        size = one.point.size
        style = {**look.of(arm, marker=False), "linewidth": line_width(size, sizes), "label": None if size in named else size}
        named.add(size)
        axis.plot([at for at, _ in found], [cost for _, cost in found], **style)
    losses = [point.text_loss for one in runs for point in one.curve[-1:] if point.text_loss is not None]
    if losses:
        axis.axhline(threshold(max(losses), noise), color="0.45", linewidth=0.9)
    logarithmic(axis, "x")
    axis.set(xlabel=label, ylabel="nats per text token", title=arm)
    legend_below(axis, 5)


def _last_costs(runs: Sequence[RunResult], arm: str) -> str:
    ends = [
        f"{costs[-1]:+.3f} at {one.point.size}, seed {one.point.seed}"
        for one in runs
        if one.point.arm == arm and (costs := [point.shuffle_cost for point in one.curve if point.shuffle_cost is not None])
    ]
    return f"{arm}: the cost of shuffling ends at {', '.join(ends)} nats per text token."
