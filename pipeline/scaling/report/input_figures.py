"""Figures of a report on when each run begins to read the order of its input."""

from __future__ import annotations

from typing import Any

from pipeline.scaling.curves import threshold
from pipeline.scaling.input_checks import seed_noise
from pipeline.scaling.report.figures import Figure, Look, draw, logarithmic
from pipeline.scaling.report.input_tables import longest_runs
from pipeline.scaling.results import ResultSet


def input_figures(results: ResultSet) -> list[Figure]:
    """The shuffle cost of every run by FLOPs and by text; none where it was not logged."""
    runs = [one for one in longest_runs(results) if any(point.shuffle_cost is not None for point in one.curve)]
    if not runs:
        return []
    look = Look(list(dict.fromkeys(one.point.arm for one in results.results)))
    noise = seed_noise(results.checked.points)
    sizes = list(dict.fromkeys(one.point.size for one in sorted(runs, key=lambda one: one.point.num_parameters)))
    axes_names = (("flops", "training FLOPs"), ("raw_tokens", "raw tokens"))

    def paint(axes: Any) -> None:
        for row, size in zip(axes, sizes, strict=True):
            here = [one for one in runs if one.point.size == size]
            for axis, (name, label) in zip(row, axes_names, strict=True):
                named: set[str] = set()
                for one in here:
                    points = [point for point in one.curve if point.shuffle_cost is not None]
                    style = look.of(one.point.arm, marker=False)
                    shown = None if one.point.arm in named else one.point.arm
                    named.add(one.point.arm)
                    places = [getattr(point, name) for point in points]
                    axis.plot(places, [point.shuffle_cost for point in points], **style, linewidth=1.2, label=shown)
                losses = [point.text_loss for one in here for point in one.curve[-1:] if point.text_loss is not None]
                if losses:
                    axis.axhline(threshold(max(losses), noise), color="0.6", linewidth=0.8)
                logarithmic(axis, "x")
                axis.set(xlabel=label, title=size)
            row[0].set_ylabel("nats per text token")
            row[0].legend(fontsize=7)

    caption = (
        "What shuffling the encoder's text costs during training, a line for each seed of an arm; the grey line is the "
        "threshold from which on a run is said to read order. Left by compute, right by text. A run that stays at 0 reads a "
        "bag of words."
    )
    drawing = draw(9.6, 3.4 * len(sizes), 2, len(sizes), paint)
    return [Figure("When order is read", caption, drawing)]
