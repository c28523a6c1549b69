"""Recipes and DeepSpeed's settings: which recipes are refused with which message, and which settings are emitted."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pipeline.config import MeshConfig, OptimizerConfig, RunConfig, TrainConfig
from pipeline.engine.deepspeed_config import check_version, deepspeed_config
from pipeline.optim.lr_schedule import learning_rate


def recipe(**sections: dict[str, Any]) -> dict[str, Any]:
    base: dict[str, dict[str, Any]] = {
        "model": {"size": "nano", "vocab_size": 500},
        "data": {"path": "data"},
        "mesh": {},
        "train": {"steps": 10, "global_batch_size": 8, "micro_batch_size": 2, "precision": "fp32"},
        "optimizer": {},
    }
    return {name: {**values, **sections.get(name, {})} for name, values in base.items()}


def test_explicit_keys_override_the_dimensions_of_a_size() -> None:
    config = RunConfig.model_validate(recipe(model={"d_ff": 256}))
    assert (config.model.d_model, config.model.d_ff) == (64, 256)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"d_modle": 64}}, "d_modle"),
        ({"train": {"stepz": 64}}, "stepz"),
        ({"train": {"precision": "fp16"}}, "fp16 is refused"),
        ({"mesh": {"tensor_parallel": 3}}, "mesh.tensor_parallel 3 does not divide model.num_heads 4"),
        ({"mesh": {"pipeline_parallel": 9}}, "mesh.pipeline_parallel 9 exceeds"),
        ({"model": {"num_attention_layers": 5}}, "model.num_attention_layers is 5"),
        (
            {"model": {"architecture": "bert", "heads": ["mlm"]}, "data": {"objective": "masked_lm"}},
            r"model.heads \['mlm'\] are not those that masked_lm trains: give \['mlm', 'order'\]",
        ),
        (
            {"model": {"architecture": "gpt2", "max_length": 600}, "data": {"objective": "causal_lm"}},
            "than the 640 tokens",
        ),
        ({"model": {"fourier_backend": "auto"}}, "model.fourier_backend auto is measured by each process"),
        ({"model": {"mixing": "linear", "max_length": 100}}, "model.max_length 100 is less than the 512 tokens"),
        (
            {"model": {"encoder_positions": "learned", "max_length": 100}},
            "model.max_length 100 is less than data.encoder_length 512, and model.encoder_positions learned",
        ),
        ({"model": {"encoder_d_ff": 65}, "mesh": {"tensor_parallel": 2}}, "does not divide model.encoder_d_ff 65"),
        ({"model": {"mixing": "wavelet"}}, "mixing"),
    ],
)
def test_impossible_recipes_are_refused(sections: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(recipe(**sections))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"zero_stage": 2}}, "stages 0 and 1"),
        ({"train": {"zero_stage": 3}}, "stages 0 and 1"),
        ({"train": {"zero_stage": 0}, "mesh": {"pipeline_parallel": 2}}, "tied weights twice"),
        ({"train": {"zero_stage": 0, "precision": "bf16"}}, "bf16"),
        ({"train": {"global_batch_size": 9}}, "train.global_batch_size 9"),
    ],
)
def test_combinations_that_train_wrongly_are_refused(sections: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deepspeed_config(RunConfig.model_validate(recipe(**sections)), data_parallel=1)


@pytest.mark.parametrize(
    ("sections", "data_parallel", "stage"),
    [
        ({}, 1, 0),
        ({}, 2, 1),
        ({"mesh": {"tensor_parallel": 2}}, 1, 1),
        ({"mesh": {"pipeline_parallel": 2}}, 1, 1),
        ({"train": {"precision": "bf16"}}, 1, 1),
    ],
)
def test_zero_is_disabled_where_nothing_can_be_sharded(sections: dict[str, Any], data_parallel: int, stage: int) -> None:
    config = RunConfig.model_validate(recipe(**{"train": {"precision": "fp32"}, **sections}))
    settings = deepspeed_config(config, data_parallel)
    assert settings["zero_optimization"]["stage"] == stage
    assert settings["gradient_clipping"] == (config.optimizer.clip if stage else 0.0)  # otherwise the guard clips


def test_an_objective_is_a_name_or_a_name_with_settings() -> None:
    config = RunConfig.model_validate(recipe(data={"objective": "span_corruption"})).data
    assert (config.row_length, config.encoder_length, config.decoder_length) == (568, 512, 114)  # as published for T5
    assert RunConfig.model_validate(recipe()).data.row_length == 640
    spec = {
        "name": "mixture",
        "parts": [{"objective": "ul2"}, {"weight": 2, "objective": {"name": "prefix_lm", "target_share": 0.5}}],
    }
    mixed = RunConfig.model_validate(recipe(data={"objective": spec, "encoder_length": 64}))
    assert RunConfig.model_validate_json(mixed.model_dump_json()) == mixed
    wide = RunConfig.model_validate(recipe(data={"objective": "span_corruption", "decoder_length": 200})).data
    assert (wide.row_length, wide.decoder_length) == (568, 200)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"objective": "causal_lm"}, "causal_lm cannot train model.architecture fnet_t5"),
        ({"objective": "span_corruption", "encoder_length": 2}, "too short for span_corruption"),
        ({"objective": {"name": "prefix_lm", "prefix_lengths": [1, 512]}, "decoder_length": 9}, "data.decoder_length"),
        ({"objective": {"name": "prefix_lm", "prefix_lengths": [9, 9]}}, "repeats a length"),
        ({"objective": {"name": "prefix_lm", "prefix_lengths": [9], "target_share": 0.5}}, "exclude each other"),
        ({"objective": {"name": "mixture", "parts": []}}, "without parts"),
    ],
)
def test_impossible_data_sections_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(recipe(data=data))


@pytest.mark.parametrize("version", ["0.18.3", "0.19.2", "0.16.0"])
def test_releases_with_wrong_pipeline_gradients_are_refused(version: str) -> None:
    with pytest.raises(ValueError, match="8152"):
        check_version(version)


@pytest.mark.parametrize("version", ["0.19.3", "0.19.8", "0.19.8+cu130", "0.20.0"])
def test_later_releases_pass(version: str) -> None:
    check_version(version)


def test_emitted_settings() -> None:
    settings = deepspeed_config(RunConfig.model_validate(recipe(train={"precision": "bf16"})), data_parallel=2)
    assert settings["gradient_accumulation_steps"] == 2
    assert settings["zero_optimization"] == {"stage": 1}
    assert settings["pipeline"] == {"pipe_partitioned": False, "grad_partitioned": False, "use_reentrant": False}
    assert settings["data_types"] == {"grad_accum_dtype": "fp32"}
    assert settings["bf16"] == {"enabled": True}


def test_the_number_of_processes_must_be_a_multiple_of_a_replica() -> None:
    mesh = MeshConfig(tensor_parallel=2, pipeline_parallel=2)
    assert mesh.data_parallel(8) == 2
    with pytest.raises(ValueError, match="6 processes"):
        mesh.data_parallel(6)


def test_learning_rate_warms_up_and_follows_a_cosine() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, final_fraction=0.1)
    assert learning_rate(1, 110, config) == pytest.approx(0.1)
    assert learning_rate(10, 110, config) == pytest.approx(1.0)
    assert learning_rate(60, 110, config) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert learning_rate(110, 110, config) == pytest.approx(0.1)
    assert learning_rate(50, 110, config.model_copy(update={"schedule": "constant"})) == 1.0


def test_a_run_with_decay_steps_can_be_made_longer() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, decay_steps=10)
    assert [learning_rate(step, 5, config) for step in range(1, 6)] == [learning_rate(step, 20, config) for step in range(1, 6)]
    assert learning_rate(15, 20, config) == learning_rate(10, 20, config) == pytest.approx(0.1)


def test_schedules_match_torch_and_the_papers() -> None:
    def rates(**settings: object) -> list[float]:
        config = OptimizerConfig(learning_rate=2.0, warmup_steps=10, **settings)
        return [learning_rate(step, 110, config) for step in range(1, 111)]

    linear = rates(schedule="linear", final_fraction=0.25)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    reference = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.25, total_iters=100)
    for rate in linear[9:]:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    # T5: proportional to 1 / sqrt(step) once the warm-up is over
    root = rates(schedule="inverse_sqrt")
    assert [rate * (step + 1) ** 0.5 for step, rate in enumerate(root) if step >= 10] == pytest.approx([2.0 * 10**0.5] * 100)
    stable = rates(schedule="wsd", decay_begin=60, final_fraction=0.0)
    assert stable[9:60] == [2.0] * 51
    assert stable[72] == pytest.approx(2.0 * (1 - 0.26**0.5))  # 13 of 50 steps into the decay
    assert stable[-1] == 0.0
    assert rates(schedule="wsd")[9:88] == [2.0] * 79  # four fifths of 110
    # branches of one stable run share everything before their decays
    assert rates(schedule="wsd", decay_begin=40)[:40] == stable[:40]


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="inverse_sqrt falls from the end of the warm-up"):
        OptimizerConfig(schedule="inverse_sqrt", warmup_steps=0)
    with pytest.raises(ValueError, match="decay_begin 5 is read by schedule wsd alone"):
        OptimizerConfig(decay_begin=5)


def test_the_old_name_of_the_consistency_check_is_still_read() -> None:
    assert TrainConfig.model_validate({"steps": 4, "agreement_every": 7}).consistency_check_every == 7
    assert "agreement_every" not in TrainConfig(steps=4).model_dump()
    with pytest.raises(ValueError, match=r"agreement_every is the old name of train\.consistency_check_every"):
        TrainConfig.model_validate({"steps": 4, "agreement_every": 7, "consistency_check_every": 8})
