"""A trained model as a Hugging Face folder: weights, configuration, tokenizer, model card, and code for the hybrid.

T5, GPT-2, BERT and FNet become transformers' own classes. The hybrid has no class there: its folder has three files with code,
which import nothing of this project.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

import models.huggingface
from data_prep.files import write_json_atomically
from data_prep.tokenization.tokenizer import TOKENIZER_FILE, eos_id, load_tokenizer, start_id
from models.config import ModelConfig
from models.cost.parameters import num_parameters
from models.huggingface import entries, their_config
from models.huggingface.mapping import to_theirs
from pipeline.config import RunConfig
from pipeline.huggingface.folder import write_folder
from pipeline.run_folder import METRICS, find, load_weights

_CODE = ("configuration_fnet_t5.py", "layers_fnet_t5.py", "modeling_fnet_t5.py")


def export_run(run: Path, output: Path, step: int | None = None) -> ModelConfig:
    """Write a run's checkpoint (the latest by default) as a folder. Raises ValueError if no class there can hold the model."""
    config = RunConfig.load(run)
    checkpoint = find(run, step)
    number = int(checkpoint.name.removeprefix("step_"))
    card = model_card(config.model, output.name, _results(run, number, config))
    export_model(
        config.model,
        load_weights(checkpoint),
        output,
        tokenizer=run / TOKENIZER_FILE,
        card=card,
        encoder_length=config.data.encoder_length,
    )
    return config.model


def export_model(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    output: Path,
    *,
    tokenizer: Path | None = None,
    card: str = "",
    encoder_length: int | None = None,
) -> None:
    """Write a model by its canonical weights. `encoder_length` is the length that a hybrid was trained on.

    Raises ValueError if `output` exists and is not empty, or if no Hugging Face class can hold the model.
    """
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} exists and is not empty: give a new folder")
    special: dict[str, Any] = {}
    if tokenizer is not None:
        loaded = load_tokenizer(tokenizer)
        special = {"pad_token_id": 0, "eos_token_id": eos_id(loaded)}
        if config.is_decoder_only:  # every training row began with it
            special["bos_token_id"] = start_id(loaded)
        elif not config.is_encoder_only:
            special["decoder_start_token_id"] = start_id(loaded)
    values = their_config(config, **special)
    is_hybrid = values["model_type"] == "fnet_t5"
    if is_hybrid:
        values["encoder_length"] = encoder_length or config.max_length
    write_folder(output, values, to_theirs(entries(config), weights, config))
    if special:
        write_json_atomically(output / "generation_config.json", special)
    if is_hybrid:
        code = Path(models.huggingface.__file__).parent / "exported"
        for name in _CODE:
            shutil.copyfile(code / name, output / name)
    if tokenizer is not None:
        if config.is_decoder_only:
            _begin_with(loaded, special["bos_token_id"]).save(str(output / "tokenizer.json"))
        else:
            shutil.copyfile(tokenizer, output / "tokenizer.json")
        write_json_atomically(output / "tokenizer_config.json", _tokenizer_config(tokenizer, special, encoder_length))
    if card:
        (output / "README.md").write_text(card, encoding="utf-8")


def model_card(config: ModelConfig, name: str, results: Mapping[str, str]) -> str:
    """The model card as Markdown: what the model is, its results and how to use it."""
    is_writer = not config.is_encoder_only
    auto = "AutoModelForCausalLM" if config.is_decoder_only else "AutoModelForSeq2SeqLM"
    is_hybrid = config.architecture == "fnet_t5"
    task = "text-generation" if config.is_decoder_only else "text2text-generation" if is_writer else "fill-mask"
    kinds = {"fnet_t5": f"{config.mixing} encoder, attention decoder", "t5": "T5", "gpt2": "GPT-2"}
    kind = kinds.get(config.architecture, config.architecture)
    trust = ", trust_remote_code=True" if is_hybrid else ""
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {task}",
        "---",
        f"# {name}",
        "",
        f"{kind} of size {config.size}, {num_parameters(config):,} parameters, trained with FNet-T5.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in results.items()),
    ]
    if is_writer:
        lines += [
            "",
            "```python",
            f"from transformers import AutoTokenizer, {auto}",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})',
            f'model = {auto}.from_pretrained("{name}"{trust})',
            'inputs = tokenizer(["The Fourier transform"], return_tensors="pt", padding=True)',
            "print(tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=40), skip_special_tokens=True))",
            "```",
        ]
    if is_hybrid:
        lines += [
            "",
            "Pad on the right; longer inputs than the encoder length above are refused. The basis of the transform is fixed.",
        ]
    return "\n".join(lines) + "\n"


def _results(run: Path, step: int, config: RunConfig) -> dict[str, str]:
    results = {
        "training steps": f"{step:,} of {config.train.global_batch_size} rows",
        "objective": config.data.objective.name,
        "encoder length, decoder length": f"{config.data.encoder_length}, {config.data.decoder_length}",
        "data": config.data.path.name,
    }
    path = run / METRICS
    if path.is_file():
        rows = [json.loads(line) for line in path.read_text().splitlines() if line]
        validated = [row for row in rows if row.get("source") == "all" and row["step"] <= step]
        losses = [row["validation_loss"] for row in validated]
        if losses and math.isfinite(losses[-1]):
            results["validation loss, nats per target token"] = f"{losses[-1]:.4f}"
    return results


def _begin_with(tokenizer: Tokenizer, token_id: int) -> Tokenizer:
    """The tokenizer with the token before every text, as in the training of decoder-only models."""
    token = tokenizer.id_to_token(token_id)
    tokenizer.post_processor = TemplateProcessing(single=f"{token} $A", special_tokens=[(token, token_id)])
    return tokenizer


def _tokenizer_config(tokenizer: Path, special: Mapping[str, int], length: int | None) -> dict[str, Any]:
    loaded = load_tokenizer(tokenizer)
    names = {
        "pad_token": loaded.id_to_token(special["pad_token_id"]),
        "eos_token": loaded.id_to_token(special["eos_token_id"]),
        "unk_token": "<unk>" if loaded.token_to_id("<unk>") is not None else None,
    }
    return {
        **{key: value for key, value in names.items() if value is not None},
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        **({"model_max_length": length} if length else {}),
    }
