"""Small exported folders, loaded by the auto classes of transformers from a cache of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import dynamic_module_utils

from data_prep.tokenization.tokenizer import save_tokenizer, train_tokenizer
from models.architectures.build import build_model
from models.config import ModelConfig, expand_size
from models.layers.initialization import initialize
from pipeline.huggingface.export import export_model
from pipeline.huggingface.model_card import model_card

LENGTH, VOCABULARY = 24, 380
HYBRIDS: dict[str, dict[str, Any]] = {
    "tied": {"num_attention_layers": 1},
    "untied": {"num_encoder_layers": 3, "tie_embeddings": False},
    "FNet's encoder": {"encoder_block": "fnet", "feed_forward": "gelu_tanh", "init_std": 0.1, "max_length": 40},
}
"""Each with what the others do not have: an encoder layer with attention, a head of its own, FNet's own blocks."""

Load = Callable[..., Any]


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    save_tokenizer(train_tokenizer(["the king told a story of the sea that he could not command"] * 20, VOCABULARY), path)
    return path


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Callable[[dict[str, Any]], Path]:
    """The folder of an exported nano model with these settings; made once."""
    made: dict[str, Path] = {}

    def export(section: dict[str, Any]) -> Path:
        key = repr(section)
        if key not in made:
            config = ModelConfig(**expand_size({"size": "nano", "vocab_size": VOCABULARY, **section}))
            model = build_model(config)
            initialize(model, seed=5)
            made[key] = tmp_path_factory.mktemp("exported") / "model"
            card = model_card(config, "nano", {"data": "a story"})
            export_model(config, model.state_dict(), made[key], tokenizer=tokenizer_file, card=card, encoder_length=LENGTH)
        return made[key]

    return export


@pytest.fixture(scope="session")
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("modules")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, modules_cache: Path) -> Load:
    """`load(folder, auto, **options)`: a model in evaluation mode, by an auto class of transformers."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(modules_cache))
    monkeypatch.syspath_prepend(str(modules_cache))

    def load_model(folder: Path, auto: str = "AutoModelForSeq2SeqLM", **options: Any) -> Any:
        model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, **options)
        return model if isinstance(model, tuple) else model.eval()

    return load_model


@pytest.fixture(params=list(HYBRIDS))
def folder(request: pytest.FixtureRequest, exported: Callable[[dict[str, Any]], Path]) -> Path:
    """An exported hybrid, one of each kind."""
    return exported(HYBRIDS[request.param])


@pytest.fixture
def tied_folder(exported: Callable[[dict[str, Any]], Path]) -> Path:
    return exported(HYBRIDS["tied"])


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three rows of 9 tokens, and decoder inputs of 7."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, VOCABULARY, (3, 16), generator=generator)
    return {"input_ids": ids[:, :9], "decoder_input_ids": ids[:, 9:]}
