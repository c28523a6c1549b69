"""Matched GPT-2s compared with the modules' parameters, torch's FLOP counts, and the published GPT-2."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.architectures.build import build_model
from models.architectures.pieces import Inputs, TextInputs
from models.config import SIZES, ModelConfig, expand_size
from models.cost.flops import Lengths
from models.matching.matched_decoder import gpt2_of_equal_flops, gpt2_of_equal_parameters

LENGTHS = Lengths(512, 128)
T5_SIZES = [size for size in SIZES if size.startswith("t5-")]


def t5(size: str) -> ModelConfig:
    return ModelConfig(**expand_size({"size": size, "architecture": "t5", "vocab_size": 32128}))


def parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config).parameters())


def counted_flops(config: ModelConfig) -> int:
    """FLOPs of one row of text in the layout that each architecture trains on."""
    with torch.device("meta"):
        model = build_model(config)
        encoder, decoder = (torch.zeros(1, count, dtype=torch.int64) for count in (LENGTHS.encoder, LENGTHS.decoder))
        with FlopCounterMode(display=False) as counter:
            if config.is_decoder_only:
                text = torch.cat([encoder, decoder], dim=1)
                model(TextInputs(text, torch.ones_like(text)))
            else:
                model(Inputs(encoder, torch.ones_like(encoder), decoder))
    return counter.get_total_flops()


@pytest.mark.parametrize("size", T5_SIZES)
def test_every_t5_has_a_gpt2_of_equal_parameters_and_one_of_equal_compute(size: str) -> None:
    anchor = t5(size)
    alike = gpt2_of_equal_parameters(anchor, max_length=4352)
    cheap = gpt2_of_equal_flops(anchor, LENGTHS, max_length=4352)
    assert parameters(alike) == pytest.approx(parameters(anchor), rel=0.02)
    assert counted_flops(cheap) == pytest.approx(counted_flops(anchor), rel=0.02)
    # a decoder-only model runs every token through all layers
    assert counted_flops(alike) > 1.9 * counted_flops(anchor)
    for config in (alike, cheap):
        assert config.num_heads == config.num_decoder_layers
        assert config.d_model == 64 * config.num_decoder_layers == config.inner_dim
        assert 3 <= config.d_ff / config.d_model <= 6
        assert config.padded_vocab_size == anchor.padded_vocab_size


def test_a_t5_base_is_paired_with_the_shape_of_the_published_gpt2() -> None:
    found = gpt2_of_equal_flops(t5("t5-v1.1-base"), LENGTHS, max_length=1024)
    published = SIZES["gpt2"]
    assert (found.num_decoder_layers, found.d_model) == (published["num_decoder_layers"], published["d_model"])


def test_a_model_with_a_dominant_vocabulary_keeps_its_feed_forward_ratio() -> None:
    anchor = ModelConfig(**expand_size({"size": "nano", "architecture": "t5", "vocab_size": 32128}))
    for config in (gpt2_of_equal_parameters(anchor, 4352), gpt2_of_equal_flops(anchor, LENGTHS, 4352)):
        assert 2 <= config.d_ff / config.d_model <= 8
        assert config.num_heads == config.num_decoder_layers
        assert config.d_kv == anchor.d_kv == 16


def test_only_a_t5_with_a_vocabulary_is_matched() -> None:
    with pytest.raises(ValueError, match="fnet_t5"):
        gpt2_of_equal_parameters(ModelConfig(**expand_size({"size": "nano", "vocab_size": 100})), 64)
    with pytest.raises(ValueError, match="vocab_size is 0"):
        gpt2_of_equal_flops(ModelConfig(**expand_size({"size": "nano", "architecture": "t5"})), Lengths(8, 8), 64)
