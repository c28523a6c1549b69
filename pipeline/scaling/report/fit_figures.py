"""The figure of the joint fit: multipliers by compute."""

from __future__ import annotations

from typing import Any

from pipeline.scaling.analysis import Analysis, Refused
from pipeline.scaling.report.figures import Figure, Look, draw, logarithmic


def joint_figures(analysis: Analysis, withheld: str | None) -> list[Figure]:
    """The multipliers with their bands; none where there is none, or where statements about the arms are withheld."""
    bands = [(one.arm, one.band) for one in analysis.comparisons if not isinstance(one.band, Refused)]
    if not bands or withheld is not None:
        return []
    look = Look([fit.arm for fit in analysis.fits])

    def paint(axes: Any) -> None:
        axis = axes[0][0]
        axis.axhline(1.0, color="0.6", linewidth=0.8)
        for arm, band in bands:
            style = look.of(arm, marker=False)
            axis.plot(band.flops, band.value, **style, linewidth=1.6, label=arm)
            axis.fill_between(band.flops, band.low, band.high, color=style["color"], alpha=0.18, linewidth=0)
        logarithmic(axis, "x")
        axis.set(xlabel=f"training FLOPs of {analysis.baseline}", ylabel=f"compute over that of {analysis.baseline}")
        axis.legend(fontsize=8)

    caption = (
        f"Compute that an arm needs for {analysis.baseline}'s loss, divided by {analysis.baseline}'s, each at its best size, "
        "from the joint fit; below the grey line the arm is cheaper. The band is the 95 % interval at each compute. A "
        "line ends where one of the two was not trained to the other's loss."
    )
    return [Figure("Multiplier by compute", caption, draw(7.2, 4.0, 1, 1, paint))]
