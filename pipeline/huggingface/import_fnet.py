"""An FNet checkpoint (google/fnet-base's format) as the encoder of a hybrid. Every tensor is reported as used, resized or
skipped.

The hybrid's encoder is FNet's own block (`encoder_block: fnet`), so it computes what the checkpoint computed. Its decoder
starts fresh.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from data_prep.files import write_json_atomically
from models.architectures.seq2seq import Seq2Seq
from models.config import ModelConfig
from models.huggingface import our_config
from models.huggingface.fnet import encoder_entries
from models.layers.initialization import initialize
from pipeline.huggingface.folder import read_config, read_tensors
from pipeline.run_folder import INDEX, WEIGHTS

_FILE = "model-00001-of-00001.safetensors"
MODEL, REPORT = "model.json", "import_report.json"


@dataclass(kw_only=True)
class ImportReport:
    """Every tensor of the checkpoint and of the new model, each in exactly one of the lists."""

    used: dict[str, str] = field(default_factory=dict)
    """Name in the checkpoint → name in the model: used as it is."""
    resized: dict[str, str] = field(default_factory=dict)
    """Name in the checkpoint → name in the model, and how the number of rows was changed."""
    left: dict[str, str] = field(default_factory=dict)
    """Name in the checkpoint → why it was skipped."""
    fresh: list[str] = field(default_factory=list)
    """Names in the model without a tensor in the checkpoint: initial values."""


def hybrid_config(
    theirs: ModelConfig, *, vocab_size: int | None, max_length: int | None, decoder_layers: int | None
) -> ModelConfig:
    """The hybrid with this FNet as its encoder. None keeps the checkpoint's value (decoder layers: that of the encoder)."""
    return ModelConfig(
        architecture="fnet_t5",
        encoder_block="fnet",
        d_model=theirs.d_model,
        d_ff=theirs.d_ff,
        d_kv=theirs.d_kv,
        num_heads=theirs.num_heads,
        num_encoder_layers=theirs.num_encoder_layers,
        num_decoder_layers=decoder_layers or theirs.num_encoder_layers,
        vocab_size=vocab_size or theirs.vocab_size,
        max_length=max_length or theirs.max_length,
        feed_forward="gelu_tanh",
        # a shared table of FNet's scale: the tied head must not shrink it as it would shrink T5's N(0, 1)
        init_std=theirs.init_std,
    )


def import_fnet(
    folder: Path,
    output: Path,
    *,
    vocab_size: int | None = None,
    max_length: int | None = None,
    decoder_layers: int | None = None,
    seed: int = 0,
) -> ImportReport:
    """Write `output` with weights by canonical name, model.json and import_report.json.

    Rows of the vocabulary, positions and segment types are cut, or filled with initial values, if the sizes differ. Raises
    ValueError if the folder is no FNet, or if its other dimensions do not fit its config.json.
    """
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} exists and is not empty: give a new folder")
    values = read_config(folder)
    if values.get("model_type") != "fnet":
        raise ValueError(
            f"{folder}/config.json has model_type {values.get('model_type')!r}: only FNet checkpoints are imported"
        )
    config = hybrid_config(our_config(values), vocab_size=vocab_size, max_length=max_length, decoder_layers=decoder_layers)
    model = Seq2Seq(config)
    initialize(model, seed)
    weights = dict(model.state_dict())
    report = _take(config, _with_prefix(read_tensors(folder)), weights)
    part = output / WEIGHTS
    part.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, part / _FILE)
    size = (part / _FILE).stat().st_size
    write_json_atomically(part / INDEX, {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(weights, _FILE)})
    write_json_atomically(output / MODEL, _changed(config))
    write_json_atomically(output / REPORT, asdict(report))
    return report


def _take(config: ModelConfig, theirs: Mapping[str, Tensor], weights: dict[str, Tensor]) -> ImportReport:
    report, entries = ImportReport(), encoder_entries(config)
    for one in entries:
        (ours,) = one.ours
        if one.theirs not in theirs:
            raise ValueError(
                f"the checkpoint has no {one.theirs}: it is no FNet of {config.num_encoder_layers} layers, or incomplete"
            )
        value, old = theirs[one.theirs], weights[ours]
        if value.shape == old.shape:
            weights[ours] = value
            report.used[one.theirs] = ours
            continue
        by_row = one.vocabulary or ours.startswith(("encoder.input.positions", "encoder.input.types"))
        if not by_row or value.shape[1:] != old.shape[1:]:
            raise ValueError(
                f"{one.theirs} is {tuple(value.shape)}, config.json says {tuple(old.shape)}: the folder mixes two models"
            )
        kept = min(len(value), config.vocab_size if one.vocabulary else len(old))
        weights[ours] = torch.cat([value[:kept], old[kept:]])
        report.resized[one.theirs] = f"{ours}: {len(value)} rows to {len(old)}, {kept} kept"
    named = {one.theirs for one in entries}
    for name in sorted(set(theirs) - named):
        copied = name.startswith("cls.predictions.decoder")
        report.left[name] = "a copy of the embedding" if copied else "a head or a buffer of FNet that a hybrid does not have"
    taken = {ours for one in entries for ours in one.ours}
    report.fresh = sorted(set(weights) - taken)
    return report


def _with_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of an FNetModel without heads lack the prefix `fnet.`; add it."""
    bare = "embeddings.word_embeddings.weight" in tensors
    return {f"fnet.{name}" if bare else name: tensor for name, tensor in tensors.items()}


def _changed(config: ModelConfig) -> dict[str, Any]:
    """The fields that differ from their defaults: a recipe's `model` section."""
    return {one.name: getattr(config, one.name) for one in fields(config) if getattr(config, one.name) != one.default}
