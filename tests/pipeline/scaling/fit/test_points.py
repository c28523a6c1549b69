"""Which runs are used in a fit, and the reasons reported for the others."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from pipeline.scaling.fit.points import Excluded, check_runs


def test_valid_runs_are_kept_in_order(attention: Any, fourier: Any) -> None:
    points = attention.ladder("t5") + fourier.ladder("fnet_t5")
    ladder = check_runs(points)
    assert list(ladder.points) == points
    assert ladder.excluded == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"problem": "its status is failed, at step 3 of 9: resume it first"}, "its status is failed"),
        ({"loss": math.nan}, "diverged: its loss is nan"),
        ({"loss": math.inf}, "diverged: its loss is inf"),
        ({"flops": 0.0}, "its flops is 0.0"),
        ({"epochs": 4.1}, "repeats its data 4.1 times"),
        ({"epochs": math.nan}, "repeats its data nan times"),
    ],
)
def test_an_invalid_run_is_excluded_with_its_reason(attention: Any, change: Any, reason: str) -> None:
    points = attention.ladder("t5")
    ladder = check_runs([replace(points[0], **change), *points[1:]])
    assert list(ladder.points) == points[1:]
    assert [run.run for run in ladder.excluded] == ["t5/0"]
    assert ladder.excluded[0].reason.startswith(reason)


def test_four_passes_over_the_data_are_allowed(attention: Any) -> None:
    points = [replace(point, epochs=4.0) for point in attention.ladder("t5")]
    assert len(check_runs(points).points) == len(points)


def test_runs_without_results_are_listed(attention: Any) -> None:
    gone = Excluded("t5/gone", "missing file: metrics.jsonl")
    assert check_runs([gone, *attention.ladder("t5")]).excluded == (gone,)


def test_a_copied_run_counts_once(attention: Any) -> None:
    points = attention.ladder("t5")
    ladder = check_runs([*points, replace(points[3], run="elsewhere")])
    assert list(ladder.points) == points
    assert ladder.excluded == (Excluded("elsewhere", "a copy of t5/3"),)


def test_a_copy_of_an_excluded_run_is_excluded(attention: Any) -> None:
    point = replace(attention.ladder("t5")[0], epochs=9.0)
    assert check_runs([point, replace(point, run="elsewhere")]).points == ()


def test_two_results_for_one_run_of_the_design_are_refused(attention: Any) -> None:
    points = attention.ladder("t5")
    with pytest.raises(ValueError, match=r"t5/3 and elsewhere are both arm t5.* leave one out"):
        check_runs([*points, replace(points[3], run="elsewhere", loss=points[3].loss + 0.01)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "two"}, r"mixed tokenizers .*one in t5/0; two in fnet_t5/0.* --tokenizer"),
        ({"data": "two"}, r"mixed training data .*: train all runs on one data folder"),
        (
            {"measure": "bits per byte"},
            r"mixed measures of loss .*bits per byte in fnet_t5/0.*: compare one objective at a time",
        ),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(attention: Any, fourier: Any, change: Any, message: str) -> None:
    others = [replace(point, **change) for point in fourier.ladder("fnet_t5")]
    with pytest.raises(ValueError, match=message):
        check_runs(attention.ladder("t5") + others)


def test_excluded_runs_are_not_checked_for_mixed_data(attention: Any) -> None:
    points = attention.ladder("t5")
    ladder = check_runs([replace(points[0], tokenizer="two", loss=math.nan), *points[1:]])
    assert len(ladder.excluded) == 1
