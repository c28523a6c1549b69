"""Dropout has the same positions as in transformers' models: outputs in training mode are equal with the same masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from models.architectures.build import build_model
from models.architectures.encoder_only import encoder_inputs
from models.architectures.pieces import Inputs, TextInputs
from models.config import ModelConfig, expand_size
from models.huggingface import entries, their_config
from models.huggingface.mapping import to_theirs
from models.layers.initialization import initialize

VOCABULARY = 128  # a multiple of 128, so that both models' logits have one shape
SECTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "t5": ({"architecture": "t5", "feed_forward": "relu"}, "T5ForConditionalGeneration"),
    "t5 gated": ({"architecture": "t5"}, "T5ForConditionalGeneration"),
    "gpt2": ({"architecture": "gpt2", "max_length": 64}, "GPT2LMHeadModel"),
    "bert": ({"architecture": "bert", "max_length": 64}, "BertForPreTraining"),
    "bert sequence": ({"architecture": "bert", "max_length": 64, "heads": ("sequence",)}, "BertForSequenceClassification"),
    "bert token": ({"architecture": "bert", "max_length": 64, "heads": ("token",)}, "BertForTokenClassification"),
    "bert answer": ({"architecture": "bert", "max_length": 64, "heads": ("answer",)}, "BertForQuestionAnswering"),
    "fnet": ({"architecture": "fnet", "max_length": 64}, "FNetForPreTraining"),
    "fnet sequence": ({"architecture": "fnet", "max_length": 64, "heads": ("sequence",)}, "FNetForSequenceClassification"),
}


def patterned(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout with a mask that depends only on the shape."""
    if not training or p == 0:
        return x
    kept = torch.rand(x.shape, generator=torch.Generator().manual_seed(sum(x.shape))) >= p
    return x * kept / (1 - p)


@pytest.mark.parametrize("name", SECTIONS)
def test_training_mode_equals_transformers_under_the_same_masks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    section, class_name = SECTIONS[name]
    config = ModelConfig(**expand_size({"size": "nano", "vocab_size": VOCABULARY, "dropout": 0.3, **section}))
    ours = build_model(config)
    initialize(ours, seed=0)
    values = their_config(config)
    values.pop("architectures")
    kind = getattr(transformers, class_name)
    if config.architecture != "fnet":
        values["attn_implementation"] = "eager"
    theirs = kind(kind.config_class(**values))
    theirs.load_state_dict(to_theirs(entries(config), ours.state_dict(), config), strict=False)
    monkeypatch.setattr(nn.functional, "dropout", patterned)
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", written_out)
    ours.train()
    theirs.train()
    ids = torch.randint(0, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if config.architecture == "t5":
        found = ours(Inputs(ids, mask, ids[:, :7]))
        expected = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=ids[:, :7]).logits
    elif config.architecture == "gpt2":
        found, expected = ours(TextInputs(ids, mask)), theirs(input_ids=ids).logits
    else:
        outputs, other = ours(encoder_inputs(ids, mask)), theirs(input_ids=ids)
        found = next(x for x in (outputs.mlm, outputs.sequence, outputs.token, outputs.answer) if x is not None)
        if config.heads == ("answer",):
            expected = torch.stack([other.start_logits, other.end_logits], -1)
        else:
            expected = other.prediction_logits if "mlm" in config.heads else other.logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """The fused attention, written out as in its documentation, with `patterned` dropout of the probabilities."""
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    if attn_mask is not None:
        scores = scores + attn_mask
    return patterned(scores.softmax(-1), dropout_p, dropout_p > 0) @ value
