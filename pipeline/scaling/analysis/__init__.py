"""The analysis of a set of results: all fits and comparisons, as plain numbers.

A fit that the runs do not support is refused, and the reason is a part of the result. The random draws have a fixed seed, so
the same runs give the same numbers.
"""

from pipeline.scaling.analysis.outcome import (
    Analysis,
    ArmFit,
    Band,
    Comparison,
    EnvelopeFit,
    JointSurfaces,
    MinimaFit,
    PairView,
    Refused,
    SurfaceFit,
)
from pipeline.scaling.analysis.size_pairs import CONTROLS, HYBRIDS, NO_MIXING
from pipeline.scaling.analysis.whole import AnalysisOptions, analyse

__all__ = [
    "CONTROLS",
    "HYBRIDS",
    "NO_MIXING",
    "Analysis",
    "AnalysisOptions",
    "ArmFit",
    "Band",
    "Comparison",
    "EnvelopeFit",
    "JointSurfaces",
    "MinimaFit",
    "PairView",
    "Refused",
    "SurfaceFit",
    "analyse",
]
