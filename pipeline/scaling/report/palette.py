"""The look of an arm: a colour, a marker and a dash of its own, so that colour is never the only difference.

Seven colours are Okabe & Ito's ("Color Universal Design", 2008). Their yellow is too pale for lines on white; in its place
stands the wine red of P. Tol's "muted" scheme (SRON/EPS/TN/09-002, 2021). A test simulates colour blindness by Machado,
Oliveira & Fernandes (2009, doi:10.1109/TVCG.2009.113) and checks that all pairs stay distinct.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
_SHIFT = 3
"""By how many places the marker and the dash move on for each further round of the colours."""


class Look:
    """One colour, marker and dash an arm, the same in every figure of a report."""

    def __init__(self, arms: Sequence[str]) -> None:
        self._number = {arm: number for number, arm in enumerate(arms)}

    def of(self, arm: str, *, marker: bool = True, dash: bool = True) -> dict[str, Any]:
        """Keywords for `Axes.plot`, without marker or line if not asked for."""
        number = self._number[arm]
        shifted = number + _SHIFT * (number // len(COLOURS))
        look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)]}
        if marker:
            look |= {"marker": MARKERS[shifted % len(MARKERS)], "markersize": 5}
        look["linestyle"] = DASHES[shifted % len(DASHES)] if dash else "none"
        return look
