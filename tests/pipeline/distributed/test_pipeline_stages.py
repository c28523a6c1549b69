"""The pipeline partition compared with an exhaustive search, and the tensors that a stage sends."""

from __future__ import annotations

from itertools import combinations, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.architectures.build import build_model
from models.architectures.pieces import Inputs, Piece, TextInputs, pieces, sent_tensors
from models.config import ModelConfig, expand_size
from models.cost.flops import Lengths
from models.layers import initialization as initial
from models.layers.attention_bias import CROSS_ATTENTION, ScoreBiasRule
from models.layers.factory import TorchLayers
from pipeline.distributed.pipeline_stages import StageLayer
from pipeline.planner.partition import partition_stages


def piece(flops: float, starts_stage: bool) -> Piece:
    return Piece(
        name="piece",
        build=lambda factory: None,  # type: ignore[arg-type, return-value]
        run=lambda module, state: state,
        flops=flops,
        starts_stage=starts_stage,
    )


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=9), st.integers(1, 4))
def test_partition_is_optimal(described: list[tuple[int, bool]], num_stages: int) -> None:
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


def test_hybrid_has_more_layers_in_the_first_stage_than_t5() -> None:
    def encoder_layers_in_first_stage(architecture: str) -> int:
        config = ModelConfig(**expand_size({"size": "t5-v1.1-base", "architecture": architecture, "vocab_size": 32128}))
        model = pieces(config, TorchLayers(), Lengths(512, 512))
        bounds = partition_stages(model, 2)
        return sum(entry.name.startswith(("encoder.layers", "decoder.layers")) for entry in model[: bounds[1]])

    assert encoder_layers_in_first_stage("fnet_t5") > encoder_layers_in_first_stage("t5")


def test_the_last_stage_of_a_deep_partition_starts_at_a_decoder_layer() -> None:
    config = ModelConfig(**expand_size({"size": "nano", "vocab_size": 500}))
    model = pieces(config, TorchLayers(), Lengths(16, 8))
    bounds = partition_stages(model, 4)
    assert model[bounds[-2]].name.startswith("decoder.layers")


def test_a_memory_limit_moves_the_stage_boundary() -> None:
    """Without a limit the stages are balanced by FLOPs. Pieces that exceed the limit move; an impossible limit is an error."""

    def cost(flops: float) -> Any:
        return SimpleNamespace(flops=flops, starts_stage=True)

    model = [cost(1), cost(1), cost(1), cost(3)]
    assert partition_stages(model, 2) == [0, 3, 4]
    assert partition_stages(model, 2, lambda stage, begin, end: end - begin <= 2) == [0, 2, 4]
    assert partition_stages(model, 2, lambda stage, begin, end: stage == 1 or end - begin == 1) == [0, 1, 4]
    with pytest.raises(ValueError, match=r"no partition into mesh\.pipeline_parallel 2 stages keeps each within mesh\.stage"):
        partition_stages(model, 2, lambda stage, begin, end: end - begin == 1)


@pytest.mark.parametrize(
    ("architecture", "recompute", "biases"),
    [("t5", False, 3), ("t5", True, 8), ("prefix_decoder", False, 2), ("prefix_decoder", True, 4)],
)
def test_stages_send_bias_tables_and_compute_each_bias_once(
    architecture: str, recompute: bool, biases: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stages of 4 + 4 layers, or of 4, split in the decoder. The encoder computes its bias once, the decoder once per
    stage. With recomputation every layer computes its own."""
    section = {"size": "nano", "architecture": architecture, "vocab_size": 128, "num_decoder_layers": 4}
    if architecture == "t5":
        section["num_encoder_layers"] = 4
    config = ModelConfig(**expand_size(section))
    factory = TorchLayers()
    model = build_model(config)
    initial.initialize(model, seed=0)
    ids = torch.randint(3, 128, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    inputs = TextInputs(ids, mask) if config.is_decoder_only else Inputs(ids, mask, ids[:, :5])
    expected = model(inputs)

    made = []
    make = ScoreBiasRule.make
    monkeypatch.setattr(ScoreBiasRule, "make", lambda rule, *a: made.append(rule) or make(rule, *a))  # type: ignore[func-returns-value]
    state: Any = inputs
    for piece in pieces(config, factory):
        layer = StageLayer(piece, factory, recompute)
        weights = model.get_submodule(piece.tied_to or piece.name).state_dict()
        layer.module.load_state_dict(weights)
        if piece.name == "decoder.layers.2":
            state = sent_tensors(state)
            assert len(state) == (5 if config.is_decoder_only else 4)
            assert all(isinstance(tensor, Tensor) for tensor in state)
        state = layer(state)
        if recompute and piece.name.startswith("decoder.layers"):
            assert all(isinstance(tensor, Tensor) for tensor in state)
    assert torch.equal(state, expected)
    assert len([rule for rule in made if rule is not CROSS_ATTENTION]) == biases
