"""The optimizer that a recipe gives: decayed tensors, its settings, and the rate of every step."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.architectures.build import build_model
from models.config import ModelConfig, expand_size
from pipeline.config import OptimizerConfig
from pipeline.engine.engine import Engine
from pipeline.optim.optimizer import RMSScaledAdamW, build_optimizer


def parameters(**section: Any) -> dict[str, torch.nn.Parameter]:
    return dict(build_model(ModelConfig(**expand_size({"size": "nano", "vocab_size": 100, **section}))).named_parameters())


@pytest.mark.parametrize("architecture", ["fnet_t5", "t5", "gpt2", "bert"])
def test_weight_decay_applies_to_the_matrices_of_layers_alone(architecture: str) -> None:
    named = parameters(architecture=architecture)
    entries: Any = [SimpleNamespace(name=name, parameter=parameter) for name, parameter in named.items()]
    decayed, plain = build_optimizer(entries, OptimizerConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in named.items()}
    expected = {name for name, parameter in named.items() if re.search(r"\.layers\.\d+\.", name) and parameter.ndim == 2}
    assert {names[id(parameter)] for parameter in decayed["params"]} == expected != set()
    assert len(decayed["params"]) + len(plain["params"]) == len(named)


@pytest.mark.parametrize("name", ["adamw", "adamw_rms"])
def test_the_settings_of_a_recipe_are_those_of_the_optimizer(name: Any) -> None:
    entries: Any = [SimpleNamespace(name=name, parameter=parameter) for name, parameter in parameters().items()]
    config = OptimizerConfig(name=name, learning_rate=0.3, betas=(0.7, 0.8), eps=1e-3)
    made = build_optimizer(entries, config)
    assert isinstance(made, RMSScaledAdamW) is (name == "adamw_rms")
    for group in made.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.3, (0.7, 0.8), 1e-3)


def test_every_group_gets_the_rate_of_the_step() -> None:
    """The decayed tensors and the others: a schedule that reaches one group alone changes no loss at a constant rate."""
    seen: list[list[float]] = []
    groups = [{"lr": 9.0}, {"lr": 9.0}]
    engine = Engine.__new__(Engine)
    engine.skip_step = SimpleNamespace(asked=False, result="result")  # type: ignore[assignment]
    engine.deepspeed = SimpleNamespace(
        optimizer=SimpleNamespace(param_groups=groups),
        train_batch=lambda batches: seen.append([*(group["lr"] for group in groups), engine.skip_step.asked]),
    )
    assert [engine.train_step([], rate, skip=rate > 0.15) for rate in (0.1, 0.2)] == ["result", "result"]
    assert seen == [[0.1, 0.1, False], [0.2, 0.2, True]]
