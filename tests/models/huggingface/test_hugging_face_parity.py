"""Logits and gradients of every architecture that `transformers` has, compared with it: random weights on disk, mapped in
both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from models.architectures.build import build_model
from models.architectures.encoder_only import encoder_inputs
from models.architectures.pieces import Inputs, TextInputs
from models.architectures.single_process import SingleProcessModel
from models.config import ModelConfig, expand_size
from models.huggingface import entries, our_config, their_config
from models.huggingface.mapping import Entry, to_theirs
from models.layers.initialization import initialize
from pipeline.huggingface.folder import read_config, read_tensors, write_folder

VOCABULARY = 250  # not a multiple of 128: our table has 6 more rows than theirs

T5 = {"architecture": "t5"}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "t5 v1.0": ({**T5, "feed_forward": "relu", "tie_embeddings": True}, "T5ForConditionalGeneration"),
    "t5 v1.1": ({**T5, "feed_forward": "gated_gelu", "tie_embeddings": False}, "T5ForConditionalGeneration"),
    "t5 v1.1 tied": ({**T5, "feed_forward": "gated_gelu", "tie_embeddings": True}, "T5ForConditionalGeneration"),
    "t5 v1.0 untied": ({**T5, "feed_forward": "relu", "tie_embeddings": False}, "T5ForConditionalGeneration"),
    "gpt2": ({"architecture": "gpt2", "max_length": 64}, "GPT2LMHeadModel"),
}
HEADS = {
    "mlm order": "ForPreTraining",
    "mlm": "ForMaskedLM",
    "order": "ForNextSentencePrediction",
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "answer": "ForQuestionAnswering",
    "": "Model",
}
for family, prefix in (("bert", "Bert"), ("fnet", "FNet")):
    for names, suffix in HEADS.items():
        section = {"architecture": family, "heads": tuple(names.split()), "num_labels": 3, "num_token_labels": 3}
        CASES[f"{family} {names or 'features'}"] = ({**section, "max_length": 64}, prefix + suffix)


def build(section: dict[str, Any]) -> SingleProcessModel:
    model = build_model(ModelConfig(**expand_size({"size": "nano", "vocab_size": VOCABULARY, **section})))
    initialize(model, seed=1)
    shake(model)
    return model.eval()


@torch.no_grad()
def shake(model: nn.Module) -> None:
    """Randomize weights. Norms of 1 and biases of 0 would hide swaps; weights of N(0, 0.02) make attention nearly uniform."""
    for name, parameter in model.named_parameters():
        if "norm" in name.lower() or name.endswith("bias") or "ln_" in name:
            parameter.add_(torch.empty_like(parameter).uniform_(-0.5, 0.5))
        elif parameter.ndim == 2 and parameter.std() < 0.03:
            parameter.mul_(5)


def compute(ours: SingleProcessModel, theirs: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Every output of both on the same rows, one of them padded."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (3, 37), generator=generator)
    mask = torch.ones_like(ids)
    config = ours.config
    if config.architecture == "t5":
        mask[1, 20:] = 0
        decoder_ids = torch.randint(3, VOCABULARY, (3, 21), generator=generator)
        out = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids)
        return [ours(Inputs(ids, mask, decoder_ids))[..., :VOCABULARY]], [out.logits]
    if config.architecture == "gpt2":
        mask[1, :15] = 0  # padded on the left, as for generation; outputs at padding are not compared
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = theirs(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        kept = mask.bool()
        return [ours(TextInputs(ids, mask))[..., :VOCABULARY][kept]], [out[kept]]
    types = torch.randint(0, 2, ids.shape, generator=generator)
    options = {"input_ids": ids, "token_type_ids": types}
    if config.architecture == "bert":
        mask[1, 20:] = 0
        options["attention_mask"] = mask
    found = ours(encoder_inputs(ids, mask, types))
    out = theirs(**options)
    if not config.heads:
        return [found.hidden, found.pooled], [out.last_hidden_state, out.pooler_output]
    pairs: dict[str, tuple[Tensor | None, Callable[[], Tensor]]] = {
        "mlm": (found.mlm, lambda: out.prediction_logits if "order" in config.heads else out.logits),
        "order": (found.order, lambda: out.seq_relationship_logits if "mlm" in config.heads else out.logits),
        "sequence": (found.sequence, lambda: out.logits),
        "token": (found.token, lambda: out.logits),
        "answer": (found.answer, lambda: torch.stack([out.start_logits, out.end_logits], -1)),
    }
    our_outputs, their_outputs = [], []
    for head in config.heads:
        value, other = pairs[head]
        assert value is not None
        our_outputs.append(value[..., :VOCABULARY] if head == "mlm" else value)
        their_outputs.append(other())
    return our_outputs, their_outputs


def check(ours: SingleProcessModel, theirs: nn.Module) -> None:
    our_outputs, their_outputs = compute(ours, theirs)
    loss = their_loss = torch.zeros(())
    for a, b in zip(our_outputs, their_outputs, strict=True):
        assert relative(a, b) < 1e-5
        weights = torch.randn(a.shape, generator=torch.Generator().manual_seed(2))
        loss, their_loss = loss + (a * weights).sum(), their_loss + (b * weights).sum()
    loss.backward()
    their_loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    mapped = renamed(entries(ours.config), filled(gradients, theirs), ours.config)
    for name, parameter in ours.named_parameters():
        if parameter.grad is None or not parameter.grad.any():
            assert not mapped[name].any(), name
        elif name.endswith("key.bias"):  # exactly zero in theory: a key bias adds a constant to all scores of a query
            assert mapped[name].abs().max() < 1e-4
        else:
            assert relative(parameter.grad, mapped[name]) < 1e-4, name


def renamed(given: list[Entry], theirs: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our tensors from theirs, with zeros in the padding rows of the vocabulary. Checked to be the inverse of `to_theirs`."""
    result: dict[str, Tensor] = {}
    for one in given:
        (value,) = [theirs[name] for name in (one.theirs, *one.copies) if name in theirs][:1]
        value = value.t() if one.transposed else value
        if one.vocabulary:
            padding = value.new_zeros(config.padded_vocab_size - len(value), *value.shape[1:])
            value = torch.cat([value, padding])
        result |= {ours: part.contiguous() for ours, part in zip(one.ours, value.chunk(len(one.ours)), strict=True)}
    back = to_theirs(given, result, config)
    assert all(torch.equal(back[name], theirs[name]) for one in given for name in (one.theirs,) if name in theirs)
    return result


