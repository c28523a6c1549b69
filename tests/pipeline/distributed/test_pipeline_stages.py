"""Where the pipeline is cut: against every possible cut, tried one by one."""

from __future__ import annotations

from itertools import combinations, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.architectures.pieces import Piece, pieces
from models.config import ModelConfig, expand_size
from models.cost.flops import Lengths
from models.layers.factory import TorchLayers
from pipeline.planner.partition import partition_stages


def piece(flops: float, starts_stage: bool) -> Piece:
    return Piece("piece", lambda factory: None, lambda module, state: state, flops=flops, starts_stage=starts_stage)  # type: ignore[arg-type, return-value]


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=9), st.integers(1, 4))
def test_cut_is_the_best_of_all(described: list[tuple[int, bool]], num_stages: int) -> None:
    model = [piece(*entry) for entry in described]
    places = [index for index, entry in enumerate(described) if entry[1] and index > 0]
    if len(places) < num_stages - 1:
        with pytest.raises(ValueError, match="pieces of this model that can start a stage"):
            partition_stages(model, num_stages)
        return

    def largest(bounds: list[int]) -> float:
        return max(sum(p.flops for p in model[a:b]) for a, b in pairwise(bounds))

    best = min(largest([0, *chosen, len(model)]) for chosen in combinations(places, num_stages - 1))
    bounds = partition_stages(model, num_stages)
    assert bounds[0] == 0
    assert bounds[-1] == len(model)
    assert len(bounds) == num_stages + 1
    assert all(start in places for start in bounds[1:-1])
    assert largest(bounds) == best


def test_hybrid_is_cut_later_than_t5_because_fourier_layers_are_cheap() -> None:
    def encoder_layers_in_first_stage(architecture: str) -> int:
        config = ModelConfig(**expand_size({"size": "t5-v1.1-base", "architecture": architecture, "vocab_size": 32128}))
        model = pieces(config, TorchLayers(), Lengths(512, 512))
        bounds = partition_stages(model, 2)
        return sum(entry.name.startswith(("encoder.layers", "decoder.layers")) for entry in model[: bounds[1]])

    assert encoder_layers_in_first_stage("fnet_t5") > encoder_layers_in_first_stage("t5")


def test_every_stage_of_a_deep_cut_ends_where_the_state_is_still_used() -> None:
    config = ModelConfig(**expand_size({"size": "nano", "vocab_size": 500}))
    model = pieces(config, TorchLayers(), Lengths(16, 8))
    bounds = partition_stages(model, 4)
    assert model[bounds[-2]].name.startswith("decoder.layers")


def test_a_memory_limit_moves_the_cut() -> None:
    """By FLOPs alone the stages are balanced; what does not fit is moved, and what cannot be is refused."""

    def cost(flops: float) -> Any:
        return SimpleNamespace(flops=flops, starts_stage=True)

    model = [cost(1), cost(1), cost(1), cost(3)]
    assert partition_stages(model, 2) == [0, 3, 4]
    assert partition_stages(model, 2, lambda stage, begin, end: end - begin <= 2) == [0, 2, 4]
    assert partition_stages(model, 2, lambda stage, begin, end: stage == 1 or end - begin == 1) == [0, 1, 4]
    with pytest.raises(ValueError, match=r"no partition into mesh\.pipeline_parallel 2 stages keeps each within mesh\.stage"):
        partition_stages(model, 2, lambda stage, begin, end: end - begin == 1)
