"""Every architecture compiles to one graph with torch.compile and gives equal results when compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.architectures.build import build_model
from models.architectures.encoder_only import encoder_inputs
from models.architectures.pieces import Inputs, TextInputs
from models.config import ModelConfig, expand_size
from models.layers.initialization import initialize

SECTIONS: list[dict[str, Any]] = [
    {"num_attention_layers": 1},
    {"architecture": "t5"},
    {"architecture": "gpt2"},
    {"architecture": "prefix_decoder"},
    {"architecture": "bert"},
    {"architecture": "fnet", "fourier_backend": "auto"},
    {"mixing": "hartley", "fourier_backend": "folded", "decoder_mixing": "causal_fourier"},
]


@pytest.mark.parametrize(
    "section",
    [pytest.param(section, marks=[pytest.mark.slow] if index > 1 else []) for index, section in enumerate(SECTIONS)],
    ids=lambda section: "-".join(map(str, section.values())),
)
def test_a_model_is_one_graph(section: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = ModelConfig(**expand_size({"size": "nano", "vocab_size": 128, **section}))
    model = build_model(config)
    initialize(model, seed=0)
    ids = torch.randint(3, 128, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    inputs: Any = Inputs(ids, mask, ids[:, :5])
    if config.is_decoder_only:
        inputs = TextInputs(ids, mask)
    elif config.is_encoder_only:
        inputs = encoder_inputs(ids, mask)
    outputs = [run(inputs) for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True))]
    eager, compiled = ((out.mlm if config.is_encoder_only else out) for out in outputs)
    torch.testing.assert_close(compiled, eager)
    gradients = [torch.autograd.grad(out.sum(), list(model.parameters()), allow_unused=True) for out in (eager, compiled)]
    for name, ours, theirs in zip(dict(model.named_parameters()), *gradients, strict=True):
        if ours is None:  # a head that the sum does not use; the compiled graph returns zeros
            assert theirs is None or not theirs.any(), name
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
