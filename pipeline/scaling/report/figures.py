"""The figures of a report as SVG text, readable in print and for the colour-blind.

Colours are Okabe & Ito's palette; every arm also has a marker and a dash of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.scaling.analysis import Analysis, MinimaFit, Refused, SurfaceFit
from pipeline.scaling.report.words import at_anchor
from pipeline.scaling.results import ResultSet
from pipeline.scaling.run_result import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00", "#7F7F7F")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))


@dataclass(frozen=True)
class Figure:
    """A figure with its caption."""

    title: str
    caption: str
    svg: str


class Look:
    """One colour, marker and dash an arm, the same in every figure."""

    def __init__(self, arms: Sequence[str]) -> None:
        self._number = {arm: number for number, arm in enumerate(arms)}

    def of(self, arm: str, *, marker: bool = True, dash: bool = True) -> dict[str, Any]:
        number = self._number[arm] % len(_COLOURS)
        look: dict[str, Any] = {"color": _COLOURS[number]}
        if marker:
            look |= {"marker": _MARKERS[number], "markersize": 4}
        look["linestyle"] = _DASHES[number] if dash else "none"
        return look


def figures(results: ResultSet, analysis: Analysis, withheld: str | None) -> list[Figure]:
    """All figures that the results allow; without that of the differences where statements about them are withheld."""
    look = Look([fit.arm for fit in analysis.fits])
    made = [*_loss_curves(results, look), *_isoflops(results, analysis, look), *_optima(analysis, look)]
    return [
        *made,
        *_residuals(results, analysis, look),
        *(() if withheld else _differences(analysis, look)),
        *_seconds(results, look),
    ]


def draw(width: float, height: float, columns: int, rows: int, paint: Callable[[Any], None]) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "fnet-t5", "font.size": 9, "axes.spines.top": False}
    style |= {"axes.spines.right": False, "font.family": "sans-serif", "legend.frameon": False, "axes.titlesize": 9}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")
        paint(axes)
        out = StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def _loss_curves(results: ResultSet, look: Look) -> list[Figure]:
    """One panel per objective, because their losses are not comparable."""
    with_curves = [one for one in results.results if one.curve]
    objectives = list(dict.fromkeys(one.objective for one in with_curves))
    longest: dict[tuple[str, str], RunResult] = {}
    for one in with_curves:
        place = (one.point.arm, one.point.size)
        if one.point.seed == 0 and (place not in longest or one.steps > longest[place].steps):
            longest[place] = one
    if not longest:
        return []

    sizes = list(dict.fromkeys(size for _, size in sorted(longest, key=lambda place: longest[place].point.num_parameters)))
    width = {size: 0.6 + 1.8 * (rank + 1) / len(sizes) for rank, size in enumerate(sizes)}

    def paint(axes: Any) -> None:
        for axis, objective in zip(axes[0], objectives, strict=True):
            for (arm, size), one in longest.items():
                if one.objective == objective:
                    rows = [point for point in one.curve if point.validation_loss is not None]
                    values = [point.flops for point in rows], [point.validation_loss for point in rows]
                    axis.plot(*values, **look.of(arm, marker=False), linewidth=width[size], label=f"{arm} {size}")
            logarithmic(axis, "x")
            axis.set(xlabel="training FLOPs", ylabel=f"validation loss, nats per target token, {objective}")
            axis.legend(fontsize=6, ncols=2)

    caption = (
        "Validation loss of the longest run of each arm and size, seed 0; larger models have wider lines. The drop at the end "
        "is the decay of the learning rate. Losses of different objectives are not comparable and have separate panels."
    )
    return [Figure("Loss curves", caption, draw(5.2 * len(objectives), 4.2, len(objectives), 1, paint))]


def _isoflops(results: ResultSet, analysis: Analysis, look: Look) -> list[Figure]:
    arms = [fit for fit in analysis.fits if _num_sizes(results, fit.arm) >= 3]
    if not arms:
        return []

    def paint(axes: Any) -> None:
        for axis, fit in zip(axes[0], arms, strict=True):
            points = [point for point in results.checked.points if point.arm == fit.arm]
            budgets = sorted({point.budget for point in points})
            for number, budget in enumerate(budgets):
                shade = 0.35 + 0.65 * (number + 1) / len(budgets)
                here = sorted((p for p in points if p.budget == budget), key=lambda p: p.num_parameters)
                sizes = [p.num_parameters for p in here], [p.loss for p in here]
                axis.plot(*sizes, **look.of(fit.arm, dash=False), alpha=shade, label=f"{budget:.2g} FLOPs")
                if isinstance(fit.minima, MinimaFit):
                    _parabola(axis, fit.minima, number, [p.num_parameters for p in here], look.of(fit.arm)["color"], shade)
            logarithmic(axis, "x")
            axis.set(xlabel="parameters", ylabel=_short(analysis.measure), title=fit.arm)
            axis.legend(fontsize=7)

    caption = (
        "Every run by size at each budget, the parabola through them and its minimum (cross). If there is no parabola, the fit "
        "was refused; the table of fits has the reason."
    )
    return [Figure("isoFLOP curves", caption, draw(4.6 * len(arms), 3.8, len(arms), 1, paint))]


def _parabola(axis: Axes, fit: MinimaFit, number: int, sizes: list[int], colour: str, shade: float) -> None:
    grid = np.geomspace(min(sizes), max(sizes), 60)
    away = np.log(grid / fit.sizes[number])
    axis.plot(grid, fit.losses[number] * np.exp(fit.curvatures[number] / 2 * away**2), color=colour, alpha=shade, linewidth=1)
    axis.plot([fit.sizes[number]], [fit.losses[number]], marker="x", color="black", linestyle="none", markersize=7)


def _optima(analysis: Analysis, look: Look) -> list[Figure]:
    fitted = [(fit, fit.surface) for fit in analysis.fits if isinstance(fit.surface, SurfaceFit)]
    if not fitted:
        return []

    def paint(axes: Any) -> None:
        for fit, surface in fitted:
            bands = (surface.best_size, surface.best_tokens, surface.best_loss)
            minima = fit.minima
            marks = ((), (), ()) if isinstance(minima, Refused) else (minima.sizes, minima.tokens, minima.losses)
            for axis, band, mark in zip(axes[0], bands, marks, strict=True):
                style = look.of(fit.arm, marker=False)
                axis.plot(band.flops, band.value, **style, label=fit.arm)
                axis.fill_between(band.flops, band.low, band.high, color=style["color"], alpha=0.15, linewidth=0)
                if mark and not isinstance(minima, Refused):
                    axis.plot(minima.budgets, mark, **look.of(fit.arm, dash=False))
        for axis, name in zip(axes[0], ("best parameters", "best tokens", _short(analysis.measure)), strict=True):
            logarithmic(axis, *("x" if axis is axes[0][2] else "xy"))
            axis.set(xlabel="training FLOPs", ylabel=name)
        axes[0][0].legend(fontsize=7)

    caption = (
        "Best size, tokens and loss by compute: lines and 95 % bands from the loss surface (approach 3), marks from the "
        "isoFLOP minima (approach 2). Two bands may overlap although the difference is clear: part of the noise is shared."
    )
    return [Figure("Best size, tokens and loss by compute", caption, draw(11, 3.6, 3, 1, paint))]


def _residuals(results: ResultSet, analysis: Analysis, look: Look) -> list[Figure]:
    fitted = [(fit, fit.surface) for fit in analysis.fits if isinstance(fit.surface, SurfaceFit)]
    if not fitted:
        return []
    points = {point.run: point for point in results.checked.points}

    def paint(axes: Any) -> None:
        for fit, surface in fitted:
            runs = [points[run] for run, _ in surface.residuals]
            values = [100 * value for _, value in surface.residuals]
            for axis, name in zip(axes[0], ("num_parameters", "tokens"), strict=True):
                axis.plot([getattr(run, name) for run in runs], values, **look.of(fit.arm, dash=False), label=fit.arm)
        for axis, name in zip(axes[0], ("parameters", "tokens"), strict=True):
            axis.axhline(0, color="0.6", linewidth=0.8)
            logarithmic(axis, "x")
            axis.set(xlabel=name, ylabel="measured / fitted - 1 (%)")
        axes[0][0].legend(fontsize=7)

    caption = "Residuals of the loss surfaces. A trend or a curve means that the form of the surface is wrong there."
    return [Figure("Residuals", caption, draw(8.6, 3.2, 2, 1, paint))]


def _differences(analysis: Analysis, look: Look) -> list[Figure]:
    pairs = at_anchor(analysis.pairs)
    if not pairs:
        return []

    def paint(axes: Any) -> None:
        axis = axes[0][0]
        for number, pair in enumerate(pairs):
            style = look.of(pair.arm, dash=False)
            if pair.difference is not None:
                ends = [
                    [100 * (pair.difference.value - pair.difference.low)],
                    [100 * (pair.difference.high - pair.difference.value)],
                ]
                axis.errorbar([100 * pair.difference.value], [-number], xerr=ends, capsize=3, **style)
            for budget, value, _ in pair.by_budget:
                if budget != pair.budget or pair.difference is None:
                    axis.plot([100 * value], [-number], **{**style, "alpha": 0.35})
        axis.axvline(0, color="0.6", linewidth=0.8)
        axis.set_yticks([-number for number in range(len(pairs))], [pair.arm for pair in pairs])
        axis.set_xlabel(f"difference from {analysis.baseline} at {pairs[0].size} and equal FLOPs (%); left is better")

    caption = (
        "Each arm against the baseline at one size. Whiskers: 95 % intervals from the noise floor, at the budget with the most "
        "seeds. Faint marks: the other budgets."
    )
    return [Figure("Differences at equal FLOPs", caption, draw(7.5, 0.8 + 0.38 * len(pairs), 1, 1, paint))]


def _seconds(results: ResultSet, look: Look) -> list[Figure]:
    def paint(axes: Any) -> None:
        left, right = axes[0]
        for arm in dict.fromkeys(point.arm for point in results.checked.points):
            chosen = [one for one in results.results if one.point.arm == arm and one.point.seed == 0]
            for number, size in enumerate(dict.fromkeys(one.point.size for one in chosen)):
                here = sorted((one.point for one in chosen if one.point.size == size), key=lambda point: point.seconds)
                label = arm if number == 0 else None
                left.plot([p.seconds for p in here], [p.loss for p in here], **look.of(arm), linewidth=1, label=label)
                right.plot(
                    [here[-1].num_parameters], [here[-1].tokens / here[-1].seconds], **look.of(arm, dash=False), label=label
                )
        logarithmic(left, "x")
        logarithmic(right, "x", "y")
        left.set(xlabel="seconds of training", ylabel=_short(results.measure), title="equal wall-clock")
        right.set(xlabel="parameters", ylabel="raw tokens per second", title="throughput")
        left.legend(fontsize=6)

    caption = (
        "The measure by seconds of training (a line for each size, a mark for each budget), and raw tokens per second. Seconds "
        "are those of the machine of the runs."
    )
    return [Figure("Wall-clock and throughput", caption, draw(9.6, 3.8, 2, 1, paint))]


def logarithmic(axis: Axes, *names: str) -> None:
    """Logarithmic axes with few, plain tick labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for name in names:
        getattr(axis, f"set_{name}scale")("log")
        scale = getattr(axis, f"{name}axis")
        scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
        scale.set_major_formatter(FuncFormatter(_tick))
        scale.set_minor_formatter(NullFormatter())


def _tick(value: float, position: int) -> str:
    if 1 <= value < 1e4:
        return f"{value:g}"
    digits, power = f"{value:.1e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def _num_sizes(results: ResultSet, arm: str) -> int:
    return len({point.size for point in results.checked.points if point.arm == arm})


def _short(measure: str) -> str:
    return measure.split(" of ")[0]
