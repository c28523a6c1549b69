"""Closed forms of FLOPs and parameters compared with torch's counts for each architecture, and with an independent table."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.architectures.build import build_model
from models.architectures.encoder_only import encoder_inputs
from models.architectures.pieces import Inputs, TextInputs, executed_flops, forward_flops, needed_flops, pieces
from models.config import ModelConfig, expand_size
from models.cost.flops import Lengths, encoder_mixing
from models.cost.parameters import num_parameters, parameter_counts
from models.layers.factory import TorchLayers
from models.layers.initialization import initialize

N, M = 48, 20

SECTIONS: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "relu, one attention layer": {"feed_forward": "relu", "num_attention_layers": 1},
    "wide encoder": {"encoder_d_ff": 192},
    "hartley": {"mixing": "hartley"},
    "linear": {"mixing": "linear"},
    "random": {"mixing": "random"},
    "identity": {"mixing": "identity"},
    "causal fourier encoder": {"mixing": "causal_fourier"},
    "causal fourier decoder": {"decoder_mixing": "causal_fourier"},
    "learnt positions, layer norm, biases": {"position": "learned", "norm": "layer", "bias": True, "norm_position": "post"},
    "rope, swiglu": {"position": "rope", "feed_forward": "swiglu", "mixing": "attention"},
    "fnet encoder": {"encoder_block": "fnet"},
    "t5": {"architecture": "t5"},
    "hybrid, learnt encoder positions": {"encoder_positions": "learned", "max_length": 50},
    "one attention layer, learnt encoder positions": {"num_attention_layers": 1, "encoder_positions": "learned"},
    "t5, learnt encoder positions": {"architecture": "t5", "encoder_positions": "learned"},
    "t5, no encoder positions": {"architecture": "t5", "encoder_positions": "none"},
    "t5 untied": {"architecture": "t5", "tie_embeddings": False},
    "gpt2": {"architecture": "gpt2"},
    "prefix decoder": {"architecture": "prefix_decoder"},
    "bert": {"architecture": "bert"},
    "bert, every head": {"architecture": "bert", "heads": ("mlm", "order", "sequence", "token", "answer"), "num_labels": 5},
    "bert features": {"architecture": "bert", "heads": ()},
    "fnet": {"architecture": "fnet"},
    "fnet mixed": {"architecture": "fnet", "num_attention_layers": 1},
}


def transforms(config: ModelConfig) -> float:
    """FLOPs of the FFTs, which torch's counter does not count."""
    layers = sum(not config.encoder_layer_attends(layer) for layer in range(config.num_encoder_layers))
    missed = 0.0
    if config.mixing in ("fourier", "hartley"):
        missed += layers * 2.5 * N * config.d_model * (math.log2(N) + math.log2(config.d_model))
    if config.mixing == "causal_fourier":
        missed += layers * 2.5 * N * config.d_model * math.log2(config.d_model)
    if config.decoder_mixing == "causal_fourier":
        missed += config.num_decoder_layers * 2.5 * M * config.d_model * math.log2(config.d_model)
    return missed


