"""Planning of ladders: budgets spent to the step, arms matched as specified, and a plan file with a checksum."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import linregress

from data_prep.files import canonical_json, sha256_bytes
from launch.config import load_config
from launch.recipes import packaged_recipes
from models.architectures.build import build_model
from models.architectures.pieces import TextInputs
from models.config import ModelConfig
from models.cost.flops import Lengths
from models.cost.parameters import num_parameters
from models.layers.initialization import initialize
from pipeline.optim.lr_schedule import learning_rate
from pipeline.run_folder import write_status
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
from pipeline.scaling.ladder.learning_rates import (
    checked_end,
    has_diverged,
    next_rate,
    power_law,
    rate_for,
    read_check,
    regrets,
    vertex,
    write_check,
    write_optimum,
)
from pipeline.scaling.ladder.planned_runs import PlannedRun, short_ends
from pipeline.scaling.ladder.recipe import LadderRecipe, SweepConfig
from pipeline.scaling.ladder.run_configs import run_config, runs_of, sweep_folder
from pipeline.scaling.ladder.states import state_of
from pipeline.scaling.results import _arm_of
from tests.helpers.datasets import write_dataset

LENGTHS = Lengths(27, 5)
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
        "schedule": {"warmup": 0.1, "allow_short": True},
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
        budgets = {"sweep": [2e9], "check": [8e9], "main": [4e9, 8e9][: len(run.ends)]}[run.phase]
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


def test_a_deep_encoder_takes_half_of_the_decoders_layers() -> None:
    def shape(arm: str, encoder: int, decoder: int) -> tuple[int, int]:
        model = arm_model(arm, {"size": "nano", "num_encoder_layers": encoder, "num_decoder_layers": decoder}, 300, LENGTHS)
        return model.num_encoder_layers, model.num_decoder_layers

    for arm in ("t5_deep_encoder", "fnet_t5_deep_encoder", "fnet_t5_deep_encoder_positions"):
        assert [shape(arm, *layers) for layers in ((3, 2), (4, 4), (3, 3))] == [(4, 1), (6, 2), (5, 1)]
        with pytest.raises(ValueError, match="moves half of the decoder's layers, and nano has 1: leave the size out"):
            shape(arm, 3, 1)
    balanced, deep = (arm_model(arm, {"size": "nano"}, 300, LENGTHS) for arm in ("t5", "t5_deep_encoder"))
    cross_attention = 4 * balanced.d_model * balanced.inner_dim + balanced.d_model  # and its norm
    moved = balanced.num_decoder_layers - deep.num_decoder_layers
    assert num_parameters(balanced) - num_parameters(deep) == moved * cross_attention
    assert arm_model("fnet_t5_deep_encoder_positions", {"size": "nano"}, 300, LENGTHS).encoder_positions == "learned"


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
        (
            {"learning_rate": {"values": [1e-3, 2e-3, 4e-3], "sizes": ["s"], "budget": 1e9}},
            "names 1 of 2 sizes: name at least 2",
        ),
        (
            {"learning_rate": {"values": [1e-3, 2e-3, 4e-3], "sizes": ["s", "m"], "budget": 1e9, "check_arms": ["bert"]}},
            r"learning_rate.check_arms \['bert'\] are not all among the arms",
        ),
        ({"schedule": {"warmup": 0.1, "warmup_steps": 300}}, "are both given: leave warmup out"),
        ({"schedule": {"warmup_steps": 500, "allow_short": True}}, "its warm-up of 500 steps is not over"),
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


TRAINED = {"step": 5, "loss": 3.0}
SKIPPED = {"step": 5, "skipped": "not finite"}
VALIDATED = {"step": 5, "source": "all", "validation_loss": 2.0, "validation_target_tokens": 9}


@pytest.mark.parametrize(
    ("status", "rows", "expected"),
    [
        ("failed", [TRAINED, SKIPPED], True),
        ("failed", [TRAINED, {**SKIPPED, "skipped": "spike"}], True),
        # the last update made the weights infinite: its loss and gradient were finite, the outputs after it are not
        ("failed", [TRAINED, {**VALIDATED, "validation_loss": None}], True),
        ("failed", [TRAINED, {**VALIDATED, "source": "Wikipedia", "validation_loss": None}, VALIDATED], False),
        ("failed", [TRAINED, {**VALIDATED, "validation_loss": None}, {**VALIDATED, "step": 9}], False),
        # no loss because there was nothing to predict
        ("failed", [TRAINED, {**VALIDATED, "validation_loss": None, "validation_target_tokens": 0}], False),
        ("failed", [SKIPPED, TRAINED, VALIDATED], False),  # a full disk, long after a skipped step
        ("failed", [TRAINED, {**SKIPPED, "skipped": "train.skip_steps"}], False),
        ("failed", [], False),
        ("preempted", [TRAINED, SKIPPED], False),
        ("finished", [TRAINED, {**VALIDATED, "validation_loss": None}], False),
    ],
)
def test_a_run_that_failed_has_diverged_if_its_last_step_or_its_outputs_are_not_finite(
    status: str, rows: list[dict[str, Any]], expected: bool, tmp_path: Path
) -> None:
    """Other failures may be removed by another start: such a try of a sweep is done again."""
    write_status(tmp_path, status)
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert has_diverged(tmp_path) is expected


def test_the_optimum_is_the_vertex_of_the_parabola_in_log_rate() -> None:
    rates = [0.001, 0.002, 0.0045, 0.03]
    bottom = math.log(0.0025)
    losses = {rate: 3 + 0.7 * (math.log(rate) - bottom) ** 2 for rate in rates}
    assert vertex(losses) == pytest.approx(0.0025)
    assert vertex({0.001: 3.0, 0.002: 2.0, 0.004: math.inf}) == 0.002


def test_rates_lie_on_the_power_law_of_least_squares() -> None:
    law = power_law([(1_000_000, 0.01), (100_000_000, 0.001)])
    assert law.rate(10_000_000) == pytest.approx(np.sqrt(0.01 * 0.001))
    assert law.rate(1_000_000) == pytest.approx(0.01)
    assert law.residual is None
    assert power_law([(1_000_000, 0.01)]).rate(5_000_000) == pytest.approx(0.01)
    optima = [(1_000_000, 0.011), (8_000_000, 0.004), (100_000_000, 0.0012), (300_000_000, 0.0004)]
    x, y = np.log(np.array(optima)).T
    found, expected = power_law(optima), linregress(x, y)
    assert found.exponent == pytest.approx(expected.slope)
    assert found.rate(5_000_000) == pytest.approx(np.exp(expected.intercept + expected.slope * np.log(5e6)))
    spread = np.sqrt(((x - x.mean()) ** 2).sum())
    assert found.residual == pytest.approx(expected.stderr * spread)


def bowl(optimum: float, curvature: float, rates: tuple[float, ...]) -> dict[float, float]:
    return {rate: 2.5 * math.exp(curvature * math.log(rate / optimum) ** 2) for rate in rates}


def test_regret_is_what_the_rate_of_the_law_costs_by_the_parabolas(make: MakeLadder, tmp_path: Path) -> None:
    ladder = make()
    folder = tmp_path / "ladder"
    (folder / "runs").mkdir(parents=True)
    assert regrets(folder, ladder) == {}
    sweeps = {run.size: run for run in ladder.runs if run.phase == "sweep" and run.arm == "t5"}
    for size, optimum in (("s", 0.003), ("m", 0.0015)):
        found = write_optimum(folder, sweeps[size], bowl(optimum, 0.05, (0.001, 0.002, 0.004, 0.008)))
        assert found.curvature == pytest.approx(0.05)
    # two optima lie on the law: nothing is lost at the swept sizes
    assert set(regrets(folder, ladder)) == {run.name for run in ladder.runs if run.phase == "main" and run.arm == "t5"}
    assert regrets(folder, ladder)["t5-m-seed0"] < 1e-6  # the vertex is that of the loss, the curvature that of its logarithm
    check = ladder.run("check-t5-m")
    rate = rate_for(folder, ladder, check)
    tried = bowl(1.2 * rate, 0.05, (rate / 2, rate, 2 * rate))
    write_ends(folder, ladder, check, rate, tried)
    result = write_check(folder, ladder, check)
    assert result == read_check(folder, check)
    assert result is not None
    assert result.optimum == pytest.approx(1.2 * rate, rel=1e-4)
    assert result.cost == 0  # 1.2 is nearer to the law's rate than to twice it
    assert regrets(folder, ladder)["t5-s-seed0"] == pytest.approx(0.05 * math.log(1.2) ** 2, rel=1e-3)
    assert state_of(folder, ladder, check).detail == f"learning rate {rate:.3g} is the best of three"


def write_ends(folder: Path, ladder: Ladder, check: PlannedRun, rate: float, losses: dict[float, float]) -> None:
    """Finished run folders of a check's tries, and of the run that it is compared with."""
    names = {value: runs_of(folder) / sweep_folder(check, value) for value in losses}
    for value, path in {**names, rate: checked_end(folder, ladder, check)}.items():
        path.mkdir()
        (path / "metrics.jsonl").write_text(json.dumps({"step": 5, "source": "all", "validation_loss": losses[value]}) + "\n")
        write_status(path, "finished")


