"""Results on disk: other settings and other rows are refused, the table holds the same, reports."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.scaling.battery.battery_page import answer, cell, listed, percent, write_battery_report
from pipeline.scaling.battery.outcomes import (
    RESULTS,
    BatteryOutcome,
    CurvePoint,
    check_outcomes,
    read_outcomes,
    rows_sha256,
    write_outcome,
    write_table,
)
from pipeline.scaling.battery.settings import BatteryRecipe, BatteryRun

D32 = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_encoder_layers": 3, "num_decoder_layers": 2}
VALUES = {
    "tasks": ("recall", "sort"),
    "lengths": (16, 24),
    "arms": ("t5", "ff_only"),
    "sizes": {"d32": {"model": D32}},
    "seeds": 2,
    "training": {"steps": 6, "rows": 4, "targets": 1, "most_rows": 8, "warmup_steps": 2, "validate_every": 3, "test_rows": 16},
    "learning_rate": 0.01,
}
RECIPE = BatteryRecipe.model_validate(VALUES)


def outcome_of(run: BatteryRun, solved: float) -> BatteryOutcome:
    return BatteryOutcome(
        settings=run.settings,
        settings_sha256=run.settings_sha256,
        rows_sha256=rows_sha256(run.make_task().rows("test", np.arange(16))),
        steps=6,
        diverged=False,
        tokens=0.5 + solved / 2,
        solved=solved,
        shuffled_tokens=0.25,
        shuffled_solved=0.0,
        num_parameters=1000,
        flops=1e9,
        seconds=3.0,
        curve=(CurvePoint(step=3, loss=1.5, tokens=0.1, solved=0.0), CurvePoint(step=6, loss=0.5, tokens=0.6, solved=solved)),
    )


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """t5 solves recall at 16 with both seeds, ff_only has one result; the rest is missing."""
    folder = tmp_path / "results"
    folder.mkdir()
    for run in RECIPE.runs():
        if (run.task, run.length) == ("recall", 16) and (run.arm == "t5" or run.seed == 0):
            solved = {"t5": 1.0 - 0.01 * run.seed, "ff_only": 0.0}[run.arm]
            write_outcome(folder, run, outcome_of(run, solved))
    return folder


def test_the_first_seed_of_every_length_comes_first() -> None:
    runs = list(RECIPE.runs())
    assert [(run.seed, run.length) for run in runs] == [
        (seed, length) for seed in (0, 1) for length in (16, 24) for _ in range(4)
    ]
    assert len({run.name for run in runs}) == len({run.settings_sha256 for run in runs}) == 16


def test_results_are_found_by_their_run(results: Path) -> None:
    assert check_outcomes(results, list(RECIPE.runs())) == {
        "recall-n16-t5-d32-seed0",
        "recall-n16-t5-d32-seed1",
        "recall-n16-ff_only-d32-seed0",
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 0.02}, "learning_rate (0.01 there, 0.02 now)"),
        ({"training": {**VALUES["training"], "steps": 7}}, "steps (6 there, 7 now)"),  # type: ignore[dict-item]
        ({"training": {**VALUES["training"], "rows": 5}}, "rows (4 there, 5 now)"),  # type: ignore[dict-item]
        ({"arms": ("fnet_t5",), "training": {**VALUES["training"], "clip": 2}}, "clip (1.0 there, 2.0 now)"),  # type: ignore[dict-item]
    ],
)
def test_results_of_other_settings_are_refused(results: Path, change: dict[str, object], said: str) -> None:
    other = BatteryRecipe.model_validate({**VALUES, **change})
    with pytest.raises(ValueError, match="was made with other settings") as caught:
        check_outcomes(results, list(other.runs()))
    assert said in str(caught.value)
    assert "give another --output" in str(caught.value)


def test_more_arms_and_seeds_go_on_from_the_same_results(results: Path) -> None:
    more = {"arms": ("t5", "ff_only", "fnet_t5"), "seeds": 3, "learning_rates": {"fnet_t5": 1}}
    assert len(check_outcomes(results, list(BatteryRecipe.model_validate({**VALUES, **more}).runs()))) == 3


def test_tasks_with_few_targets_have_more_rows() -> None:
    training = {**VALUES["training"], "rows": 32, "targets": 256, "most_rows": 128}  # type: ignore[dict-item]
    recipe = BatteryRecipe.model_validate({**VALUES, "tasks": ("copy", "periodic_gap", "nested_lists"), "training": training})
    rows = {(run.task, run.length): run.rows for run in recipe.runs()}
    assert rows == {
        ("copy", 16): 32,
        ("copy", 24): 32,
        ("periodic_gap", 16): 128,
        ("periodic_gap", 24): 86,
        ("nested_lists", 16): 128,
        ("nested_lists", 24): 128,
    }


def test_results_on_other_rows_are_refused(results: Path) -> None:
    run = next(iter(RECIPE.runs()))
    write_outcome(results, run, replace(outcome_of(run, 1.0), rows_sha256="0" * 64))
    with pytest.raises(ValueError, match="was tested on other rows"):
        check_outcomes(results, list(RECIPE.runs()))


def test_the_table_holds_the_same_results_and_a_folder_goes_on_from_it(results: Path, tmp_path: Path) -> None:
    outcomes = read_outcomes(results)
    copy = tmp_path / "copy"
    copy.mkdir()
    write_table(copy / RESULTS, outcomes)
    assert read_outcomes(copy) == outcomes
    assert len(check_outcomes(copy, list(RECIPE.runs()))) == 3


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"curve": []}', b"\xff"])
def test_a_damaged_result_is_named(results: Path, content: bytes) -> None:
    for name in ("a.json", RESULTS):
        path = results / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=name.replace(".", r"\.")) as caught:
            read_outcomes(results)
        assert "move it away" in str(caught.value)
        path.unlink()


def test_a_report_says_what_is_there(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "notes.md").write_text("## Reading\n\nBy hand.\n")
    write_battery_report(folder, RECIPE, results, command="fnet-t5 scaling battery x", machine="a machine")
    page = (folder / "README.md").read_text()
    assert "Partial: 3 of 16 runs" in page
    assert "- **recall** (tried up to 16 tokens): solved up to 16 tokens by t5." in page
    assert "**sort**" not in page
    assert "| recall | <0.1 | 99.5 (99–100) | 0, 1 of 2 |" in page
    assert "By hand." in page
    rows = list(csv.DictReader(io.StringIO((folder / "runs.csv").read_text())))
    assert {(row["arm"], row["seed"], row["solved"]) for row in rows} == {
        ("t5", "0", "1.0"),
        ("t5", "1", "0.99"),
        ("ff_only", "0", "0.0"),
    }
    assert read_outcomes(folder) == read_outcomes(results)
    ElementTree.fromstring((folder / "solved.svg").read_text())


def test_a_report_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no result of this recipe"):
        write_battery_report(tmp_path / "report", RECIPE, tmp_path, command="", machine="")


def test_the_answer_says_up_to_which_length_and_what_follows_if_no_arm_solves_a_task() -> None:
    solved = {("sort", "t5", 16): 1.0, ("sort", "t5", 24): 0.8, ("sort", "ff_only", 16): 0.99, ("sort", "ff_only", 24): 0.96}
    made = [outcome_of(run, solved.get((run.task, run.arm, run.length), 0.1)) for run in RECIPE.runs()]
    assert answer(RECIPE, made)[:2] == [
        "**recall** (tried up to 24 tokens): solved by no arm, so nothing follows for mixing (best run: t5, 10 % at 16 "
        "tokens).",
        "**sort** (tried up to 24 tokens): solved up to 24 tokens by ff_only; up to 16 tokens by t5.",
    ]
    few = [one for one in made if (one.task, one.arm) == ("recall", "ff_only")]
    assert answer(RECIPE, few)[0] == "**recall** (tried up to 24 tokens): solved by no arm. No result yet: t5."
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_shares_are_shown_in_percent() -> None:
    assert [percent(value) for value in (0, 1e-9, 0.1234, 0.99999, 1)] == ["0", "<0.1", "12.3", ">99.9", "100"]
    assert cell([], 3) == "–"
    assert cell([0.5, 0.5, 0.5], 3) == "50"
    assert cell([0.25, 0.75], 3) == "50 (25–75), 2 of 3"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tasks": ("copi",)}, "'copi' is no task of the battery: choose from recall, copy"),
        ({"arms": ("gpt2",)}, "'gpt2' is no arm of the battery: choose from t5"),
        ({"arms": ("t5", "t5")}, "names one arm twice"),
        ({"lengths": (20,)}, "20 is no length of the battery: give multiples of 8"),
        ({"learning_rates": {"t6": 0.1}}, "'t6' is no arm"),
    ],
)
def test_a_wrong_recipe_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        BatteryRecipe.model_validate({**VALUES, **change})
    assert said in str(caught.value)


def test_results_hold_no_path(results: Path) -> None:
    for path in results.glob("*.json"):
        assert str(results) not in path.read_text()
        assert json.loads(path.read_bytes())["settings"]["seed"] in (0, 1)
