"""A trained model as a Hugging Face folder: weights, configuration, tokenizer, model card, and code for the hybrid.

T5, GPT-2, BERT and FNet become transformers' own classes. The hybrid has no class there: its folder has four files with code,
which import nothing of this project. `model_card.py` writes the card.
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
from models.huggingface import entries, their_config
from models.huggingface.mapping import to_theirs
from pipeline.config import RunConfig
from pipeline.huggingface.folder import write_folder
from pipeline.huggingface.model_card import model_card
from pipeline.objectives.vocabulary import Vocabulary
from pipeline.run_folder import METRICS, find, load_weights, step_of

_CODE = ("configuration_fnet_t5.py", "layers_fnet_t5.py", "modeling_fnet_t5.py", "pipeline_fnet_t5.py")


def export_run(run: Path, output: Path, step: int | None = None) -> ModelConfig:
    """Write a run's checkpoint (the latest by default) as a folder. Raises ValueError if no class there can hold the model."""
    config = RunConfig.load(run)
    checkpoint = find(run, step)
    number = step_of(checkpoint)
    card = model_card(config.model, run.resolve().name, _results(run, number, config))
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
        _write_tokenizer(config, tokenizer, output, special, encoder_length)
    if card:
        (output / "README.md").write_text(card, encoding="utf-8")


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


def _write_tokenizer(
    config: ModelConfig, tokenizer: Path, output: Path, special: Mapping[str, int], length: int | None
) -> None:
    """tokenizer.json, which frames a text as the rows of training were, and tokenizer_config.json."""
    loaded = load_tokenizer(tokenizer)
    names = {"pad_token": loaded.id_to_token(special["pad_token_id"]), "eos_token": loaded.id_to_token(special["eos_token_id"])}
    if loaded.token_to_id("<unk>") is not None:
        names["unk_token"] = "<unk>"
    named = Vocabulary.of(loaded).named if config.is_encoder_only else {}
    is_framed = True
    if config.is_decoder_only:
        _frame(loaded, single=[special["bos_token_id"], "$A"])
        names["bos_token"] = loaded.id_to_token(special["bos_token_id"])
    elif {"[CLS]", "[SEP]", "[MASK]"} <= named.keys():
        cls, sep = named["[CLS]"], named["[SEP]"]
        _frame(loaded, single=[cls, "$A", sep], pair=[cls, "$A", sep, "$B:1", sep])
        names |= {f"{name[1:-1].lower()}_token": loaded.id_to_token(named[name]) for name in ("[CLS]", "[SEP]", "[MASK]")}
    else:
        is_framed = False
    if is_framed:
        loaded.save(str(output / "tokenizer.json"))
    else:
        shutil.copyfile(tokenizer, output / "tokenizer.json")
    values = {
        **names,
        "tokenizer_class": "PreTrainedTokenizerFast",
        # transformers generates from the end of a row, so the padding of a decoder-only model stands before it
        "padding_side": "left" if config.is_decoder_only else "right",
        "model_input_names": ["input_ids", *_other_inputs(config)],
        "clean_up_tokenization_spaces": False,
        **({"model_max_length": length} if length else {}),
    }
    write_json_atomically(output / "tokenizer_config.json", values)


def _other_inputs(config: ModelConfig) -> list[str]:
    """The inputs of the class beside input_ids that the tokenizer makes. FNet's class has no mask."""
    types = ["token_type_ids"] if config.is_encoder_only else []
    return types if config.architecture == "fnet" else [*types, "attention_mask"]


def _frame(tokenizer: Tokenizer, **templates: list[int | str]) -> None:
    """Put tokens, given by id, around every text. The second sequence and the token behind it have segment type 1."""
    texts: dict[str, str] = {}
    used = {part for template in templates.values() for part in template if isinstance(part, int)}
    for kind, template in templates.items():
        parts = [str(tokenizer.id_to_token(part)) if isinstance(part, int) else part for part in template]
        texts[kind] = " ".join(parts) + (":1" if kind == "pair" else "")
    tokens = [(tokenizer.id_to_token(token_id), token_id) for token_id in sorted(used)]
    tokenizer.post_processor = TemplateProcessing(special_tokens=tokens, **texts)
