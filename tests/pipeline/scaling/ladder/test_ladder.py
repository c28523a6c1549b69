"""Planning of ladders: budgets spent to the step, arms matched as specified, and a plan file with a checksum."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.files import canonical_json, sha256_bytes
from launch.config import load_config
from launch.recipes import packaged_recipes
from models.architectures.build import build_model
from models.architectures.pieces import TextInputs
from models.config import ModelConfig
from models.cost.flops import Lengths
from models.layers.initialization import initialize
from pipeline.optim.lr_schedule import learning_rate
from pipeline.scaling.ladder.arm_models import arm_model
from pipeline.scaling.ladder.costs import costs_of
from pipeline.scaling.ladder.ladder import (
    EQUAL_PARAMETERS,
    Ladder,
    make_ladder,
    read_ladder,
    stored_sha256,
    write_ladder,
)
from pipeline.scaling.ladder.learning_rates import next_rate, power_law, rate_for, vertex
from pipeline.scaling.ladder.recipe import LadderRecipe, SweepConfig
from pipeline.scaling.ladder.run_configs import run_config
from pipeline.scaling.results import _arm_of
from tests.helpers.datasets import write_dataset

MakeLadder = Callable[..., Ladder]


def size(d_model: int) -> dict[str, Any]:
    stacks = {"num_encoder_layers": 3, "num_decoder_layers": 2, "tie_embeddings": False}
    return {"micro_batch_size": 4, "model": {"d_model": d_model, "d_ff": 64, "d_kv": 16, "num_heads": d_model // 16, **stacks}}


def recipe(data: Path, **changes: Any) -> LadderRecipe:
    everywhere = ("t5", "fnet_t5")
    once = ("fnet_t5_equal_parameters", "fnet_t5_equal_flops", "fnet_t5_top2", "ff_only", "gpt2", "prefix_decoder")
    values = {
        "name": "test",
        "data": {"path": str(data), "encoder_length": 16, "decoder_length": 8},
        "objectives": ["prefix_lm"],
        "sizes": {"s": size(32), "m": size(64)},
        "arms": {**{arm: {} for arm in everywhere}, **{arm: {"sizes": ["m"]} for arm in once}},
        "budgets": [4e9, 8e9],
        "learning_rate": {"values": [0.001, 0.002, 0.004], "sizes": ["s", "m"], "budget": 2e9},
        "seeds": {"size": "m", "count": 3, "arms": ["t5", "fnet_t5"]},
        "batch": {"tokens": 96, "exponent": 0},
        "device": {"flops_per_second": 1e9},
        **changes,
    }
    return LadderRecipe.model_validate(values)


@pytest.fixture
def make(tmp_path: Path) -> MakeLadder:
    data = tmp_path / "data"
    write_dataset(data, [list(range(300))] * 40, row_lengths=(24,))
    return lambda **changes: make_ladder(recipe(data, **changes))


def test_every_run_spends_its_budget_within_one_step(make: MakeLadder) -> None:
    ladder = make()
    for run in ladder.runs:
        budgets = [2e9] if run.phase == "sweep" else [4e9, 8e9][: len(run.ends)]
        for end, budget in zip(run.ends, budgets, strict=True):
            step = run.rows * run.flops_per_row
            assert abs(end.flops - budget) <= step / 2
            assert end.steps == round(end.flops / step)
            assert end.tokens == end.steps * run.rows * 24
            assert 0 < run.warmup_steps < end.decay_begin < end.steps


def test_arms_are_matched_by_parameters_and_matrix_products(make: MakeLadder) -> None:
    runs = {run.arm: run for run in make().runs if run.phase == "main" and run.size == "m" and run.seed == 0}

    def parameters(arm: str) -> int:
        with torch.device("meta"):
            return sum(weight.numel() for weight in build_model(ModelConfig(**runs[arm].model)).parameters())

    assert all(parameters(arm) == runs[arm].num_parameters for arm in runs)
    assert parameters("fnet_t5") < parameters("t5")
    half_a_step = 3 * 64 * 64 * 3 / 2  # gated feed-forwards in 3 layers of width 64, with inner widths in steps of 64
    assert abs(parameters("fnet_t5_equal_parameters") - parameters("t5")) <= half_a_step
    assert parameters("ff_only") == parameters("fnet_t5")
    assert runs["fnet_t5_equal_flops"].flops_per_row == pytest.approx(runs["t5"].flops_per_row, rel=0.1)
    assert runs["fnet_t5"].flops_per_row < runs["fnet_t5_top2"].flops_per_row < runs["t5"].flops_per_row
    assert ModelConfig(**runs["fnet_t5_top2"].model).num_attention_layers == 2
    for arm in ("gpt2", "prefix_decoder"):
        one_layer_more = parameters("t5") / 5  # no other depth is closer
        assert abs(parameters(arm) - parameters("t5")) < one_layer_more


POSITIONS = {
    "fnet_t5_positions": "fnet_t5",
    "fnet_t5_top2_positions": "fnet_t5_top2",
    "ff_only_positions": "ff_only",
    "t5_positions": "t5",
}


def test_arms_with_positions_differ_from_their_arm_in_one_table() -> None:
    three_layers = {"size": "nano", "num_encoder_layers": 3}  # top2 needs one without attention

    def shapes(arm: str) -> dict[str, tuple[int, ...]]:
        with torch.device("meta"):
            model = build_model(arm_model(arm, three_layers, 300, Lengths(27, 5)))
        return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}

    for arm, plain in POSITIONS.items():
        assert shapes(arm) == {**shapes(plain), "encoder.input.positions.weight": (27, 64)}
    assert shapes("t5_no_positions") == {k: v for k, v in shapes("t5").items() if k != "relative_bias.encoder"}
    causal, prefix = shapes("causal"), shapes("prefix_decoder")
    assert causal == prefix
    assert not any("cross" in name or name.startswith("encoder") for name in causal)


def test_causal_reads_nothing_to_the_right_and_is_refused_where_its_block_would_differ() -> None:
    config = arm_model("causal", {"size": "nano"}, 300, Lengths(16, 8))
    model = build_model(config).eval()
    initialize(model, seed=0)
    ids = torch.randint(3, 300, (1, 24))
    changed = ids.clone()
    changed[:, 15] = 2
    logits, other = (model(TextInputs(one, torch.ones_like(one))) for one in (ids, changed))
    assert torch.equal(logits[:, :15], other[:, :15])
    assert not torch.allclose(logits[:, 15:], other[:, 15:])
    with pytest.raises(ValueError, match=r"this T5's heads are 384 wide.*leave the size out"):
        arm_model("causal", {"size": "t5-v1.1-small"}, 300, Lengths(16, 8))


def test_learnt_positions_in_place_of_a_bias_are_arms_of_their_own(make: MakeLadder) -> None:
    arms = ("t5_learned_only", "fnet_t5_top2_learned_only")
    ladder = make(arms={"t5": {}, **{arm: {"sizes": ["m"]} for arm in arms}}, seeds=None)
    for run in ladder.runs:
        if run.phase == "main" and run.arm in arms:
            names = build_model(ModelConfig(**run.model)).state_dict().keys()
            assert "encoder.input.positions.weight" in names
            assert [name for name in names if name.startswith("relative_bias")] == ["relative_bias.decoder"]
            assert _arm_of(run.model) == run.arm


def test_a_fixed_learning_rate_replaces_the_sweeps(make: MakeLadder, tmp_path: Path) -> None:
    ladder = make(learning_rate=None, fixed_learning_rate=0.003)
    assert {run.phase for run in ladder.runs} == {"main"}
    assert {rate_for(tmp_path, ladder, run) for run in ladder.runs} == {0.003}
    write_ladder(ladder, tmp_path / "ladder")
    assert read_ladder(tmp_path / "ladder").sha256 == ladder.sha256
    assert "fixed_learning_rate" not in make().content["recipe"]
    for both in ({"fixed_learning_rate": 0.003}, {"learning_rate": None}):
        with pytest.raises(ValueError, match="give learning_rate, the sweeps of every arm, or fixed_learning_rate"):
            make(**both)


def test_arms_with_positions_are_planned_and_other_plans_keep_their_checksum(make: MakeLadder) -> None:
    arms = {arm: {"sizes": ["m"]} for arm in (*POSITIONS, "t5_no_positions", "causal")}
    ladder = make(arms={"t5": {}, "fnet_t5": {}, **arms}, objectives=["prefix_lm", "span_corruption"])
    runs = {run.arm: run for run in ladder.runs if run.phase == "main" and run.size == "m" and run.objective == 0}
    for arm in arms:
        model = ModelConfig(**runs[arm].model)
        with torch.device("meta"):
            assert sum(weight.numel() for weight in build_model(model).parameters()) == runs[arm].num_parameters
        config = run_config(ladder, runs[arm], runs[arm].ends[-1], 0.003, None)
        if arm != "causal":
            assert config.model.encoder_positions == ("none" if arm == "t5_no_positions" else "learned")
            assert _arm_of(json.loads(config.model_dump_json())["model"]) == arm
    for arm, plain in (("fnet_t5_positions", "fnet_t5"), ("t5_positions", "t5"), ("t5_no_positions", "t5")):
        assert runs[arm].flops_per_row == runs[plain].flops_per_row
    assert ladder.objective_of(runs["causal"]).name == "causal_lm"
    assert _arm_of(runs["causal"].model) == "causal"
    assert {run.arm for run in ladder.runs if run.objective == 1} == {"t5", "fnet_t5", *arms} - {"causal"}
    assert "encoder_positions" not in runs["t5"].model
    assert "encoder_positions" not in runs["causal"].model


def test_a_plateau_is_counted_once(make: MakeLadder) -> None:
    run = next(run for run in make().runs if run.phase == "main")
    small, large = run.ends
    decay = (small.steps - small.decay_begin) * run.rows * run.flops_per_row
    assert run.flops == pytest.approx(large.flops + decay)
    assert small.decay_begin < large.decay_begin
    assert costs_of(make()).flops == pytest.approx(sum(run.flops for run in make().runs))


def test_a_branch_has_the_main_runs_rates_until_its_decay(make: MakeLadder) -> None:
    ladder = make()
    run = next(run for run in ladder.runs if run.phase == "main")
    branch, main_run = (run_config(ladder, run, end, 0.003, None) for end in run.ends)
    leaves = run.ends[0].decay_begin
    assert leaves in main_run.train.checkpoint_steps
    rates = [
        [learning_rate(step, config.train.steps, config.optimizer) for step in range(1, leaves + 2)]
        for config in (branch, main_run)
    ]
    assert rates[0][:-1] == rates[1][:-1]
    assert rates[0][-1] < rates[1][-1]
    assert branch.train.seed == main_run.train.seed
    assert branch.train.global_batch_size == main_run.train.global_batch_size


def test_gpt2_trains_on_the_text_of_prefix_lm_as_one_sequence(make: MakeLadder) -> None:
    ladder = make()
    objectives = {run.arm: ladder.objective_of(run).name for run in ladder.runs}
    assert objectives["gpt2"] == "causal_lm"
    assert {name for arm, name in objectives.items() if arm != "gpt2"} == {"prefix_lm"}


def test_pairs_have_equal_size_budget_and_seed(make: MakeLadder) -> None:
    ladder = make()
    main = {(run.arm, run.size, run.seed): run for run in ladder.runs if run.phase == "main"}
    assert {pair.seed for pair in ladder.pairs if pair.arm == "fnet_t5" and pair.size == "m"} == {0, 1, 2}
    assert all(pair.arm != "t5" for pair in ladder.pairs)
    for pair in ladder.pairs:
        ratio = main[pair.arm, pair.size, pair.seed].num_parameters / main["t5", pair.size, pair.seed].num_parameters
        assert pair.equal_parameters == (abs(ratio - 1) <= EQUAL_PARAMETERS)


def test_a_plan_is_written_once_and_read_back_unchanged(make: MakeLadder, tmp_path: Path) -> None:
    ladder, folder = make(), tmp_path / "ladder"
    path = write_ladder(ladder, folder)
    assert read_ladder(folder) == ladder
    before = path.read_bytes()
    write_ladder(make(), folder)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="another ladder"):
        write_ladder(make(budgets=[4e9, 9e9]), folder)


def test_a_modified_plan_is_refused(make: MakeLadder, tmp_path: Path) -> None:
    path = write_ladder(make(), tmp_path / "ladder")
    values = json.loads(path.read_bytes())
    values["recipe"]["hypotheses"] = ["found afterwards"]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="was changed after it was planned"):
        read_ladder(tmp_path / "ladder")


def test_recipes_and_plans_with_the_earlier_key_are_read(make: MakeLadder, tmp_path: Path) -> None:
    """`yardstick` was renamed to `suffix_bpb`. The checksum of a stored plan covers its bytes with the earlier key."""
    now, folder = make(suffix_bpb={"rows_per_source": 7}), tmp_path / "ladder"
    assert make(yardstick={"rows_per_source": 7}) == now
    with pytest.raises(ValueError, match="earlier name of suffix_bpb"):
        make(yardstick={"rows_per_source": 7}, suffix_bpb={"rows_per_source": 7})
    path = write_ladder(now, folder)
    values = json.loads(path.read_bytes())
    values["recipe"]["yardstick"] = values["recipe"].pop("suffix_bpb")
    planned = {key: value for key, value in values.items() if key not in ("sha256", "planned_at")}
    values["sha256"] = sha256_bytes(canonical_json(planned))
    path.write_text(json.dumps(values))
    assert read_ladder(folder) == now
    assert stored_sha256(folder) == values["sha256"] != now.sha256
    before = path.read_bytes()
    write_ladder(now, folder)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"t5": {}, "fnet": {}}}, r"arms \['fnet'\] are unknown"),
        ({"arms": {"fnet_t5": {}}}, "baseline 't5' is none of the arms"),
        ({"arms": {"t5": {"sizes": ["l"]}}}, "arms.t5.sizes names 'l'"),
        ({"budgets": [8e9, 4e9]}, "are not in ascending order"),
        ({"budgets": [1e7]}, "raise the budget"),
        ({"learning_rate": {"values": [1e-3, 2e-3], "sizes": ["s", "m"], "budget": 1e9}}, "at least 3"),
        ({"learning_rate": {"values": [1e-3, 2e-3, 4e-3], "sizes": ["s", "s"], "budget": 1e9}}, "one size twice"),
        ({"device": {"gpu": "h900"}}, "choose one of"),
        ({"vocab_size": 77}, "leave it out"),
    ],
)
def test_errors_name_the_wrong_key_of_a_recipe(make: MakeLadder, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_without_data_a_plan_needs_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fnet-t5 prepare"):
        make_ladder(recipe(tmp_path / "absent"))
    ladder = make_ladder(recipe(tmp_path / "absent", vocab_size=500, train_tokens=1e6))
    assert ladder.data_sha256 is None
    assert ladder.vocab_size == 500


@pytest.mark.parametrize("name", [name for name in packaged_recipes() if name.startswith("configs/scaling/")])
def test_shipped_recipes_can_be_planned(name: str) -> None:
    ladder = make_ladder(load_config(LadderRecipe, name, ["vocab_size=1024"] if "smoke" in name else [], kind="scaling"))
    assert all(run.ends[-1].tokens <= 4 * ladder.train_tokens for run in ladder.runs if ladder.train_tokens)
    if "/gate-" in name:  # one size, before any ladder
        assert {"t5", "fnet_t5", "fnet_t5_positions", "ff_only", "ff_only_positions"} <= {run.arm for run in ladder.runs}
        assert {(run.size, run.rows * 32) for run in ladder.runs} == {("d64", 4096)}
        return
    assert {"t5", "fnet_t5", "ff_only", "gpt2", "prefix_decoder"} <= {run.arm for run in ladder.runs}
    for arm in ("t5", "fnet_t5"):
        sizes = {run.size for run in ladder.runs if run.arm == arm and run.phase == "main" and run.objective == 0}
        assert len(sizes) >= 4  # for isoFLOP curves


SWEEP = SweepConfig(values=(1.0, 2.0, 4.0), sizes=("s", "m"), budget=1.0)


@pytest.mark.parametrize(
    ("losses", "following"),
    [
        ({1.0: 3.0, 2.0: 2.0, 4.0: 3.0}, None),
        ({1.0: 2.0, 2.0: 3.0, 4.0: 4.0}, 0.5),
        ({1.0: 4.0, 2.0: 3.0, 4.0: 2.0}, 8.0),
        ({1.0: 4.0, 2.0: 3.0, 4.0: math.inf}, None),
        ({1.0: math.inf, 2.0: math.inf, 4.0: math.inf}, 0.5),
    ],
)
def test_a_sweep_is_widened_until_its_best_rate_is_inside(losses: dict[float, float], following: float | None) -> None:
    assert next_rate(losses, SWEEP) == following


def test_a_search_without_an_optimum_fails() -> None:
    with pytest.raises(ValueError, match="still lies at the edge"):
        next_rate({2.0**power: -power for power in range(7)}, SWEEP)


def test_the_optimum_is_the_vertex_of_the_parabola_in_log_rate() -> None:
    rates = [0.001, 0.002, 0.0045, 0.03]
    bottom = math.log(0.0025)
    losses = {rate: 3 + 0.7 * (math.log(rate) - bottom) ** 2 for rate in rates}
    assert vertex(losses) == pytest.approx(0.0025)
    assert vertex({0.001: 3.0, 0.002: 2.0, 0.004: math.inf}) == 0.002


def test_other_sizes_lie_on_the_power_law_through_two_optima() -> None:
    optima = [(1_000_000, 0.01), (100_000_000, 0.001)]
    assert power_law(optima, 10_000_000) == pytest.approx(np.sqrt(0.01 * 0.001))
    assert power_law(optima, 1_000_000) == pytest.approx(0.01)