def test_a_check_is_planned_for_each_arm_where_it_is_trained(make: MakeLadder) -> None:
    ladder = make()
    checks = {run.arm: run for run in ladder.runs if run.phase == "check"}
    assert set(checks) == set(ladder.recipe.arms)
    assert {run.size for run in checks.values()} == {"m"}
    for run in checks.values():
        (end,) = run.ends
        main_run = ladder.run(f"{run.arm}-m-seed0")
        assert replace(end, label="b2") == main_run.ends[-1]
        assert (run.warmup_steps, run.rows, run.seed) == (main_run.warmup_steps, main_run.rows, 0)
        assert run.flops == pytest.approx(2 * end.flops)
    few = make(learning_rate={"values": [1e-3, 2e-3, 4e-3], "sizes": ["s", "m"], "budget": 2e9, "check_arms": []})
    assert not [run for run in few.runs if run.phase == "check"]


def test_arms_of_one_size_are_swept_there(make: MakeLadder) -> None:
    sweeps = [run for run in make().runs if run.phase == "sweep"]
    places = {arm: {run.size for run in sweeps if run.arm == arm} for arm in ("t5", "ff_only")}
    assert places == {"t5": {"s", "m"}, "ff_only": {"m"}}


def test_short_runs_are_refused_unless_a_key_allows_them(make: MakeLadder) -> None:
    with pytest.raises(ValueError, match=r"sweep-t5-s at 2e\+09 FLOPs: \d+ steps .* set schedule.allow_short=true"):
        make(schedule={"warmup": 0.1})
    long = {
        "budgets": [6e11, 1.2e12],
        "learning_rate": {"values": [1e-3, 2e-3, 4e-3], "sizes": ["s", "m"], "budget": 8e10},
        "arms": {"t5": {}, "fnet_t5": {}},
    }
    ladder = make(**long, schedule={})
    assert {run.warmup_steps for run in ladder.runs} == {200}
    assert short_ends(ladder.runs) == []
    fewest = min(end.tokens / run.num_parameters for run in ladder.runs for end in run.ends if run.phase == "main")
    with pytest.raises(ValueError, match="199 of warm-up"):
        make(**long, schedule={"warmup_steps": 199})
    short = make(**long, schedule={"warmup_steps": 199, "allow_short": True})
    assert len(short_ends(short.runs)) == sum(len(run.ends) for run in short.runs)
    assert fewest > 3


