"""Recipes of nano models that train in seconds on rows of 16 + 8 tokens, and run folders made from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from data_prep.files import sha256_file
from data_prep.tokenization.tokenizer import load_tokenizer, num_ids
from models.architectures.build import build_model
from models.architectures.single_process import SingleProcessModel
from models.config import expand_size
from models.layers.initialization import initialize
from pipeline.config import RunConfig

Section = dict[str, Any]


def nano_recipe(dataset: Path, **sections: Section) -> dict[str, Section]:
    """An unresolved recipe: fp32, steps of 8 rows, every step logged, no tracking. `sections` override keys of sections."""
    recipe: dict[str, Section] = {
        "model": {"size": "nano", "vocab_size": num_ids(load_tokenizer(dataset / "tokenizer.json"))},
        "data": {"path": str(dataset), "encoder_length": 16, "decoder_length": 8, "validation_rows": 8},
        "train": {"global_batch_size": 8, "micro_batch_size": 2, "precision": "fp32", "log_every": 1},
        "tracking": {"enabled": False},
    }
    return recipe | {name: recipe.get(name, {}) | section for name, section in sections.items()}


def write_run(run: Path, recipe: dict[str, Section]) -> Path:
    """Create a run folder with the resolved recipe, as a worker expects it."""
    config = RunConfig.model_validate({**recipe, "model": expand_size(recipe["model"])})
    run.mkdir(parents=True)
    (run / "config.json").write_text(config.model_dump_json())
    return run


def random_model(config: RunConfig) -> SingleProcessModel:
    """The model of a run with random weights, always the same."""
    model = build_model(config.model)
    initialize(model, seed=5)
    return model.eval()


def write_checkpoint(folder: Path, config: RunConfig) -> None:
    """A complete checkpoint of the weights of `random_model`, and the tokenizer."""
    checkpoint = folder / "checkpoints" / "step_00000001"
    (checkpoint / "weights").mkdir(parents=True)
    (checkpoint / "state").mkdir()
    weights = {name: value.contiguous() for name, value in random_model(config).state_dict().items()}
    save_file(weights, checkpoint / "weights" / "model.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "model.safetensors")}
    (checkpoint / "weights" / "model.safetensors.index.json").write_text(json.dumps(index))
    sums = {f"weights/{path.name}": sha256_file(path) for path in (checkpoint / "weights").iterdir()}
    (checkpoint / "state" / "manifest.json").write_text(json.dumps({"sha256": sums}))
    (folder / "tokenizer.json").write_bytes((config.data.path / "tokenizer.json").read_bytes())
