"""The parts of a block compared with torch and transformers, and how often score biases are computed."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from models.architectures.build import build_model
from models.architectures.encoder_only import encoder_inputs
from models.architectures.pieces import Inputs, TextInputs
from models.config import ModelConfig, expand_size
from models.layers import attention_bias
from models.layers.factory import TorchLayers
from models.layers.feed_forward import FeedForward
from models.layers.initialization import initialize
from models.layers.norm import build_norm
from models.layers.position import relative_bias, relative_bucket, rotate


def config(**section: Any) -> ModelConfig:
    return ModelConfig(**expand_size({"size": "nano", "vocab_size": 128, **section}))


def test_rotations_equal_llama() -> None:
    query, key = torch.randn(2, 2, 4, 9, 16)
    positions = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10, 11], [0, 0, 0, 1, 2, 3, 4, 5, 6]])
    scaling = {"rope_type": "default", "rope_theta": 10000.0}
    theirs = LlamaRotaryEmbedding(
        SimpleNamespace(  # type: ignore[arg-type]
            rope_parameters=scaling,
            max_position_embeddings=64,
            head_dim=16,
            hidden_size=64,
            num_attention_heads=4,
            standardize_rope_params=lambda: None,
        )
    )
    expected, _ = apply_rotary_pos_emb(query, key, *theirs(query, positions))
    torch.testing.assert_close(rotate(query, positions, 10000.0), expected)


@pytest.mark.parametrize(("kind", "theirs"), [("rms", nn.RMSNorm), ("layer", nn.LayerNorm)])
def test_norms_equal_torch(kind: Any, theirs: Any) -> None:
    ours, other = build_norm(kind, 32, 1e-6), theirs(32, eps=1e-6)
    x = torch.randn(3, 5, 32) * 7 + 2
    torch.testing.assert_close(ours(x), other(x))
    assert ours.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


def test_swiglu_is_silu_of_one_product_times_another() -> None:
    section = config(feed_forward="swiglu", bias=True)
    layer = FeedForward(section, section.decoder_block_config, TorchLayers())
    initialize(layer, seed=0)
    x = torch.randn(2, 3, 64)
    assert layer.gate is not None
    gate, up = (x @ part.weight.T + part.bias for part in (layer.gate, layer.up))
    expected = (gate * gate.sigmoid() * up) @ layer.down.weight.T + layer.down.bias
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (1, 9), (3, 9), (40, 40)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_windowed_bias_equals_a_table_lookup_for_every_pair(queries: int, keys: int, bidirectional: bool) -> None:
    table = torch.randn(32, 4, dtype=torch.float64, requires_grad=True)
    found = relative_bias(table, queries, keys, bidirectional=bidirectional, max_distance=20)
    distance = torch.arange(keys)[None, :] - torch.arange(keys - queries, keys)[:, None]
    bucket = relative_bucket(distance, bidirectional=bidirectional, num_buckets=32, max_distance=20)
    expected = table[bucket].permute(2, 0, 1)[None]
    assert torch.equal(found, expected)
    weights = torch.randn(found.shape, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((bias * weights).sum(), table)[0] for bias in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Tensor]]:
    """Weak references to every relative bias computed from a table."""
    result: list[weakref.ref[Tensor]] = []

    def recorded(*arguments: Any, **options: Any) -> Tensor:
        bias = relative_bias(*arguments, **options)
        result.append(weakref.ref(bias))
        return bias

    monkeypatch.setattr(attention_bias, "relative_bias", recorded)
    return result


@pytest.mark.parametrize(
    ("section", "tables"),
    [
        ({"architecture": "t5"}, 2),
        ({"architecture": "fnet_t5"}, 1),
        ({"architecture": "fnet_t5", "num_attention_layers": 2}, 2),
        ({"architecture": "prefix_decoder"}, 1),
        ({"architecture": "bert", "position": "relative"}, 1),
        ({"architecture": "fnet_t5", "decoder_mixing": "causal_fourier"}, 0),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_a_bias_is_computed_once_per_pass_and_then_freed(
    section: dict[str, Any], tables: int, made: list[weakref.ref[Tensor]]
) -> None:
    model = build_model(config(**section)).eval()
    initialize(model, seed=0)
    ids = torch.randint(3, 128, (2, 9))
    mask = torch.ones_like(ids)
    inputs = {"prefix_decoder": TextInputs(ids, mask), "bert": encoder_inputs(ids, mask)}
    given: Any = inputs.get(section["architecture"], Inputs(ids, mask, ids[:, :5]))
    output = model(given)
    assert len(made) == tables
    mask[1, 6:] = 0  # in place, as a pipeline reuses its buffers
    changed = model(given)
    assert len(made) == 2 * tables
    real = model(type(given)(*(field.clone() for field in given)))
    del output
    gc.collect()
    assert all(bias() is None for bias in made[:tables])
    if tables:
        ours, theirs = (out.mlm if model.config.is_encoder_only else out for out in (changed, real))
        assert torch.equal(ours, theirs)


def test_a_decoding_step_computes_one_bias_for_all_layers(made: list[weakref.ref[Tensor]]) -> None:
    model = build_model(config(architecture="t5")).eval()
    initialize(model, seed=0)
    ids = torch.randint(3, 128, (2, 9))
    encoded = model.encode(ids, torch.ones_like(ids))
    made.clear()
    for step in range(3):
        model.decode(ids[:, step : step + 1], encoded)
    assert len(made) == 3


@pytest.mark.parametrize(
    "section",
    [
        {"architecture": "bert"},
        {"architecture": "bert", "position": "relative"},
        {"architecture": "fnet"},
        {"architecture": "fnet", "mixing": "linear", "num_attention_layers": 1},
    ],
    ids=lambda section: "-".join(map(str, section.values())),
)
def test_encoder_outputs_do_not_depend_on_padding(section: dict[str, Any]) -> None:
    model = build_model(config(**section, max_length=16)).eval()
    initialize(model, seed=0)
    ids = torch.randint(3, 128, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    other = torch.where(mask.bool(), ids, 5)
    ours, theirs = (model(encoder_inputs(x, mask)) for x in (ids, other))
    torch.testing.assert_close(ours.mlm[mask.bool()], theirs.mlm[mask.bool()])
    alone = model(encoder_inputs(ids[1:], mask[1:]))
    torch.testing.assert_close(alone.mlm[0, :9], ours.mlm[1, :9], rtol=1e-4, atol=1e-5)


def test_documents_of_a_packed_row_are_isolated_in_every_encoder_layer() -> None:
    model = build_model(config(mix_within_documents=True, num_attention_layers=1, position="none")).eval()
    initialize(model, seed=0)
    documents = torch.tensor([[1] * 6 + [2] * 7 + [0] * 3])
    embedded = model.get_submodule("embedding").tokens.weight
    ids = torch.randint(3, 128, (1, 16))
    state = model.run_pieces(Inputs(ids, documents, ids[:, :1]), stop="decoder.layers.0")
    (gradient,) = torch.autograd.grad(state.encoder_hidden[0, :6].square().sum(), embedded)
    reached = gradient.abs().sum(1) > 0
    inside: set[int] = set(ids[0, :6].tolist())
    assert {int(token) for token in reached.nonzero()[:, 0]} <= inside


def test_logits_of_only_predicted_positions_are_the_same() -> None:
    model = build_model(config(architecture="bert")).eval()
    initialize(model, seed=0)
    ids = torch.randint(3, 128, (2, 16))
    positions = torch.tensor([[1, 5, 9], [0, 2, 15]])
    whole: Tensor = model(encoder_inputs(ids)).mlm
    some = model(encoder_inputs(ids, mlm_positions=positions)).mlm
    torch.testing.assert_close(some, torch.stack([whole[row, positions[row]] for row in range(2)]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["fnet_t5", "t5"])
def test_inference_mode_computes_the_same(architecture: str) -> None:
    model = build_model(config(architecture=architecture)).eval()
    initialize(model, seed=0)
    ids = torch.randint(3, 128, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    with torch.inference_mode():
        found = model(Inputs(ids, mask, ids[:, :5]))
    torch.testing.assert_close(found, model(Inputs(ids, mask, ids[:, :5])).detach())
