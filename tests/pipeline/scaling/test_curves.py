"""When a run begins to read order: curves whose crossing is known."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.scaling.curves import LEAST_SHUFFLE_COST, Jump, ValidationPoint, jump_of, threshold


def curve(costs: list[float | None], flops: list[float] | None = None) -> tuple[ValidationPoint, ...]:
    spent = flops or [1e12 * (number + 1) for number in range(len(costs))]
    return tuple(
        ValidationPoint(
            step=100 * (number + 1),
            flops=at,
            raw_tokens=2 * at,
            target_tokens=at,
            seconds=1.0,
            validation_loss=3.0,
            text_loss=None if cost is None else 3.0,
            shuffled_text_loss=None if cost is None else 3.0 + cost,
        )
        for number, (cost, at) in enumerate(zip(costs, spent, strict=True))
    )


def test_the_crossing_of_a_straight_line_is_found_exactly() -> None:
    """cost = 0.1 (FLOPs / 1e12 - 2), so 0.02 at 2.2e12, between the validations."""
    found = jump_of(curve([0.1 * (at - 2) for at in range(1, 9)]), 0.02)
    assert found is not None
    assert found.flops == pytest.approx(2.2e12)
    assert found.raw_tokens == pytest.approx(4.4e12)
    assert found.step == pytest.approx(220)
    assert not found.is_at_first


def test_a_run_that_falls_back_has_not_begun() -> None:
    """From when on it stays there: the first crossing does not count."""
    found = jump_of(curve([0.0, 0.5, 0.01, 0.5, 0.6]), 0.02)
    assert found is not None
    assert 3e12 < found.flops < 4e12
    assert jump_of(curve([0.0, 0.5, 0.6, 0.019]), 0.02) is None


def test_the_ends_of_a_curve() -> None:
    assert jump_of(curve([0.0, 0.001, 0.0]), 0.02) is None
    assert jump_of(curve([None, None]), 0.02) is None
    assert jump_of((), 0.02) is None
    assert jump_of(curve([0.3, 0.4]), 0.02) == Jump(step=100, flops=1e12, raw_tokens=2e12, is_at_first=True)
    found = jump_of(curve([None, 0.0, None, 0.04]), 0.02)  # validations without the probe are not read
    assert found is not None
    assert found.flops == pytest.approx(3e12)


def test_jumps_of_a_known_sigmoid_are_found_within_a_validation() -> None:
    at = np.linspace(1e12, 2e13, 39)
    cost = 1.2 / (1 + np.exp(-(at - 9e12) / 4e11))
    exact = 9e12 - 4e11 * np.log(1.2 / 0.05 - 1)
    found = jump_of(curve(cost.tolist(), at.tolist()), 0.05)
    assert found is not None
    assert abs(found.flops - exact) < (at[1] - at[0]) / 2


def test_the_threshold_is_the_larger_of_two() -> None:
    assert threshold(3.0, None) == threshold(3.0, 0.001) == LEAST_SHUFFLE_COST
    assert threshold(3.0, 0.01) == pytest.approx(0.09)
