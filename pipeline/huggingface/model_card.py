"""The card of an exported folder: what the model is, its results, how to use it, and what to know before training it."""

from __future__ import annotations

from collections.abc import Mapping

from models.config import ModelConfig
from models.cost.parameters import num_parameters

_KINDS = {"t5": "T5", "gpt2": "GPT-2", "bert": "BERT", "fnet": "FNet"}
_ENCODER_TASKS = {
    frozenset({"mlm", "order"}): "fill-mask",
    frozenset({"mlm"}): "fill-mask",
    frozenset({"sequence"}): "text-classification",
    frozenset({"token"}): "token-classification",
    frozenset(): "feature-extraction",
}
_ENCODER_AUTO = {
    "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "feature-extraction": "AutoModel",
}


def pipeline_task(config: ModelConfig) -> str | None:
    """The pipeline of transformers 5 for the model; None if there is none (heads for sentence order or for answers alone)."""
    return _ENCODER_TASKS.get(frozenset(config.heads)) if config.is_encoder_only else "text-generation"


def model_card(config: ModelConfig, name: str, results: Mapping[str, str]) -> str:
    """The card as Markdown. `name` is the model's, as its folder or its repository is called."""
    task = pipeline_task(config)
    kind = _KINDS.get(config.architecture, config.architecture)
    if config.architecture == "fnet_t5":
        kind = f"{config.mixing} encoder, attention decoder"
    lines = [
        "---",
        "library_name: transformers",
        *([f"pipeline_tag: {task}"] if task else []),
        "---",
        f"# {name}",
        "",
        f"{kind} of size {config.size}, {num_parameters(config):,} parameters, trained with FNet-T5.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in results.items()),
        *_usage(config, name, task),
        *_notes(config),
    ]
    return "\n".join(lines) + "\n"


def _usage(config: ModelConfig, name: str, task: str | None) -> list[str]:
    trust = ", trust_remote_code=True" if config.architecture == "fnet_t5" else ""
    if not config.is_encoder_only:
        auto = "AutoModelForCausalLM" if config.is_decoder_only else "AutoModelForSeq2SeqLM"
        end = ["print(tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=40), skip_special_tokens=True))"]
    elif task is not None:
        auto, end = _ENCODER_AUTO[task], ["print(model(**inputs)[0].shape)"]
    else:
        return []
    return [
        "",
        "```python",
        f"from transformers import AutoTokenizer, {auto}",
        "",
        f'folder = "{name}"  # the path of this folder, or its name on the hub',
        f"tokenizer = AutoTokenizer.from_pretrained(folder{trust})",
        f"model = {auto}.from_pretrained(folder{trust})",
        'inputs = tokenizer(["The Fourier transform"], return_tensors="pt", padding=True)',
        *end,
        "```",
    ]


def _notes(config: ModelConfig) -> list[str]:
    notes = []
    if config.architecture == "fnet_t5":
        notes.append(
            "Inputs longer than the encoder length above are refused. The transform always has that length, so padding changes "
            "no result, on either side and in any amount."
        )
    if config.architecture == "fnet":
        notes.append(
            "The FNet class of transformers has no attention mask, and its transform depends on the length: pad every input to "
            "the encoder length above, as in training, and expect that padding tokens have an influence."
        )
    if config.architecture in ("t5", "bert", "fnet"):
        notes.append(
            "Before you train it with `Trainer` and gradient accumulation, set `model.accepts_loss_kwargs = False`: the class "
            "of transformers 5 takes `num_items_in_batch` and does not use it, and the loss and the gradient would be "
            "multiplied by the number of micro-batches."
        )
    if config.architecture == "t5":
        notes.append(
            "The `text-generation` pipeline of transformers removes as many tokens from the output as the prompt has, since it "
            "is made for decoder-only models: use `generate`."
        )
        if not config.tie_embeddings:
            notes.append(
                "The head is not tied to the embedding. Set `model.config.tie_word_embeddings = False` before "
                "`resize_token_embeddings`: transformers 5 sets it to True for every T5, and would tie the head then."
            )
    return [line for note in notes for line in ("", note)]
