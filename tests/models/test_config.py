"""Parameter counts against the published ones, layouts against FNet's rules, refusals."""

import pytest
import torch

from models.config import SIZES, ModelConfig, expand_size
from models.seq2seq import Seq2Seq

# google-research/text-to-text-transfer-transformer, vocabulary 32,128; v1.1 with its untied head
PUBLISHED = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1.1-small": 76_961_152,
    "t5-v1.1-base": 247_577_856,
    "t5-v1.1-large": 783_150_080,
    "t5-v1.1-xl": 2_849_757_184,
    "t5-v1.1-xxl": 11_135_332_352,
}


@pytest.mark.parametrize(("size", "expected"), PUBLISHED.items())
def test_t5_has_the_published_number_of_parameters(size: str, expected: int) -> None:
    config = ModelConfig(**expand_size({"size": size, "architecture": "t5", "vocab_size": 32128}))
    with torch.device("meta"):
        model = Seq2Seq(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_the_hybrid_lacks_exactly_the_encoder_attention() -> None:
    section = {"size": "t5-v1.1-base", "vocab_size": 32128}
    with torch.device("meta"):
        model = Seq2Seq(ModelConfig(**expand_size(section)))
    projections = 4 * 768 * 768 * 12
    bias_table = 32 * 12
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED["t5-v1.1-base"] - projections - bias_table


# HybridAttentionLayout of google-research/f_net, layer numbers worked out by hand from its definition
@pytest.mark.parametrize(
    ("layout", "attending"),
    [("bottom", [0, 1]), ("middle", [5, 6]), ("mixed", [0, 6]), ("top", [10, 11])],
)
def test_layouts_place_attention_where_fnet_does(layout: str, attending: list[int]) -> None:
    section = {**SIZES["t5-base"], "num_attention_layers": 2, "attention_layout": layout}
    config = ModelConfig(**section)
    assert [layer for layer in range(12) if config.encoder_layer_attends(layer)] == attending


def test_unknown_size_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="t5-large"):
        expand_size({"size": "t5-huge"})


@pytest.mark.parametrize(
    ("key", "value"),
    [("d_model", 0), ("num_attention_layers", 7), ("num_buckets", 5), ("max_distance", 9), ("vocab_size", -1)],
)
def test_impossible_values_name_their_key(key: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"model.{key}"):
        ModelConfig(**expand_size({"size": "t5-small", key: value}))