def test_a_plan_of_an_earlier_version_is_read_with_its_hash(tmp_path: Path) -> None:
    """Written by the version that took the warm-up as a share and swept every arm at two sizes."""
    (tmp_path / "ladder").mkdir()
    text = (Path(__file__).parent / "plans" / "two_sizes_share_of_warmup.json").read_bytes()
    (tmp_path / "ladder" / "ladder.json").write_bytes(text)
    ladder = read_ladder(tmp_path / "ladder")
    values = json.loads(text)
    assert ladder.sha256 == values["sha256"]
    assert ladder.recipe.schedule.warmup == 0.1
    assert [run.warmup_steps for run in ladder.runs] == [run["warmup_steps"] for run in values["runs"]]
    run = ladder.run("t5-m-seed0")
    assert [sweep.name for sweep in ladder.sweeps_of(run)] == ["sweep-t5-s", "sweep-t5-m"]
    assert run_config(ladder, run, run.ends[0], 0.003, None).optimizer.warmup_steps == run.warmup_steps
    assert {one.run.name for one in short_ends(ladder.runs)} == {run.name for run in ladder.runs}


def test_flops_as_needed_leave_out_the_head_without_loss_and_half_of_causal_attention(make: MakeLadder) -> None:
    """n = 16 and m = 8 tokens, d = 64 wide in all, 3 + 2 layers, 24 tokens of causal_lm that all have a loss."""
    runs = {run.arm: run for run in make().runs if run.phase == "main" and run.size == "m"}
    saved = {arm: run.flops_per_row - (run.needed_flops_per_row or 0) for arm, run in runs.items()}
    assert saved["t5"] == saved["fnet_t5"] == 3 * 2 * 4 * 64 * (8 * 7 / 2)
    gpt2, prefix = (ModelConfig(**runs[arm].model) for arm in ("gpt2", "prefix_decoder"))
    assert saved["gpt2"] == 3 * gpt2.num_decoder_layers * 4 * gpt2.inner_dim * (24 * 23 / 2)
    removed = 24 * 23 / 2 - 17 * 16 / 2  # the start token and the prefix are read in both directions
    head = 2 * 16 * prefix.d_model * prefix.padded_vocab_size
    assert saved["prefix_decoder"] == 3 * (prefix.num_decoder_layers * 4 * prefix.inner_dim * removed + head)
