"""Extensions of a plan: they add runs, are recorded with the plan that they extend, and change nothing that was planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.scaling.ladder_recipes import extended_recipe
from pipeline.scaling.ladder.archive import archive
from pipeline.scaling.ladder.extend import extend
from pipeline.scaling.ladder.ladder import Ladder, make_ladder, read_ladder, stored_sha256, write_extension, write_ladder
from pipeline.scaling.ladder.recipe import LadderRecipe

STACKS = {"num_encoder_layers": 3, "num_decoder_layers": 2, "d_kv": 16, "d_ff": 64}


def values(**changes: Any) -> dict[str, Any]:
    return {
        "name": "test",
        "data": {"path": "absent", "encoder_length": 16, "decoder_length": 8},
        "vocab_size": 500,
        "train_tokens": 1e6,
        "objectives": ["prefix_lm"],
        "sizes": {"s": {"micro_batch_size": 4, "model": {"d_model": 32, "num_heads": 2, **STACKS}}},
        "arms": {"t5": {}, "fnet_t5": {}},
        "budgets": [4e9, 8e9],
        "learning_rate": {"values": [0.001, 0.002, 0.004], "sizes": ["s"], "budget": 2e9},
        "batch": {"tokens": 96, "exponent": 0},
        "schedule": {"warmup": 0.1, "allow_short": True},
        "device": {"flops_per_second": 1e9},
        **changes,
    }


def recipe(**changes: Any) -> LadderRecipe:
    return LadderRecipe.model_validate(values(**changes))


@pytest.fixture
def planned() -> Ladder:
    return make_ladder(recipe())


def names(ladder: Ladder) -> list[str]:
    return [run.name for run in ladder.extensions[-1].runs]


def test_an_arm_a_size_and_seeds_are_added(planned: Ladder) -> None:
    arm = extend(planned, recipe(arms={"t5": {}, "fnet_t5": {}, "ff_only": {}}))
    assert names(arm) == ["sweep-ff_only-s", "ff_only-s-seed0", "check-ff_only-s"]
    assert arm.runs[: len(planned.runs)] == planned.runs
    assert {pair.arm for pair in arm.extensions[-1].pairs} == {"ff_only"}
    seeds = extend(arm, recipe(arms={"t5": {}, "fnet_t5": {}, "ff_only": {}}, seeds={"size": "s", "count": 2, "arms": ["t5"]}))
    assert names(seeds) == ["t5-s-seed1"]
    sizes = {**values()["sizes"], "m": {"micro_batch_size": 4, "model": {"d_model": 64, "num_heads": 4, **STACKS}}}
    # an arm that was swept keeps its sweeps: another optimum would change the rate of runs that were trained
    assert names(extend(planned, recipe(sizes=sizes, learning_rate=values()["learning_rate"]))) == [
        "t5-m-seed0",
        "fnet_t5-m-seed0",
    ]


def test_keys_of_the_command_line_are_merged_into_the_ladders_recipe(planned: Ladder, tmp_path: Path) -> None:
    merged = extended_recipe(planned, None, ["arms.ff_only={}", "seeds={size: s, count: 2, arms: [t5]}"])
    assert merged == recipe(arms={"t5": {}, "fnet_t5": {}, "ff_only": {}}, seeds={"size": "s", "count": 2, "arms": ["t5"]})
    write_ladder(planned, tmp_path / "ladder")
    assert extended_recipe(read_ladder(tmp_path / "ladder"), None, ["budgets=[4e9, 8e9, 1.6e10]"]).budgets[-1] == 1.6e10
    elsewhere = {**values()["data"], "path": "elsewhere"}
    assert extend(planned, recipe(data=elsewhere, budgets=[4e9, 8e9, 1.6e10])).recipe.data.path == planned.recipe.data.path


def test_a_budget_is_added_as_a_run_of_its_own(planned: Ladder) -> None:
    more = extend(planned, recipe(budgets=[4e9, 8e9, 1.6e10]))
    assert names(more) == ["t5-s-seed0+1", "fnet_t5-s-seed0+1"]
    run = more.run("t5-s-seed0+1")
    assert [(end.label, end.budget) for end in run.ends] == [("b3", 1.6e10)]
    assert run.warmup_steps == planned.run("t5-s-seed0").warmup_steps
    assert [pair.budget for pair in more.extensions[-1].pairs] == [1.6e10]
    most = extend(more, recipe(budgets=[2e9, 4e9, 8e9, 1.6e10]))
    assert names(most) == ["t5-s-seed0+2", "fnet_t5-s-seed0+2"]
    assert [end.label for end in most.run("t5-s-seed0+2").ends] == ["b4"]
    assert len({name for run in most.runs for _, name in run.folders()}) == sum(len(run.ends) for run in most.runs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"precision": "fp32"}}, "changes train:"),
        ({"schedule": {"warmup": 0.2, "allow_short": True}}, "changes schedule:"),
        ({"sizes": {"s": {"model": {"d_model": 48, "num_heads": 3, **STACKS}}}}, "changes sizes.s:"),
        ({"arms": {"t5": {}}}, "changes arms.fnet_t5:"),
        ({"budgets": [4e9]}, "removes t5-s-seed0 or a budget of it"),
        ({"hypotheses": ["H1"]}, "adds no run"),
    ],
)
def test_what_was_planned_cannot_be_changed(planned: Ladder, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extend(planned, recipe(**changes))


def test_extensions_are_stored_in_a_chain_of_hashes(planned: Ladder, tmp_path: Path) -> None:
    folder = tmp_path / "ladder"
    path = write_ladder(planned, folder)
    first = stored_sha256(folder)
    archive(folder, tmp_path / "archive", 10**6)
    once = extend(read_ladder(folder), recipe(arms={"t5": {}, "fnet_t5": {}, "ff_only": {}}))
    write_extension(folder, once)
    second = read_ladder(folder)
    assert second == once
    assert second.extensions[0].previous_sha256 == first
    twice = extend(second, recipe(arms={"t5": {}, "fnet_t5": {}, "ff_only": {}}, budgets=[4e9, 8e9, 1.6e10]))
    write_extension(folder, twice)
    assert read_ladder(folder).extensions[1].previous_sha256 == second.sha256
    assert read_ladder(folder).runs == twice.runs
    archive(folder, tmp_path / "archive", 10**6)
    assert (tmp_path / "archive" / "ladder.json").read_bytes() == path.read_bytes()
    assert write_ladder(planned, folder) == path  # the plan is there, extended
    refuses_changes(folder)


def test_an_absolute_path_of_the_data_is_not_published(tmp_path: Path) -> None:
    """The plan keeps its hash, can be extended, and is still one that nobody changed."""
    data = {**values()["data"], "path": str(tmp_path / "some" / "text")}
    planned = make_ladder(recipe(data=data))
    write_ladder(planned, tmp_path / "ladder")
    archive(tmp_path / "ladder", tmp_path / "archive", 10**6)
    text = (tmp_path / "archive" / "ladder.json").read_text()
    assert str(tmp_path) not in text
    archived = read_ladder(tmp_path / "archive")
    assert archived.sha256 == planned.sha256
    assert str(archived.data_path) == "text"
    assert archived.runs == planned.runs
    archive(tmp_path / "archive", tmp_path / "second", 10**6)
    assert (tmp_path / "second" / "ladder.json").read_text() == text
    write_extension(tmp_path / "second", extend(archived, recipe(budgets=[4e9, 8e9, 1.6e10])))
    assert read_ladder(tmp_path / "second").extensions[0].previous_sha256 == planned.sha256
    archive(tmp_path / "second", tmp_path / "archive", 10**6)
    assert len(read_ladder(tmp_path / "archive").extensions) == 1
    archive(tmp_path / "ladder", tmp_path / "archive", 10**6)  # the plan before the extension: the archive keeps its own
    assert len(read_ladder(tmp_path / "archive").extensions) == 1
    refuses_changes(tmp_path / "archive")


def refuses_changes(folder: Path) -> None:
    path = folder / "ladder.json"
    stored = json.loads(path.read_bytes())
    stored["extensions"][0]["recipe"]["hypotheses"] = ["found afterwards"]
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="was changed after it was planned"):
        read_ladder(folder)
