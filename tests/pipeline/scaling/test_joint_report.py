"""The joint fit in a report: its numbers in fits.json, its tables on the page, and what the plan and the runs tell it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.scaling.report import make_report
from pipeline.scaling.analysis import Analysis, AnalysisOptions, Refused, analyse
from pipeline.scaling.report.fit_tables import joint_tables
from pipeline.scaling.results import ResultSet, collect
from tests.helpers.ladders import MULTIPLIER

DRAWS = 50


@pytest.fixture(scope="module")
def results(ladder_folder: Path) -> ResultSet:
    return collect([ladder_folder]).sets[0]


@pytest.fixture(scope="module")
def analysis(results: ResultSet) -> Analysis:
    return analyse(results, "t5", AnalysisOptions(margin=0.02), DRAWS)


def test_the_band_is_near_the_true_multiplier_at_every_compute(analysis: Analysis) -> None:
    (one,) = (one for one in analysis.comparisons if one.arm == "fnet_t5")
    assert not isinstance(one.band, Refused)
    assert not isinstance(one.multiplier, Refused)
    assert one.band.value == pytest.approx(MULTIPLIER, rel=0.02)
    assert one.multiplier.low < MULTIPLIER < one.multiplier.high
    assert (one.band.low < one.band.value).all()
    assert (one.band.high / one.band.low < 1.35).all()
    assert one.multiplier == one.band.at_largest
    assert one.flops == one.band.flops[-1]
    assert {part.arm for part in one.band.not_covered} == {"t5", "fnet_t5"}
    assert [part.size for part in one.without_size] == ["d32", "d64", "d96", "d144"]


def test_arms_with_one_size_are_not_fitted(analysis: Analysis) -> None:
    assert not isinstance(analysis.joint, Refused)
    assert analysis.joint.arms == ("t5", "fnet_t5")
    assert {arm: reason.split(":")[0] for arm, reason in analysis.joint.not_fitted} == dict.fromkeys(
        ("ff_only", "ff_only_positions", "gpt2"), "3 runs of 1 sizes"
    )
    gpt2 = next(one for one in analysis.comparisons if one.arm == "gpt2")
    assert isinstance(gpt2.band, Refused)
    assert "3 runs of 1 sizes" in gpt2.band.reason
    assert gpt2.test is None


def test_all_differences_are_one_family(analysis: Analysis, results: ResultSet) -> None:
    tested = [one.test for one in (*analysis.comparisons, *analysis.pairs, *analysis.controls) if one.test is not None]
    assert {test.family for test in tested} == {len(tested)}
    # 4 pairs of the hybrid, 3 other arms, 2 controls, and the joint fit's comparison
    assert len(tested) == 10
    verdicts = {pair.arm: pair.test.verdict for pair in analysis.pairs if pair.size == "d64" and pair.test is not None}
    assert verdicts["ff_only"] == "different"
    without = analyse(results, "t5", AnalysisOptions(), DRAWS)
    assert without.margin is None
    assert all(pair.test is not None and pair.test.p_equivalent is None for pair in without.pairs)


def test_equal_arms_are_equivalent_within_the_margin(results: ResultSet) -> None:
    """The hybrid against itself under another name, with noise."""
    points = results.checked.points
    own = [point for point in points if point.arm == "t5"]
    copies = [replace(point, arm="copy", run=f"copy of {point.run}", loss=point.loss * 1.0005) for point in own]
    both = replace(results, checked=replace(results.checked, points=(*own, *copies)))
    found = analyse(both, "t5", AnalysisOptions(margin=0.03), DRAWS)
    assert {pair.test.verdict for pair in found.pairs if pair.test is not None} == {"equivalent"}
    assert found.comparisons[0].test is not None
    assert found.comparisons[0].test.verdict == "equivalent"


def test_results_that_are_left_out_are_read_by_no_fit(results: ResultSet, analysis: Analysis) -> None:
    small = [point.run for point in results.checked.points if point.size == "d32" and point.arm in ("t5", "fnet_t5")]
    reason = "before it reads order: shuffling costs 0.0001 nats, less than 0.01"
    options = AnalysisOptions(left_out={**dict.fromkeys(small, reason), "elsewhere": reason})
    found = analyse(results, "t5", options, DRAWS)
    assert found.left_out == tuple((run, reason) for run in small)
    assert not isinstance(found.joint, Refused)
    assert not isinstance(analysis.joint, Refused)
    assert found.joint.num_runs == analysis.joint.num_runs - len(small)
    assert {one.arm: one.num_runs for one in found.fits}["t5"] == {one.arm: one.num_runs for one in analysis.fits}["t5"] - 3
    assert [pair.by_budget for pair in found.pairs] == [pair.by_budget for pair in analysis.pairs]
    (table,) = (table for table in joint_tables(found, None) if table.title == "Joint fit")
    assert "6 results (6 before it reads order) are left out of all fits." in table.note


def test_a_ladder_that_is_left_out_entirely_has_no_multiplier(results: ResultSet) -> None:
    every = {point.run: "before it reads order" for point in results.checked.points}
    found = analyse(results, "t5", AnalysisOptions(left_out=every), DRAWS)
    assert isinstance(found.joint, Refused)
    assert "the baseline t5 has no runs" in found.joint.reason
    assert found.comparisons == ()
    assert found.pairs


def test_regret_widens_the_band_and_the_pairs(results: ResultSet, analysis: Analysis) -> None:
    regrets = {point.run: 0.01 for point in results.checked.points if point.arm == "fnet_t5"}
    found = analyse(results, "t5", AnalysisOptions(margin=0.02, regrets=regrets), DRAWS)
    wide, plain = (next(one for one in part.comparisons if one.arm == "fnet_t5").band for part in (found, analysis))
    assert not isinstance(wide, Refused)
    assert not isinstance(plain, Refused)
    assert wide.value == pytest.approx(plain.value)
    assert wide.high == pytest.approx(plain.high)
    assert (wide.low < 0.97 * plain.low).all()
    for ours, before in zip(found.pairs, analysis.pairs, strict=True):
        assert ours.difference is not None
        assert before.difference is not None
        lower = (1 + ours.difference.low) / (1 + before.difference.low)
        assert lower == pytest.approx(1 / 1.01 if ours.arm == "fnet_t5" else 1.0)
    assert len(found.regrets) == len(regrets)


def test_the_page_shows_the_joint_fit(ladder_folder: Path, tmp_path: Path) -> None:
    make_report([ladder_folder], tmp_path, None, None, "")
    fits = json.loads((tmp_path / "fits.json").read_bytes())[0]
    band: dict[str, Any] = next(one for one in fits["comparisons"] if one["arm"] == "fnet_t5")["band"]
    assert len(band["flops"]) == len(band["low"]) == 17
    assert fits["joint"]["shared"]
    assert fits["joint"]["tests"][0]["dof"] == [3, 13]
    markdown = (tmp_path / "report.md").read_text()
    for title in ("Multiplier by compute: fnet_t5 over t5", "Multiplier without each size", "What the joint fit leaves"):
        assert title in markdown
    # the results of ff_only, which cannot read order
    assert "3 results (3 before it reads order) are left out of all fits." in markdown


def test_withheld_statements_are_not_in_the_tables(analysis: Analysis) -> None:
    shown = list(joint_tables(analysis, "T5 does not use the order of its input"))
    assert not any(table.title.startswith(("Multiplier by compute: ", "Different")) for table in shown)
    assert "is withheld, because T5 does not use the order of its input" in shown[0].note
    assert not shown[0].rows
