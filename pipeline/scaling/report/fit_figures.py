"""The figures of comparisons: multipliers by compute from the joint fit, and differences at one size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from pipeline.scaling.analysis import HYBRIDS, Analysis, PairView, Refused
from pipeline.scaling.fit.joint.by_compute import MultiplierBand
from pipeline.scaling.report.drawing import SMALL, WIDE, Figure, Plot, draw, legend_below, logarithmic
from pipeline.scaling.report.palette import Look
from pipeline.scaling.report.words import at_anchor, flops, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BANDS = 3
"""Bands of more arms hide each other: the others' are drawn in panels of their own."""

_Bands = Sequence[tuple[str, MultiplierBand]]


def comparison_figure(analysis: Analysis) -> Figure | None:
    """Multipliers by compute beside the differences at one size; None if there is neither.

    Not for results whose statements are withheld.
    """
    look = Look([fit.arm for fit in analysis.fits])
    bands, pairs = _bands(analysis), at_anchor(analysis.pairs)
    plots = []
    if bands:
        paint = partial(_band_panel, bands=bands, analysis=analysis, look=look, title="Compute for the same loss")
        plots.append(Plot(paint=paint, alt=_of_bands(bands)))
    if pairs:
        paint = partial(_pair_panel, pairs=pairs, analysis=analysis, look=look)
        plots.append(Plot(paint=paint, alt=_of_pairs(pairs)))
    if not plots:
        return None
    base = analysis.baseline
    parts = []
    if bands:
        parts.append(_band_caption(analysis))
        if len(bands) > _BANDS:
            parts.append(f"Bands of {', '.join(arm for arm, _ in bands[_BANDS:])}: in a figure below.")
    if pairs:
        parts.append(
            f"Difference: of the measure from {base}'s at {pairs[0].size} and equal FLOPs; whiskers are 95 % intervals from "
            "the noise between seeds, at the budget with the most seeds; faint marks are the other budgets."
        )
    title = "Multiplier by compute, and differences at equal FLOPs" if bands and pairs else "Multiplier by compute"
    panels = draw(plots, WIDE)
    return Figure(title=title if bands else "Differences at equal FLOPs", caption=" ".join(parts), panels=panels)


def multiplier_figures(analysis: Analysis) -> list[Figure]:
    """The multiplier by compute with a panel an arm, where the first figure has not all bands."""
    look, bands = Look([fit.arm for fit in analysis.fits]), _bands(analysis)
    if len(bands) <= _BANDS:
        return []
    paint = partial(_band_panel, analysis=analysis, look=look)
    plots = [Plot(paint=partial(paint, bands=[one], title=one[0]), alt=_of_bands([one])) for one in bands]
    caption = f"{_band_caption(analysis)} All panels have the same axes."
    return [Figure(title="Multiplier by compute, by arm", caption=caption, panels=draw(plots, SMALL, "xy"))]


def _bands(analysis: Analysis) -> list[tuple[str, MultiplierBand]]:
    """The arms that have a multiplier by compute, the hybrids first."""
    found = [(one.arm, one.band) for one in analysis.comparisons if not isinstance(one.band, Refused)]
    return sorted(found, key=lambda entry: entry[0] not in HYBRIDS)


def _band_caption(analysis: Analysis) -> str:
    base = analysis.baseline
    return (
        f"Multiplier: compute that an arm needs for {base}'s loss, divided by {base}'s, each at its best size, from the joint "
        "fit; the band is the 95 % interval at each compute. A line ends where one of the two was not trained to the other's "
        "loss."
    )


def _band_panel(axis: Axes, *, bands: _Bands, analysis: Analysis, look: Look, title: str) -> None:
    base = analysis.baseline
    axis.axhline(1.0, color="0.45", linewidth=0.9)
    for arm, band in bands:
        axis.plot(band.flops, band.value, **look.of(arm, marker=False), linewidth=2, label=arm)
    for arm, band in bands[:_BANDS]:
        style = look.of(arm, marker=False)
        axis.fill_between(band.flops, band.low, band.high, color=style["color"], alpha=0.18, linewidth=0)
    lowest = min(1.0, *(float(band.low.min()) for _, band in bands))
    highest = max(1.0, *(float(band.high.max()) for _, band in bands))
    room = 0.08 * (highest - lowest)
    axis.set_ylim(lowest - room, highest + 1.5 * room)
    axis.annotate(
        f"1: as much compute as {base}", (0.01, 1.0), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
        color="0.35", fontsize=9,
    )  # fmt: skip
    logarithmic(axis, "x")
    axis.set(xlabel=f"training FLOPs of {base}", ylabel=f"compute / compute of {base}", title=title)
    if title not in [arm for arm, _ in bands]:
        legend_below(axis, 3)


def _of_bands(bands: _Bands) -> str:
    def at(band: MultiplierBand, place: int) -> str:
        interval = f"{band.low[place]:.2f} to {band.high[place]:.2f}"
        return f"{band.value[place]:.2f} ({interval}) at {flops(band.flops[place])} FLOPs"

    found = [f"{arm} {at(band, 0)}, {at(band, -1)}" for arm, band in bands]
    return f"Compute multiplier by compute, with 95 % intervals: {'; '.join(found)}."


def _pair_panel(axis: Axes, *, pairs: Sequence[PairView], analysis: Analysis, look: Look) -> None:
    for number, pair in enumerate(pairs):
        style = look.of(pair.arm, dash=False)
        if pair.difference is not None:
            found = pair.difference
            ends = [[100 * (found.value - found.low)], [100 * (found.high - found.value)]]
            axis.errorbar([100 * found.value], [-number], xerr=ends, capsize=3, **style)
        for budget, value, _ in pair.by_budget:
            if budget != pair.budget or pair.difference is None:
                axis.plot([100 * value], [-number], **{**style, "alpha": 0.35})
    axis.axvline(0, color="0.45", linewidth=0.9)
    axis.set_ylim(0.6 - len(pairs), 0.6)
    axis.set_yticks([-number for number in range(len(pairs))], [pair.arm for pair in pairs])
    axis.set_xlabel(f"loss relative to {analysis.baseline}'s (%); left is better")
    axis.set_title(f"Loss at {pairs[0].size} and equal FLOPs")


def _of_pairs(pairs: Sequence[PairView]) -> str:
    if not pairs:
        return ""
    listed = "; ".join(f"{pair.arm} {percent(pair.difference)}" for pair in pairs)
    return f"Difference of the loss at {pairs[0].size} and equal FLOPs, with 95 % intervals: {listed}."
