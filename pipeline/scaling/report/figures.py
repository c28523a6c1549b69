"""The figures of losses, fits and costs. Panels that compare arms have the same axes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.scaling.analysis import Analysis, ArmFit, Band, MinimaFit, Refused, SurfaceFit
from pipeline.scaling.report.drawing import SMALL, WIDE, Figure, Plot, draw, legend_below, logarithmic
from pipeline.scaling.report.palette import MARKERS, Look
from pipeline.scaling.report.words import flops
from pipeline.scaling.results import ResultSet
from pipeline.scaling.run_result import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OTHERS: dict[str, Any] = {"color": "0.8", "linewidth": 0.9, "zorder": 0}


def figures(results: ResultSet, analysis: Analysis) -> list[Figure]:
    """All figures of losses, fits and costs that the results allow."""
    look = Look([fit.arm for fit in analysis.fits])
    return [
        *loss_curves(results, analysis.baseline, look),
        *_isoflops(results, analysis, look),
        *_optima(analysis, look),
        *_residuals(results, analysis, look),
        *_seconds(results, analysis.baseline, look),
        _throughput(results, look),
    ]


def sizes_of(results: Sequence[RunResult]) -> list[str]:
    """Names of sizes by ascending parameters."""
    return list(dict.fromkeys(one.point.size for one in sorted(results, key=lambda one: one.point.num_parameters)))


def line_width(size: str, sizes: Sequence[str]) -> float:
    """Larger models have wider lines."""
    return 0.7 + 1.8 * (sizes.index(size) + 1) / len(sizes)


def loss_curves(results: ResultSet, baseline: str, look: Look) -> list[Figure]:
    """One figure an objective, because losses of different objectives are not comparable; one panel an arm."""
    longest: dict[tuple[str, str, str], RunResult] = {}
    for one in results.results:
        place = one.objective, one.point.arm, one.point.size
        if one.curve and one.point.seed == 0 and (place not in longest or one.steps > longest[place].steps):
            longest[place] = one
    made = []
    for objective in dict.fromkeys(objective for objective, _, _ in longest):
        runs = [one for (name, _, _), one in longest.items() if name == objective]
        sizes = sizes_of(runs)
        arms = list(dict.fromkeys(one.point.arm for one in runs))
        paint = partial(_arm_losses, runs=runs, baseline=baseline, look=look, sizes=sizes)
        plots = [Plot(paint=partial(paint, arm=arm), alt=_lowest(runs, arm)) for arm in arms]
        grey = f", those of {baseline} in grey for comparison" if baseline in arms and len(arms) > 1 else ""
        caption = (
            f"Validation loss in nats per target token of {objective}, of the longest run of each size, seed 0{grey}; larger "
            "models have wider lines. All panels have the same axes. The drop at the end is the decay of the learning rate."
        )
        made.append(Figure(title=f"Loss during training, {objective}", caption=caption, panels=draw(plots, SMALL, "xy")))
    return made


def _arm_losses(axis: Axes, *, runs: Sequence[RunResult], arm: str, baseline: str, look: Look, sizes: Sequence[str]) -> None:
    for one in runs:
        found = [(point.flops, point.validation_loss) for point in one.curve if point.validation_loss is not None]
        places, losses = [place for place, _ in found], [loss for _, loss in found]
        width = line_width(one.point.size, sizes)
        if one.point.arm == arm:
            axis.plot(places, losses, **look.of(arm, marker=False), linewidth=width, label=one.point.size)
        elif one.point.arm == baseline:
            axis.plot(places, losses, **{**_OTHERS, "linewidth": width})
    logarithmic(axis, "x")
    axis.set(xlabel="training FLOPs", ylabel="validation loss, nats", title=arm)
    legend_below(axis, 5)


def _lowest(runs: Sequence[RunResult], arm: str) -> str:
    ends = [f"{one.own_loss:.3f} at {one.point.size}" for one in runs if one.point.arm == arm]
    return f"{arm}: validation loss falls with training FLOPs to {', '.join(ends)}."


def _isoflops(results: ResultSet, analysis: Analysis, look: Look) -> list[Figure]:
    arms = [fit for fit in analysis.fits if _num_sizes(results, fit.arm) >= 3]
    if not arms:
        return []
    plots = [
        Plot(
            paint=partial(_isoflop_panel, results=results, measure=short(analysis.measure), fit=fit, look=look),
            alt=f"{fit.arm}: {short(analysis.measure)} by parameters, one line for each budget.",
        )
        for fit in arms
    ]
    caption = (
        "Every run by size at each budget (darker: larger), the parabola through them and its minimum (cross). If there is no "
        "parabola, the fit was refused; the table of exponents has the reason. All panels have the same axes."
    )
    return [Figure(title="isoFLOP curves", caption=caption, panels=draw(plots, SMALL, "xy"))]


def _isoflop_panel(axis: Axes, *, results: ResultSet, measure: str, fit: ArmFit, look: Look) -> None:
    points = [point for point in results.checked.points if point.arm == fit.arm]
    budgets = sorted({point.budget for point in points})
    for number, budget in enumerate(budgets):
        shade = 0.35 + 0.65 * (number + 1) / len(budgets)
        here = sorted((p for p in points if p.budget == budget), key=lambda p: p.num_parameters)
        sizes = [p.num_parameters for p in here], [p.loss for p in here]
        style = {**look.of(fit.arm, dash=False), "marker": MARKERS[number % len(MARKERS)]}
        axis.plot(*sizes, **style, alpha=shade, label=f"{flops(budget)} FLOPs")
        if isinstance(fit.minima, MinimaFit):
            _parabola(axis, fit.minima, number, [p.num_parameters for p in here], style["color"], shade)
    logarithmic(axis, "x")
    axis.set(xlabel="parameters", ylabel=measure, title=fit.arm)
    legend_below(axis, 3)


def _parabola(axis: Axes, fit: MinimaFit, number: int, sizes: list[int], colour: str, shade: float) -> None:
    grid = np.geomspace(min(sizes), max(sizes), 60)
    away = np.log(grid / fit.sizes[number])
    axis.plot(grid, fit.losses[number] * np.exp(fit.curvatures[number] / 2 * away**2), color=colour, alpha=shade, linewidth=1)
    axis.plot([fit.sizes[number]], [fit.losses[number]], marker="x", color="black", linestyle="none", markersize=7)


def _optima(analysis: Analysis, look: Look) -> list[Figure]:
    fitted = [(fit, fit.surface) for fit in analysis.fits if isinstance(fit.surface, SurfaceFit)]
    if not fitted:
        return []
    names = "best parameters", "best tokens", short(analysis.measure)

    def paint(axis: Axes, which: int) -> None:
        for fit, surface in fitted:
            band: Band = (surface.best_size, surface.best_tokens, surface.best_loss)[which]
            style = look.of(fit.arm, marker=False)
            axis.plot(band.flops, band.value, **style, label=fit.arm)
            axis.fill_between(band.flops, band.low, band.high, color=style["color"], alpha=0.15, linewidth=0)
            if not isinstance(fit.minima, Refused):
                marks = (fit.minima.sizes, fit.minima.tokens, fit.minima.losses)[which]
                axis.plot(fit.minima.budgets, marks, **look.of(fit.arm, dash=False))
        logarithmic(axis, *("x" if which == 2 else "xy"))
        axis.set(xlabel="training FLOPs", ylabel=names[which])
        legend_below(axis, 2)

    plots = [Plot(paint=partial(paint, which=which), alt=f"{name} by training FLOPs.") for which, name in enumerate(names)]
    caption = (
        "Best size, tokens and loss by compute: lines and 95 % bands from the loss surface (approach 3), marks from the "
        "isoFLOP minima (approach 2). Two bands may overlap although the difference is clear: part of the noise is shared."
    )
    return [Figure(title="Best size, tokens and loss by compute", caption=caption, panels=draw(plots, SMALL, "x"))]


def _residuals(results: ResultSet, analysis: Analysis, look: Look) -> list[Figure]:
    fitted = [(fit, fit.surface) for fit in analysis.fits if isinstance(fit.surface, SurfaceFit)]
    if not fitted:
        return []
    points = {point.run: point for point in results.checked.points}

    def paint(axis: Axes, name: str, label: str) -> None:
        for fit, surface in fitted:
            runs = [points[run] for run, _ in surface.residuals]
            values = [100 * value for _, value in surface.residuals]
            axis.plot([getattr(run, name) for run in runs], values, **look.of(fit.arm, dash=False), label=fit.arm)
        axis.axhline(0, color="0.6", linewidth=0.8)
        logarithmic(axis, "x")
        axis.set(xlabel=label, ylabel="measured / fitted - 1 (%)")
        legend_below(axis, 3)

    largest = max(abs(value) for _, surface in fitted for _, value in surface.residuals)
    plots = [
        Plot(paint=partial(paint, name=name, label=label), alt=f"Residuals by {label}, up to {100 * largest:.1f} %.")
        for name, label in (("num_parameters", "parameters"), ("tokens", "raw tokens"))
    ]
    caption = "Residuals of the loss surfaces. A trend or a curve means that the form of the surface is wrong there."
    return [Figure(title="Residuals", caption=caption, panels=draw(plots, WIDE, "y"))]


def _seconds(results: ResultSet, baseline: str, look: Look) -> list[Figure]:
    arms = list(dict.fromkeys(point.arm for point in results.checked.points))
    paint = partial(_arm_seconds, results=results, baseline=baseline, look=look)
    name = short(results.measure)
    plots = [Plot(paint=partial(paint, arm=arm), alt=f"{arm}: {name} by seconds of training.") for arm in arms]
    grey = f", those of {baseline} in grey for comparison" if len(arms) > 1 else ""
    caption = (
        f"The measure by seconds of training: a line for each size, a mark for each budget, seed 0{grey}; larger models have "
        "wider lines. All panels have the same axes. Seconds are those of the machine of the runs."
    )
    return [Figure(title="Loss by wall-clock time", caption=caption, panels=draw(plots, SMALL, "xy"))]


def _arm_seconds(axis: Axes, *, results: ResultSet, arm: str, baseline: str, look: Look) -> None:
    chosen = [one for one in results.results if one.point.seed == 0]
    sizes = sizes_of(chosen)
    for name in dict.fromkeys((baseline, arm)):
        for size in sizes:
            here = [one.point for one in chosen if (one.point.arm, one.point.size) == (name, size)]
            here.sort(key=lambda point: point.seconds)
            style = look.of(arm) if name == arm else _OTHERS
            values = [point.seconds for point in here], [point.loss for point in here]
            axis.plot(*values, **{**style, "linewidth": line_width(size, sizes)})
    logarithmic(axis, "x")
    axis.set(xlabel="seconds of training", ylabel=short(results.measure), title=arm)


def _throughput(results: ResultSet, look: Look) -> Figure:
    def paint(axis: Axes) -> None:
        for arm in dict.fromkeys(one.point.arm for one in results.results):
            points = [one.point for one in results.results if one.point.arm == arm and one.point.seed == 0]
            by_size = {size: [p for p in points if p.size == size] for size in dict.fromkeys(p.size for p in points)}
            longest = [max(group, key=lambda p: p.seconds) for group in by_size.values()]
            speeds = [point.tokens / point.seconds for point in longest]
            axis.plot([point.num_parameters for point in longest], speeds, **look.of(arm, dash=False), label=arm)
        logarithmic(axis, "x", "y")
        axis.set(xlabel="parameters", ylabel="raw tokens per second")
        legend_below(axis, 3)

    caption = "Raw tokens per second of the longest run of each arm and size, seed 0, on the machine of the runs."
    plot = Plot(paint=paint, alt="Raw tokens per second by parameters; the table of throughput has the values.")
    return Figure(title="Throughput", caption=caption, panels=draw([plot], (WIDE[0], 3.6)))


def _num_sizes(results: ResultSet, arm: str) -> int:
    return len({point.size for point in results.checked.points if point.arm == arm})


def short(measure: str) -> str:
    """A measure without its rows and text."""
    return measure.split(" of ")[0]
