"""Parameter counts compared with published counts and transformers' models, layouts with FNet's rules, and errors."""

import pytest
import torch
import transformers

from models.architectures.build import build_model
from models.architectures.seq2seq import Seq2Seq
from models.config import SIZES, ModelConfig, expand_size
from models.huggingface import their_config


def num_parameters(config: ModelConfig) -> int:
    """The count from the modules. test_flops.py compares the closed form with them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config).parameters())


# google-research/text-to-text-transfer-transformer, vocabulary 32,128; v1.1 has an untied head
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


# openai/gpt2 (124M, 355M, 774M, 1558M), google/fnet (83M, 238M) and bert (110M, 336M), as counted from their released
# checkpoints
OTHERS = {
    "gpt2": (50257, 124_439_808),
    "gpt2-medium": (50257, 354_823_168),
    "gpt2-large": (50257, 774_030_080),
    "gpt2-xl": (50257, 1_557_611_200),
    "fnet-base": (32000, 83_486_722),
    "fnet-large": (32000, 238_031_106),
    "bert-base": (30522, 110_106_428),
    "bert-large": (30522, 336_226_108),
}


@pytest.mark.parametrize(("size", "expected"), PUBLISHED.items())
def test_t5_has_the_published_number_of_parameters(size: str, expected: int) -> None:
    config = ModelConfig(**expand_size({"size": size, "architecture": "t5", "vocab_size": 32128}))
    assert num_parameters(config) == expected


@pytest.mark.parametrize("size", OTHERS)
def test_gpt2_fnet_and_bert_have_the_published_number_of_parameters(size: str) -> None:
    vocab_size, expected = OTHERS[size]
    section = {"size": size, "architecture": size.partition("-")[0], "vocab_size": vocab_size, "vocab_multiple": 1}
    assert num_parameters(ModelConfig(**expand_size(section))) == expected


@pytest.mark.parametrize("size", ["fnet-tiny", "fnet-small", "nano"])
@pytest.mark.parametrize("architecture", ["fnet", "bert"])
def test_small_encoders_have_as_many_parameters_as_in_transformers(size: str, architecture: str) -> None:
    section = {"size": size, "architecture": architecture, "vocab_size": 32000, "vocab_multiple": 1}
    config = ModelConfig(**expand_size(section))
    values = their_config(config)
    kind = getattr(transformers, values.pop("architectures")[0])
    with torch.device("meta"):
        theirs = kind(kind.config_class(**values))
    assert num_parameters(config) == sum(parameter.numel() for parameter in theirs.parameters())


# Sizes that transformers' classes have as their defaults, and the keys in which we differ on purpose.
DEFAULT_SIZES = {"t5-small": "t5", "gpt2": "gpt2", "bert-base": "bert", "fnet-base": "fnet"}
NOT_COMPARED = {"architectures", "model_type", "vocab_size", "torch_dtype", "dtype"}
NO_DROPOUT = {"dropout_rate", "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout_prob", "attention_probs_dropout_prob"}


@pytest.mark.parametrize("size", DEFAULT_SIZES)
def test_defaults_are_those_of_transformers(size: str) -> None:
    """Every key that both have: norms' epsilons, buckets, distances, initial deviations, activations, dimensions."""
    config = ModelConfig(**expand_size({"size": size, "architecture": DEFAULT_SIZES[size], "vocab_size": 32128}))
    ours = their_config(config)
    config_class = getattr(transformers, ours["architectures"][0]).config_class
    read, theirs = config_class(**ours).to_dict(), config_class().to_dict()
    compared = {name for name in ours if name in theirs and name not in NOT_COMPARED | NO_DROPOUT and theirs[name] is not None}
    assert len(compared) >= 8
    assert {name: read[name] for name in compared} == {name: theirs[name] for name in compared}


def test_defaults_of_the_hybrid_are_those_of_t5() -> None:
    """The keys that no size gives."""
    hybrid, theirs = ModelConfig(**expand_size({"size": "nano"})), transformers.T5Config()
    assert hybrid.norm_eps == theirs.layer_norm_epsilon
    assert hybrid.num_buckets == theirs.relative_attention_num_buckets
    assert hybrid.max_distance == theirs.relative_attention_max_distance
    assert hybrid.tie_embeddings == theirs.tie_word_embeddings
    v11 = transformers.T5Config(feed_forward_proj="gated-gelu")  # google/t5-v1_1-*
    assert (hybrid.feed_forward, v11.is_gated_act, v11.dense_act_fn) == ("gated_gelu", True, "gelu_new")
    assert (hybrid.norm, hybrid.norm_position, hybrid.bias, hybrid.position, hybrid.scale_scores) == (
        *("rms", "pre", False, "relative", False),
    )


def test_the_hybrid_lacks_exactly_the_encoder_attention() -> None:
    section = {"size": "t5-v1.1-base", "vocab_size": 32128}
    with torch.device("meta"):
        model = Seq2Seq(ModelConfig(**expand_size(section)))
    projections = 4 * 768 * 768 * 12
    bias_table = 32 * 12
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED["t5-v1.1-base"] - projections - bias_table


# HybridAttentionLayout of google-research/f_net, layer numbers computed by hand from its definition
@pytest.mark.parametrize(
    ("layout", "attending"),
    [("bottom", [0, 1]), ("middle", [5, 6]), ("mixed", [0, 6]), ("top", [10, 11])],
)
def test_layouts_place_attention_as_in_fnet(layout: str, attending: list[int]) -> None:
    section = {**SIZES["t5-base"], "num_attention_layers": 2, "attention_layout": layout}
    config = ModelConfig(**section)
    assert [layer for layer in range(12) if config.encoder_layer_attends(layer)] == attending


def test_unknown_size_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="t5-large"):
        expand_size({"size": "t5-huge"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("d_model", 0),
        ("num_attention_layers", 7),
        ("num_buckets", 5),
        ("max_distance", 9),
        ("vocab_size", -1),
        ("dropout", 1.0),
        ("mixing", "wavelet"),
        ("attention_layout", "sideways"),
        ("norm", "batch"),
        ("position", "sinusoidal"),
        ("fourier_backend", "quantum"),
        ("feed_forward", "tanh"),
        ("heads", ["mlm", "mlm"]),
        ("num_encoder_layers", 0),
        ("encoder_d_ff", -1),
    ],
)
def test_errors_of_impossible_values_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"model.{key}"):
        ModelConfig(**expand_size({"size": "t5-small", key: value}))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"size": "t5-small", "architecture": "gpt2", "num_heads": 7}, r"model\.num_heads 7 x d_kv 64 is 448.*d_model \(512\)"),
        (
            {"size": "nano", "architecture": "bert", "num_decoder_layers": 2},
            r"model\.num_decoder_layers is 2: bert has no such",
        ),
        ({"size": "gpt2", "architecture": "fnet_t5"}, r"model\.num_encoder_layers is 0.*'gpt2' may belong to another"),
        ({"size": "nano", "position": "rope", "d_kv": 15}, r"model\.d_kv is 15.*even"),
        ({"size": "nano", "architecture": "t5", "encoder_block": "fnet"}, r"model\.encoder_block is 'fnet'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_errors_of_impossible_combinations_state_the_reason(section: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**expand_size(section))