def filled(gradients: dict[str, Tensor], theirs: nn.Module) -> dict[str, Tensor]:
    return {name: gradients.get(name, torch.zeros_like(parameter)) for name, parameter in theirs.named_parameters()}


@torch.no_grad()
def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("name", CASES)
def test_transformers_loads_our_weights_with_equal_outputs(name: str, tmp_path: Path) -> None:
    section, class_name = CASES[name]
    ours = build(section)
    write_folder(tmp_path, their_config(ours.config), to_theirs(entries(ours.config), ours.state_dict(), ours.config))
    theirs, report = getattr(transformers, class_name).from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation=None if "fnet" in name else "eager"
    )
    assert not report["mismatched_keys"]
    assert not [key for key in report["missing_keys"] if "pooler" not in key]
    check(ours, theirs.eval())


@pytest.mark.parametrize("name", CASES)
def test_weights_of_transformers_load_with_equal_outputs(name: str, tmp_path: Path) -> None:
    section, class_name = CASES[name]
    config = ModelConfig(**expand_size({"size": "nano", "vocab_size": VOCABULARY, **section}))
    torch.manual_seed(0)
    kind = getattr(transformers, class_name)
    theirs = kind(kind.config_class(**{key: value for key, value in their_config(config).items() if key != "architectures"}))
    if section.get("tie_embeddings") is False:
        # transformers 5 ties the head of a T5 made from a configuration; a checkpoint with a separate head unties it
        theirs.lm_head = nn.Linear(config.d_model, VOCABULARY, bias=False)
        theirs.config.tie_word_embeddings = False
        theirs._tied_weights_keys = {key: value for key, value in theirs._tied_weights_keys.items() if "lm_head" not in key}
    shake(theirs)
    theirs.save_pretrained(tmp_path)
    read = our_config(read_config(tmp_path))
    ours = build_model(read).eval()
    ours.load_state_dict(renamed(entries(read), read_tensors(tmp_path), read))
    assert read.heads == tuple(sorted(config.heads)) or not config.is_encoder_only
    check(ours, theirs.eval())
