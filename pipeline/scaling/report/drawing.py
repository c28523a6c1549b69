"""Figures as SVG: panels that are drawn one by one, so that a page can set them in as many columns as fit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE: Any = {
    **{"svg.fonttype": "none", "svg.hashsalt": "fnet-t5", "font.size": 10, "font.family": "sans-serif"},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10.5, "axes.titlelocation": "left"},
    **{"legend.frameon": False, "legend.fontsize": 9, "xtick.labelsize": 9, "ytick.labelsize": 9},
}
SMALL = 3.9, 3.0
"""Width and height in inches of a panel of which three stand side by side on a wide screen."""
WIDE = 5.2, 3.0
"""Those of a panel of which two do."""
_PIXELS = {SMALL: 390, WIDE: 605}
_HANDLE, _LETTER = 40.0, 5.6
"""Points of a legend's sample with its space, and of a letter of its text."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A panel before it is drawn."""

    paint: Callable[[Axes], None]
    alt: str
    """What it shows, for readers who do not see it."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A drawn panel: an `<svg>` element without width and height, which the page sets."""

    svg: str
    alt: str
    pixels: int
    """Its width on a screen with enough space."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Panels with a title and a caption."""

    title: str
    caption: str
    panels: tuple[Panel, ...]


def draw(plots: Sequence[Plot], size: tuple[float, float], share: str = "") -> tuple[Panel, ...]:
    """Draw panels of one size (inches). The axes named in `share`, of "xy", get the same limits in all panels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(_STYLE):
        drawn = [pyplot.subplots(figsize=size, layout="constrained") for _ in plots]
        for plot, (_, axis) in zip(plots, drawn, strict=True):
            plot.paint(axis)
        for name in share:
            _share(name, [axis for _, axis in drawn])
        for _, axis in drawn:
            _few_ticks(axis)
        panels = []
        for plot, (figure, _) in zip(plots, drawn, strict=True):
            out = StringIO()
            figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
            pyplot.close(figure)
            panels.append(Panel(svg=_bare(out.getvalue()), alt=plot.alt, pixels=_PIXELS.get(size, round(105 * size[0]))))
    return tuple(panels)


def _share(name: str, axes: Sequence[Axes]) -> None:
    """The union of the limits of an axis, in all panels."""
    limits = [getattr(axis, f"get_{name}lim")() for axis in axes]
    for axis in axes:
        getattr(axis, f"set_{name}lim")(min(low for low, _ in limits), max(high for _, high in limits))


def _bare(text: str) -> str:
    """The `<svg>` element alone, without metadata and without a size of its own."""
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    head, body = text.split(">", 1)
    return re.sub(r'\s(width|height)="[^"]*"', "", head) + ">" + body


def logarithmic(axis: Axes, *names: str) -> None:
    """Logarithmic axes with plain tick labels."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for name in names:
        getattr(axis, f"set_{name}scale")("log")
        scale = getattr(axis, f"{name}axis")
        scale.set_major_formatter(FuncFormatter(_tick))
        scale.set_minor_formatter(NullFormatter())


def _few_ticks(axis: Axes) -> None:
    """About three to seven labels on a logarithmic axis, whatever its range."""
    from matplotlib.ticker import LogLocator

    for name in "xy":
        if getattr(axis, f"get_{name}scale")() == "log":
            low, high = getattr(axis, f"get_{name}lim")()
            decades = math.log10(high / low)
            subs = (1, 2, 3, 5) if decades < 1 else (1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,)
            getattr(axis, f"{name}axis").set_major_locator(LogLocator(subs=subs))


def _tick(value: float, position: int) -> str:
    if 1 <= value < 1e4:
        return f"{value:g}"
    digits, power = f"{value:.1e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def legend_below(axis: Axes, most: int) -> None:
    """A legend under the axes, where it hides no data, in as many columns as fit, at most `most`."""
    handles, labels = axis.get_legend_handles_labels()
    widths = [_HANDLE + _LETTER * len(label) for label in labels]
    points = 72 * axis.figure.bbox.width / axis.figure.dpi
    fitting = len(labels) if sum(widths) < points else int(points / max(widths))
    axis.figure.legend(handles, labels, loc="outside lower center", ncols=max(1, min(most, fitting)))
