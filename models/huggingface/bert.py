"""BERT in the names of `transformers`: BertForPreTraining, or the class for the model's other head."""

from __future__ import annotations

from typing import Any

from models.config import ModelConfig
from models.huggingface.mapping import Entry, entry, linear, require
from models.sizes import BLOCKS

_CLASSES = {
    frozenset(): "Model",
    frozenset({"mlm", "order"}): "ForPreTraining",
    frozenset({"mlm"}): "ForMaskedLM",
    frozenset({"order"}): "ForNextSentencePrediction",
    frozenset({"sequence"}): "ForSequenceClassification",
    frozenset({"token"}): "ForTokenClassification",
    frozenset({"answer"}): "ForQuestionAnswering",
}


def entries(config: ModelConfig) -> list[Entry]:
    check(config)
    prefix = "bert." if config.heads else ""
    result = embedding_entries(config, prefix)
    for layer in range(config.num_encoder_layers):
        ours, theirs = f"encoder.layers.{layer}", f"{prefix}encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            result += linear(f"{theirs}.attention.self.{name}", f"{ours}.mixing.attention.{name}")
        result += linear(f"{theirs}.attention.output.dense", f"{ours}.mixing.attention.output")
        result += linear(f"{theirs}.attention.output.LayerNorm", f"{ours}.mixing_norm")
        result += feed_forward_entries(theirs, ours)
    return result + head_entries(config, prefix)


def embedding_entries(config: ModelConfig, prefix: str) -> list[Entry]:
    embeddings = f"{prefix}embeddings"
    copies = ["cls.predictions.decoder.weight"] if "mlm" in config.heads and config.is_encoder_only else []
    return [
        entry(f"{embeddings}.word_embeddings.weight", "embedding.tokens.weight", vocabulary=True, copies=copies),
        entry(f"{embeddings}.position_embeddings.weight", "encoder.input.positions.weight"),
        entry(f"{embeddings}.token_type_embeddings.weight", "encoder.input.types"),
        *linear(f"{embeddings}.LayerNorm", "encoder.input.norm"),
    ]


def feed_forward_entries(theirs: str, ours: str) -> list[Entry]:
    return [
        *linear(f"{theirs}.intermediate.dense", f"{ours}.feed_forward.up"),
        *linear(f"{theirs}.output.dense", f"{ours}.feed_forward.down"),
        *linear(f"{theirs}.output.LayerNorm", f"{ours}.feed_forward_norm"),
    ]


def head_entries(config: ModelConfig, prefix: str) -> list[Entry]:
    result: list[Entry] = []
    if not config.heads or {"order", "sequence"} & set(config.heads):
        result += linear(f"{prefix}pooler.dense", "heads.pooler")
    if "mlm" in config.heads:
        result += linear("cls.predictions.transform.dense", "heads.mlm.transform")
        result += linear("cls.predictions.transform.LayerNorm", "heads.mlm.norm")
        result.append(entry("cls.predictions.bias", "heads.mlm.bias", vocabulary=True, copies=["cls.predictions.decoder.bias"]))
    for head, name in (
        ("order", "cls.seq_relationship"),
        ("sequence", "classifier"),
        ("token", "classifier"),
        ("answer", "qa_outputs"),
    ):
        if head in config.heads:
            result += linear(name, f"heads.{head}")
    return result


def class_name(config: ModelConfig, family: str) -> str:
    """Raises ValueError for a set of heads without a class in transformers."""
    heads = frozenset(config.heads)
    if heads not in _CLASSES:
        known = "; ".join(", ".join(sorted(names)) or "none" for names in _CLASSES)
        raise ValueError(f"model.heads is {list(config.heads)}: no Hugging Face class has exactly these, there are: {known}")
    return family + _CLASSES[heads]


def their_config(config: ModelConfig) -> dict[str, Any]:
    check(config)
    return {
        **common_config(config),
        "model_type": "bert",
        "architectures": [class_name(config, "Bert")],
        "num_attention_heads": config.num_heads,
        "attention_probs_dropout_prob": config.dropout,
        "hidden_act": "gelu",
    }


def common_config(config: ModelConfig) -> dict[str, Any]:
    labels = {"sequence": config.num_labels, "token": config.num_token_labels}.get("".join(config.heads), 2)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_encoder_layers,
        "intermediate_size": config.d_ff,
        "hidden_dropout_prob": config.dropout,
        "max_position_embeddings": config.max_length,
        "type_vocab_size": config.type_vocab_size,
        "initializer_range": config.init_std,
        "layer_norm_eps": config.norm_eps,
        "tie_word_embeddings": True,
        "id2label": {str(number): f"LABEL_{number}" for number in range(labels)},
        "label2id": {f"LABEL_{number}": number for number in range(labels)},
    }


def our_config(theirs: dict[str, Any]) -> ModelConfig:
    if theirs.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"hidden_act is {theirs['hidden_act']!r}: only BERT's gelu is supported")
    return from_common(theirs, "bert", theirs["num_attention_heads"])


def from_common(theirs: dict[str, Any], architecture: str, num_heads: int) -> ModelConfig:
    classes = {name: heads for heads, name in _CLASSES.items()}
    made = (theirs.get("architectures") or ["ForPreTraining"])[0]
    suffix = next((name for name in classes if made.endswith(name)), "Model")
    labels = len(theirs.get("id2label") or ()) or 2
    block = dict(BLOCKS[architecture])
    block.update(
        norm_eps=theirs.get("layer_norm_eps", 1e-12),
        init_std=theirs.get("initializer_range", 0.02),
        type_vocab_size=theirs["type_vocab_size"],
    )
    return ModelConfig(
        architecture=architecture,  # type: ignore[arg-type]
        vocab_size=theirs["vocab_size"],
        d_model=theirs["hidden_size"],
        d_kv=theirs["hidden_size"] // num_heads,
        num_heads=num_heads,
        d_ff=theirs["intermediate_size"],
        num_encoder_layers=theirs["num_hidden_layers"],
        num_decoder_layers=0,
        max_length=theirs["max_position_embeddings"],
        dropout=theirs.get("hidden_dropout_prob", 0.1),
        heads=tuple(sorted(classes[suffix])),  # type: ignore[arg-type]
        num_labels=labels,
        num_token_labels=labels,
        **block,
    )


def check(config: ModelConfig) -> None:
    """Raise ValueError for a choice that the class of transformers does not have."""
    free = ("norm_eps", "init_std", "type_vocab_size")
    require(config, **{name: value for name, value in BLOCKS[config.architecture].items() if name not in free})
    require(config, mix_within_documents=False, encoder_d_ff=(0, config.d_ff))
    class_name(config, "")
