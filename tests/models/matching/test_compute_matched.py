"""Matched hybrids compared with the modules' parameter counts, with neighbouring sizes, and with widths computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.architectures.build import build_model
from models.architectures.pieces import forward_flops
from models.config import SIZES, ModelConfig, expand_size
from models.cost.flops import Lengths
from models.layers.factory import TorchLayers
from models.matching.compute_matched import MULTIPLE, compute_matched

T5_SIZES = [size for size in SIZES if size.startswith("t5-")]


def t5(size: str) -> ModelConfig:
    return ModelConfig(**expand_size({"size": size, "architecture": "t5", "vocab_size": 32128}))


def counted(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config).parameters())


@pytest.mark.parametrize("size", T5_SIZES)
def test_variants_of_every_t5_have_the_reported_and_smallest_mismatch(size: str) -> None:
    model, lengths = t5(size), Lengths(512, 114)
    variants = compute_matched(model, lengths)
    flops = forward_flops(model, TorchLayers(), lengths)
    for matching, variant in variants.items():
        assert variant.parameters == counted(variant.config)
        assert variant.parameter_mismatch == pytest.approx(variant.parameters / counted(model) - 1)
        assert variant.flop_mismatch == pytest.approx(forward_flops(variant.config, TorchLayers(), lengths) / flops - 1)
        assert variant.config.num_decoder_layers == model.num_decoder_layers
        assert variant.config.encoder_d_ff % MULTIPLE == 0
        steps = {
            "equal_parameters": [{"encoder_d_ff": variant.config.encoder_d_ff + step} for step in (-MULTIPLE, MULTIPLE)],
            "equal_flops_width": [{"encoder_d_ff": variant.config.encoder_d_ff + step} for step in (-MULTIPLE, MULTIPLE)],
            "equal_flops_depth": [{"num_encoder_layers": variant.config.num_encoder_layers + step} for step in (-1, 1)],
        }
        for change in steps.get(matching, []):
            other = replace(variant.config, **change)
            if matching == "equal_parameters":
                assert abs(counted(other) - counted(model)) >= abs(variant.parameters - counted(model))
            else:
                assert abs(forward_flops(other, TorchLayers(), lengths) - flops) >= abs(variant.flops - flops)
    assert variants["same_dimensions"].config.encoder_block_config.d_ff == model.d_ff
    assert abs(variants["equal_parameters"].parameter_mismatch) < 0.02
    assert abs(variants["equal_flops_width"].flop_mismatch) < 0.02
    assert abs(variants["equal_flops_depth"].flop_mismatch) < 0.04


# by hand: the four projections of a layer are replaced by 4 A / 3 more width of the gated feed-forward
@pytest.mark.parametrize(("size", "width"), [("t5-v1.1-small", 1536), ("t5-v1.1-base", 3072), ("t5-v1.1-xl", 7872)])
def test_equal_parameters_add_four_thirds_of_the_attention_width(size: str, width: int) -> None:
    model = t5(size)
    assert abs(width - (model.d_ff + 4 * model.inner_dim / 3)) <= MULTIPLE / 2
    assert compute_matched(model, Lengths(512, 114))["equal_parameters"].config.encoder_d_ff == width


def test_only_a_t5_with_a_vocabulary_has_a_matched_hybrid() -> None:
    with pytest.raises(ValueError, match="fnet_t5"):
        compute_matched(ModelConfig(**expand_size({"size": "nano", "vocab_size": 100})), Lengths(8, 8))
    with pytest.raises(ValueError, match=r"vocab_size is 0"):
        compute_matched(ModelConfig(**expand_size({"size": "nano", "architecture": "t5"})), Lengths(8, 8))
