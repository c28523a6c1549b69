"""The figure of the battery: the share of rows solved by length, one panel a task, one line an arm.

Arms look as in reports of ladders. All panels have the same axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from statistics import mean
from typing import Any

from pipeline.scaling.battery.outcomes import BatteryOutcome
from pipeline.scaling.battery.settings import BatteryRecipe
from pipeline.scaling.report.palette import Look

_COLUMNS = 3


def solved_figure(outcomes: Sequence[BatteryOutcome], recipe: BatteryRecipe) -> str:
    """SVG of the first size. Points are means over seeds, whiskers reach from the smallest to the largest seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = next(iter(recipe.sizes))
    shown = [one for one in outcomes if one.size == size]
    rows = -(-len(recipe.tasks) // _COLUMNS)
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "fnet-t5", "font.size": 9, "axes.spines.top": False}
    style |= {"axes.spines.right": False, "font.family": "sans-serif", "legend.frameon": False, "axes.titlesize": 9}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(
            rows, _COLUMNS, figsize=(9.6, 0.7 + 2.4 * rows), squeeze=False, sharex=True, sharey=True, layout="constrained"
        )
        for number, axis in enumerate(axes.flat):
            if number >= len(recipe.tasks):
                axis.set_visible(False)
                continue
            _panel(axis, [one for one in shown if one.task == recipe.tasks[number]], recipe)
            axis.set_title(recipe.tasks[number])
        figure.supxlabel("encoder tokens")
        figure.supylabel(f"rows solved (%), {size}")
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
        out = StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def _panel(axis: Any, outcomes: Sequence[BatteryOutcome], recipe: BatteryRecipe) -> None:
    look = Look(recipe.arms)
    for number, arm in enumerate(recipe.arms):
        points = [
            (place + 0.05 * (number - len(recipe.arms) / 2), [100 * one.solved for one in here])  # side by side
            for place, length in enumerate(recipe.lengths)
            if (here := [one for one in outcomes if (one.arm, one.length) == (arm, length)])
        ]
        middles = [mean(values) for _, values in points]
        whiskers = [[m - min(v) for m, (_, v) in zip(middles, points, strict=True)],
                    [max(v) - m for m, (_, v) in zip(middles, points, strict=True)]]  # fmt: skip
        axis.errorbar(
            [place for place, _ in points],
            middles,
            yerr=whiskers,
            **look.of(arm),
            linewidth=1.2,
            capsize=2,
            label=arm,
        )
    axis.set_ylim(-4, 104)
    axis.set_xticks(range(len(recipe.lengths)), [str(length) for length in recipe.lengths])
