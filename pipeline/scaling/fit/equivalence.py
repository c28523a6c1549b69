"""Are two arms different, equivalent, or is it undecided? A family of such questions, corrected for its size.

*Different*: the hypothesis of no difference is refused (two-sided t). *Equivalent*: both hypotheses that the difference is as
large as the margin, in one or the other direction, are refused (two one-sided tests: D. Schuirmann 1987,
doi:10.1007/BF01068419; D. Lakens 2017, doi:10.1177/1948550617697177). A result that refuses neither is undecided. One that
refuses both is a difference smaller than the margin, which counts as equivalent.

With many pairs some would be refused by chance. Holm's method (S. Holm 1979, Scand. J. Stat. 6) bounds the probability of one
or more wrong verdicts in the family by 5 %: it refuses a hypothesis if it refuses every set of hypotheses that contains it, a
set of n at the smallest p < 5 % / n. For one pair "no difference" and "as large as the margin" cannot both be true, so sets
with both need no refusal (J. Shaffer 1986, doi:10.1080/01621459.1986.10478341): a pair counts once, not twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

LEVEL = 0.05
DIFFERENT, EQUIVALENT, UNDECIDED = "different", "equivalent", "undecided"


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A difference of log loss between two arms, with its standard error."""

    value: float
    error: float
    dof: float
    down: float = 0.0
    """How much lower the difference would be with the best learning rates, at most (`joint/regret.py`)."""
    up: float = 0.0
    """How much higher, at most."""


@dataclass(frozen=True, kw_only=True)
class EffectTest:
    """The verdict on one effect of a family."""

    p_different: float
    """Of no difference, not corrected."""
    p_equivalent: float | None
    """Of a difference as large as the margin, not corrected; None without a margin."""
    corrected_different: float
    corrected_equivalent: float | None
    family: int
    """Number of effects that were tested together."""

    @property
    def verdict(self) -> str:
        """By the corrected values."""
        if self.corrected_equivalent is not None and self.corrected_equivalent < LEVEL:
            return EQUIVALENT
        return DIFFERENT if self.corrected_different < LEVEL else UNDECIDED


def judge(effects: Sequence[Effect], margin: float | None) -> list[EffectTest]:
    """Test effects together. `margin` is the relative difference of losses up to which two arms count as equivalent.

    Raises ValueError for a margin that is not between 0 and 1.
    """
    if margin is not None and not 0 < margin < 1:
        raise ValueError(f"the margin of equivalence is {margin}: give a relative difference of losses between 0 and 1")
    different = [p_different(one) for one in effects]
    equivalent = [None if margin is None else p_equivalent(one, margin) for one in effects]
    pairs = [(one,) if other is None else (one, other) for one, other in zip(different, equivalent, strict=True)]
    corrected = holm(pairs)
    return [
        EffectTest(
            p_different=pair[0],
            p_equivalent=other,
            corrected_different=found[0],
            corrected_equivalent=None if other is None else found[1],
            family=len(effects),
        )
        for pair, other, found in zip(pairs, equivalent, corrected, strict=True)
    ]


def p_different(effect: Effect) -> float:
    """Two-sided p of no difference, the largest over the shifts that are possible."""
    low, high = effect.value - effect.down, effect.value + effect.up
    if low <= 0 <= high:
        return 1.0
    return float(2 * stats.t.sf(min(abs(low), abs(high)) / effect.error, effect.dof))


def p_equivalent(effect: Effect, margin: float) -> float:
    """p of a difference as large as the margin: the larger of the two one-sided ones."""
    above = stats.t.cdf((effect.value + effect.up - math.log1p(margin)) / effect.error, effect.dof)
    below = stats.t.sf((effect.value - effect.down - math.log1p(-margin)) / effect.error, effect.dof)
    return float(max(above, below))


def holm(groups: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    """Corrected p values of hypotheses, of which at most one of each group can be true. Groups of one: Holm's method."""
    corrected = []
    for number, group in enumerate(groups):
        # The hardest set of n hypotheses has the largest p of each other group.
        others = sorted((max(other) for place, other in enumerate(groups) if place != number), reverse=True)
        corrected.append(tuple(_corrected(p, others) for p in group))
    return corrected


def _corrected(p: float, others: Sequence[float]) -> float:
    """The largest n x (smallest p) over sets of p with the n - 1 largest of the others (descending)."""
    sets = [p, *((count + 1) * min(p, others[count - 1]) for count in range(1, len(others) + 1))]
    return min(1.0, max(sets))
