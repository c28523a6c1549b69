"""The exported hybrid in training: gradient accumulation, gradient checkpointing, adapters, and transformers' Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from tests.pipeline.huggingface.conftest import Load

Batch = dict[str, Tensor]


@pytest.fixture
def rows() -> list[Batch]:
    """Eight rows with 1 to 8 labels."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number in range(8):
        ids = torch.randint(3, 300, (17,), generator=generator)
        labels = ids[9:].clone()
        labels[number + 1 :] = -100
        made.append({"input_ids": ids[:9], "attention_mask": torch.ones(9, dtype=torch.long), "labels": labels})
    return made


def stack(rows: list[Batch]) -> Batch:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        atol = 1e-5 * float(value.detach().abs().max())
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=atol, msg=name)


def test_the_loss_is_the_mean_over_all_labels_however_the_batch_is_divided(folder: Path, load: Load, rows: list[Batch]) -> None:
    """1 x 8 = 4 x 2 = 8 x 1, as Trainer calls the model; and the loss is that of torch from the logits."""
    model = load(folder).train()
    whole = model(**stack(rows))
    labels = stack(rows)["labels"]
    by_hand = -torch.log_softmax(whole.logits, -1)[labels >= 0].gather(1, labels[labels >= 0][:, None]).mean()
    torch.testing.assert_close(whole.loss, by_hand)
    whole.loss.backward()
    expected, number = gradients(model), torch.tensor(36)
    assert set(expected) == set(dict(model.named_parameters()))  # every weight is trained
    for size in (1, 2, 4):
        total = 0.0
        for first in range(0, 8, size):
            loss = model(**stack(rows[first : first + size]), num_items_in_batch=number).loss
            loss.backward()
            total += float(loss.detach())
        assert total == pytest.approx(float(whole.loss.detach()), rel=1e-5)
        compare(gradients(model), expected)


@pytest.mark.parametrize("architecture", ["fnet_t5", "gpt2"])
def test_trainer_takes_the_same_step_with_gradient_accumulation(
    exported: Callable[..., Path], load: Load, rows: list[Batch], tmp_path: Path, architecture: str
) -> None:
    auto = "AutoModelForSeq2SeqLM" if architecture == "fnet_t5" else "AutoModelForCausalLM"
    if architecture == "gpt2":
        rows = [{**row, "input_ids": row["input_ids"][1:], "attention_mask": row["attention_mask"][1:]} for row in rows]
    logs, weights = [], []
    for size in (8, 2, 1):
        model = load(exported({"architecture": architecture, "max_length": 32}), auto)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            max_steps=1,
            learning_rate=0.1,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=1e9,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=rows)
        trainer.train()
        logs.append((trainer.state.log_history[0]["loss"], float(trainer.state.log_history[0]["grad_norm"])))
        weights.append(dict(model.named_parameters()))
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)
    assert logs[2] == pytest.approx(logs[0], rel=1e-4)
    compare(weights[1], weights[0])
    compare(weights[2], weights[0])


def test_labels_and_shifted_decoder_inputs_are_the_same(folder: Path, load: Load, rows: list[Batch]) -> None:
    """As DataCollatorForSeq2Seq makes the inputs; a start token or a padding token that is missing is named."""
    model, batch = load(folder), stack(rows)
    shifted = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    assert torch.equal(shifted[:, 1:][batch["labels"][:, :-1] >= 0], batch["labels"][:, :-1][batch["labels"][:, :-1] >= 0])
    assert not bool(shifted[:, 0].any())
    assert torch.equal(model(**batch, decoder_input_ids=shifted).loss, model(**batch).loss)
    model.loss_function = lambda logits, labels, vocab_size, num_items_in_batch: logits.sum() * 0 + vocab_size
    assert float(model(**batch).loss.detach()) == model.config.vocab_size
    model.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="decoder_start_token_id is None"):
        model(**batch)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(folder: Path, load: Load, rows: list[Batch], reentrant: bool) -> None:
    model, batch = load(folder).train(), stack(rows)
    model(**batch).loss.backward()
    expected = gradients(model)
    calls = []
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.feed_forward.register_forward_pre_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    output = model(**batch, use_cache=True)
    assert output.past_key_values is None
    output.loss.backward()
    assert len(calls) == 2 * (len(model.encoder.layers) + len(model.decoder.layers))  # forward, and again in backward
    compare(gradients(model), expected)
    cache = transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache())
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model(**batch, past_key_values=cache)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    assert load(folder, "AutoModel").supports_gradient_checkpointing


def test_dropout_acts_in_training_only(tied_folder: Path, load: Load, rows: list[Batch]) -> None:
    model, batch = load(tied_folder, dropout=0.3), stack(rows)
    assert torch.equal(model(**batch).loss, model(**batch).loss)
    model.train()
    assert not torch.equal(model(**batch).loss, model(**batch).loss)


@pytest.mark.parametrize("auto", ["AutoModelForSeq2SeqLM", "AutoModel", "AutoModelForTextEncoding"])
def test_training_lowers_the_loss_of_every_class(folder: Path, load: Load, rows: list[Batch], auto: str) -> None:
    model, batch = load(folder, auto).train(), stack(rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        if auto == "AutoModelForSeq2SeqLM":
            loss = model(**batch).loss
        elif auto == "AutoModel":
            decoder_ids = batch["labels"].clamp(min=0)
            loss = (model(batch["input_ids"], decoder_input_ids=decoder_ids).last_hidden_state - 1).square().mean()
        else:
            loss = (model(batch["input_ids"]).last_hidden_state - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)


class LowRank(nn.Module):
    """What PEFT's LoRA puts in the place of a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_named_linear_layers_can_be_adapted(folder: Path, load: Load, rows: list[Batch], checkpointing: bool) -> None:
    """As PEFT does: layers are found by the end of their names and replaced, all else is frozen."""
    model, batch = load(folder).train(), stack(rows)
    expected = model(**batch).loss
    found = [
        name for name, module in model.named_modules() if name.endswith((".query", ".value")) and type(module) is nn.Linear
    ]
    assert len(found) >= 8  # two attentions in each of two decoder layers
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LowRank(model.get_submodule(name)))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    assert torch.equal(model(**batch).loss, expected)
    model(**batch).loss.backward()
    assert all((".up." in name) == (float(grad.abs().max()) > 0) for name, grad in gradients(model).items())
    assert all(
        hasattr(model, name) for name in ("prepare_inputs_for_generation", "get_input_embeddings", "get_output_embeddings")
    )


def test_peft_trains_and_merges_an_adapter(folder: Path, load: Load, rows: list[Batch], tmp_path: Path) -> None:
    import peft  # type: ignore[import-not-found]

    model, batch = load(folder), stack(rows)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["query", "value"], r=2, lora_dropout=0.0)
    adapted = peft.get_peft_model(model, settings)
    optimizer = torch.optim.SGD(adapted.parameters(), lr=0.5)
    for _ in range(2):
        loss = adapted(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    adapted.eval()
    expected = adapted(**batch).logits
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(load(folder), tmp_path).eval()
    torch.testing.assert_close(again(**batch).logits, expected)
    options = {"input_ids": batch["input_ids"], "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(again.generate(**options), adapted.generate(**options))
    merged: Any = again.merge_and_unload()
    torch.testing.assert_close(merged(**batch).logits, expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in load(folder).state_dict().items())