@pytest.mark.parametrize("name", SECTIONS)
def test_flops_equal_torch_counts(name: str) -> None:
    config = ModelConfig(**expand_size({"size": "nano", "vocab_size": 250, **SECTIONS[name]}))
    predicted = 7 if name == "bert, every head" else 0
    with torch.device("meta"):
        model = build_model(config)
        ids, target_ids = torch.zeros(1, N, dtype=torch.int64), torch.zeros(1, M, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            if config.is_encoder_only:
                model(encoder_inputs(ids, mlm_positions=ids[:, :predicted]))
                lengths = Lengths(N, predicted)
            elif config.is_decoder_only:
                model(TextInputs(ids, torch.ones_like(ids)))
                lengths = Lengths(N - M, M)
            else:
                model(Inputs(ids, torch.ones_like(ids), target_ids))
                lengths = Lengths(N, M)
    found = forward_flops(config, TorchLayers(), lengths)
    assert found == pytest.approx(counter.get_total_flops() + transforms(config), rel=1e-12)


NEEDED = ("hybrid", "t5", "identity", "causal fourier decoder", "gpt2", "prefix decoder", "t5, no encoder positions")


def read_places(config: ModelConfig, prefix: int, suffix: int) -> int:
    """(place, other place) pairs of the decoder in which the output of the one changes with the token at the other."""
    torch.manual_seed(0)
    model = build_model(config).eval()
    initialize(model, seed=0)
    total = prefix + suffix if config.is_decoder_only else suffix
    ids, encoder_ids = torch.randint(3, 250, (1, total)), torch.randint(3, 250, (1, prefix))
    mask = torch.ones_like(ids)
    if config.architecture == "prefix_decoder":
        mask[:, : prefix + 1] = 2  # the start token, then the prefix

    def logits(decoder_ids: torch.Tensor) -> torch.Tensor:
        if config.is_decoder_only:
            return model(TextInputs(decoder_ids, mask))[0]
        return model(Inputs(encoder_ids, torch.ones_like(encoder_ids), decoder_ids))[0]

    before, found = logits(ids), 0
    for place in range(total):
        changed = ids.clone()
        changed[0, place] = 2
        found += int((logits(changed) != before).any(1).sum())
    return found


@torch.no_grad()
@pytest.mark.parametrize("name", NEEDED)
def test_needed_flops_are_those_of_places_that_are_read_and_have_a_loss(name: str) -> None:
    """Pairs are found by changing tokens of a model with one decoder layer; the head is a matrix product that torch counts."""
    prefix, suffix, losses = 7, 5, 4
    config = ModelConfig(**expand_size({"size": "nano", "vocab_size": 250, "num_decoder_layers": 1, **SECTIONS[name]}))
    lengths = Lengths(prefix, suffix)
    total = prefix + suffix if config.is_decoder_only else suffix
    pairs = read_places(config, prefix, suffix)
    assert total < pairs < total**2
    width = config.inner_dim if config.decoder_mixing == "attention" else config.d_model // 2 + 1
    with FlopCounterMode(display=False) as counter:
        torch.zeros(total - losses, config.d_model) @ torch.zeros(config.d_model, config.padded_vocab_size)
    whole = forward_flops(config, TorchLayers(), lengths)
    expected = whole - counter.get_total_flops() - 4 * (total**2 - pairs) * width
    assert needed_flops(config, TorchLayers(), lengths, losses) == pytest.approx(expected, rel=1e-12)


def test_a_causal_encoder_needs_half_of_its_products_and_an_encoder_alone_all() -> None:
    lengths = Lengths(N, M)
    for name, layers in (("causal fourier encoder", 2), ("fnet", 0), ("bert", 0)):
        config = ModelConfig(**expand_size({"size": "nano", "vocab_size": 250, "num_encoder_layers": 2, **SECTIONS[name]}))
        decoder = 0 if config.is_encoder_only else 4 * config.num_decoder_layers * config.inner_dim * M * (M - 1) / 2
        encoder = 4 * layers * (config.d_model // 2 + 1) * N * (N - 1) / 2
        found = needed_flops(config, TorchLayers(), lengths, M)
        assert found == pytest.approx(forward_flops(config, TorchLayers(), lengths) - decoder - encoder, rel=1e-12)


@pytest.mark.parametrize("name", SECTIONS)
def test_parameters_of_every_piece_equal_its_module(name: str) -> None:
    config = ModelConfig(**expand_size({"size": "nano", "vocab_size": 250, **SECTIONS[name]}))
    found = {}
    with torch.device("meta"):
        for piece in pieces(config, TorchLayers()):
            if piece.tied_to is None:
                found[piece.name] = sum(parameter.numel() for parameter in piece.build(TorchLayers()).parameters())
        whole = sum(parameter.numel() for parameter in build_model(config).parameters())
    assert {name: count for name, count in found.items() if count} == parameter_counts(config)
    assert num_parameters(config) == whole


@pytest.mark.parametrize("backend", ["matmul", "folded"])
def test_executed_flops_equal_torch_counts(backend: str) -> None:
    config = ModelConfig(**expand_size({"size": "nano", "vocab_size": 250, "fourier_backend": backend}))
    with torch.device("meta"):
        model = build_model(config)
        ids = torch.zeros(1, N, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            model(Inputs(ids, torch.ones_like(ids), ids[:, :M]))
    assert executed_flops(config, TorchLayers(), Lengths(N, M)) == pytest.approx(counter.get_total_flops(), rel=1e-12)


# GFLOP a sequence at span-corruption lengths, T5 v1.1 with its vocabulary. That table counts causal attention half and the
# folded transform, so both numbers are converted: + 2 M² A per decoder layer, and the transform by the FFT's formula.
@pytest.mark.parametrize(
    ("size", "n", "m", "t5", "hybrid"),
    [
        ("t5-v1.1-small", 512, 114, 35.3, 26.7),
        ("t5-v1.1-base", 1024, 229, 307.9, 219.7),
        ("t5-v1.1-large", 512, 114, 488.6, 369.4),
    ],
)
def test_models_agree_with_the_independent_table(size: str, n: int, m: int, t5: float, hybrid: float) -> None:
    for architecture, expected in (("t5", t5), ("fnet_t5", hybrid)):
        config = ModelConfig(**expand_size({"size": size, "architecture": architecture, "vocab_size": 32128}))
        found = forward_flops(config, TorchLayers(), Lengths(n, m))
        found -= 2 * m**2 * config.inner_dim * config.num_decoder_layers
        if architecture == "fnet_t5":
            d = config.d_model
            found += config.num_encoder_layers * n * d * ((n + d) / 2 - 2.5 * (math.log2(n) + math.log2(d)))
        assert found / 1e9 == pytest.approx(expected, rel=0.005)


def test_a_mixing_without_a_formula_is_refused() -> None:
    config = ModelConfig(**expand_size({"size": "nano", "architecture": "fnet_t5", "vocab_size": 250}))
    object.__setattr__(config, "mixing", "unknown")
    with pytest.raises(ValueError, match=r"model\.mixing 'unknown' has no FLOPs: add it to encoder_mixing"):
        encoder_mixing(config, 0, Lengths(16, 8))
