"""Costs of decoding compared with torch's counts during a session, and with the bytes of its tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.architectures.build import build_model
from models.config import ModelConfig, expand_size
from models.cost.flops import fourier_mixing
from models.cost.inference_cost import cache_bytes, first_token_flops, own_keys, step_bytes, step_parameters, token_flops
from models.generation.decode import DecodingSession, prepare_prompts
from models.layers.initialization import initialize

PREFIX, NEW, BATCH = 24, 6, 3

SECTIONS: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "hybrid, mixed, wide": {"num_attention_layers": 1, "encoder_d_ff": 192},
    "t5": {"architecture": "t5", "tie_embeddings": False, "feed_forward": "relu"},
    "heads wider than the model": {"architecture": "t5", "d_kv": 32},
    "gpt2": {"architecture": "gpt2", "max_length": 64},
    "prefix decoder": {"architecture": "prefix_decoder"},
}


def config_of(name: str) -> ModelConfig:
    return ModelConfig(**expand_size({"size": "nano", "vocab_size": 250, **SECTIONS[name]}))


@pytest.mark.parametrize("name", SECTIONS)
@torch.no_grad()
def test_flops_and_caches_equal_those_of_a_session(name: str) -> None:
    config = config_of(name)
    model = build_model(config)
    initialize(model, seed=0)
    ids, mask = prepare_prompts(model, [[5] * PREFIX] * BATCH, PREFIX, 0)
    mixing = sum(not config.encoder_layer_attends(layer) for layer in range(config.num_encoder_layers))
    transforms = mixing * fourier_mixing(PREFIX, config.d_model)  # torch's counter does not count FFTs
    # unfused products, because torch does not count the CPU's fused kernel
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        session = DecodingSession(model, ids, mask, 0)
    assert first_token_flops(config, PREFIX) == pytest.approx(counter.get_total_flops() / BATCH + transforms, rel=1e-12)
    counted = []
    for _ in range(2, NEW + 1):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            session.write(session.logits.argmax(-1))
        counted.append(counter.get_total_flops() / BATCH)
    assert token_flops(config, PREFIX, NEW) == pytest.approx(sum(counted) / len(counted), rel=1e-12)

    expected = cache_bytes(config, PREFIX, NEW, BATCH, bytes_per_value=4)
    own = [tensor for cache in session.caches for tensor in cache.self_keys_values or ()]
    cross = [tensor for cache in session.caches for tensor in cache.cross_keys_values or ()]
    assert expected.own == sum(tensor.nbytes for tensor in own)
    assert expected.cross == sum(tensor.nbytes for tensor in cross)
    assert own[0].shape[2] == own_keys(config, PREFIX, NEW)


@pytest.mark.parametrize("name", SECTIONS)
@torch.no_grad()
def test_parameters_read_per_token_equal_those_that_change_its_logits(name: str) -> None:
    """Each parameter is set to NaN in turn. The next token's logits become NaN exactly if it reads the parameter."""
    config = config_of(name)
    model = build_model(config)
    initialize(model, seed=0)
    ids, mask = prepare_prompts(model, [[5] * PREFIX], PREFIX, 0)
    read = 0
    for parameter_name, parameter in model.named_parameters():
        session = DecodingSession(model, ids, mask, 0)
        kept = parameter.clone()
        parameter.fill_(torch.nan)
        session.write(torch.zeros(1, dtype=torch.int64))
        if session.logits.isnan().any() and _is_counted(parameter_name, config):
            read += parameter.numel()
        parameter.copy_(kept)
    assert step_parameters(config) == read
    caches = [cache_bytes(config, PREFIX, count, BATCH, 2).total for count in range(2, NEW + 1)]
    assert step_bytes(config, PREFIX, NEW, BATCH, 2) == pytest.approx(2 * read + sum(caches) / len(caches))


def _is_counted(name: str, config: ModelConfig) -> bool:
    """False for tables of which a token reads only one row."""
    return not name.startswith(("relative_bias", "decoder.input")) and (
        name != "embedding.tokens.weight" or config.tie_embeddings
    )


def test_models_that_do_not_generate_text_have_no_cost() -> None:
    encoder = ModelConfig(**expand_size({"size": "fnet-tiny", "architecture": "fnet", "vocab_size": 100}))
    with pytest.raises(ValueError, match="'fnet'"):
        first_token_flops(encoder, 8)
    mixed = ModelConfig(**expand_size({"size": "nano", "decoder_mixing": "causal_fourier", "vocab_size": 100}))
    with pytest.raises(ValueError, match=r"model\.decoder_mixing"):
        token_flops(mixed, 8, 4)
