"""Verdicts against scipy's t-tests, and corrected p values against all sets of hypotheses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pipeline.scaling.fit.equivalence import Effect, holm, judge, p_different, p_equivalent


def samples(shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Effect]:
    generator = np.random.default_rng(seed)
    first, second = generator.normal(0, 0.01, 8), generator.normal(shift, 0.01, 8)
    pooled = math.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 8)
    return first, second, Effect(value=float(second.mean() - first.mean()), error=pooled, dof=14)


def test_p_values_equal_scipy() -> None:
    first, second, effect = samples(0.004)
    assert p_different(effect) == pytest.approx(stats.ttest_ind(second, first).pvalue)
    margin = 0.01
    above = stats.ttest_ind(second - math.log(1.01), first, alternative="less").pvalue
    below = stats.ttest_ind(second - math.log(0.99), first, alternative="greater").pvalue
    assert p_equivalent(effect, margin) == pytest.approx(max(above, below))


@pytest.mark.parametrize(
    ("value", "margin", "verdict"),
    [
        (0.03, 0.01, "different"),
        (0.03, None, "different"),
        (0.0005, 0.01, "equivalent"),
        (0.0005, None, "undecided"),
        (0.0035, 0.01, "equivalent"),  # a difference, but smaller than the margin
        (0.0095, 0.01, "different"),
        (0.0015, 0.003, "undecided"),
    ],
)
def test_verdicts(value: float, margin: float | None, verdict: str) -> None:
    (found,) = judge([Effect(value=value, error=0.001, dof=30)], margin)
    assert found.verdict == verdict


def test_regret_can_undo_a_verdict_but_not_make_one() -> None:
    sure = Effect(value=-0.01, error=0.001, dof=30)
    assert judge([sure], None)[0].verdict == "different"
    tuned = Effect(value=-0.01, error=0.001, dof=30, up=0.009)
    assert judge([tuned], None)[0].verdict == "undecided"
    assert p_different(Effect(value=-0.01, error=0.001, dof=30, up=0.02)) == 1.0
    assert p_different(Effect(value=-0.01, error=0.001, dof=30, down=0.02)) == p_different(sure)
    near = Effect(value=0.0, error=0.001, dof=30)
    assert judge([near], 0.01)[0].verdict == "equivalent"
    assert judge([Effect(value=0.0, error=0.001, dof=30, down=0.009)], 0.01)[0].verdict == "undecided"


def test_a_family_is_corrected() -> None:
    effects = [Effect(value=value, error=0.001, dof=30) for value in (0.0025, 0.0001, 0.0002, 0.0003)]
    assert judge(effects[:1], None)[0].verdict == "different"
    found = judge(effects, None)
    assert found[0].p_different < 0.05 < found[0].corrected_different
    assert [one.verdict for one in found] == ["undecided"] * 4
    assert {one.family for one in found} == {4}


def test_holm_by_hand() -> None:
    assert [one[0] for one in holm([(0.01,), (0.04,), (0.03,), (0.005,)])] == pytest.approx([0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize("seed", range(30))
def test_corrected_values_are_those_of_closed_testing(seed: int) -> None:
    """The largest n x (smallest p) over all sets of hypotheses that can be true together and contain this one."""
    generator = np.random.default_rng(seed)
    groups = [tuple(generator.random(int(generator.integers(1, 3))) ** 3) for _ in range(int(generator.integers(1, 5)))]
    found = holm(groups)
    for number, group in enumerate(groups):
        for place, p in enumerate(group):
            worst = 0.0
            others = [[None, *other] for count, other in enumerate(groups) if count != number]
            for chosen in itertools.product(*others):
                together = [p, *(one for one in chosen if one is not None)]
                worst = max(worst, len(together) * min(together))
            assert found[number][place] == pytest.approx(min(1.0, worst))


@pytest.mark.parametrize("margin", [0.0, -0.1, 1.0])
def test_impossible_margins_are_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="margin of equivalence"):
        judge([samples(0.0)[2]], margin)
