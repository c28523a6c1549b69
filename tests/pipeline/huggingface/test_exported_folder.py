"""Every exported folder: its card, its tokenizer, its auto classes, and the pipeline of transformers that the card names."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers.pipelines import SUPPORTED_TASKS

from models.architectures.build import build_model
from models.config import ModelConfig, expand_size
from models.layers.initialization import initialize
from pipeline.config import RunConfig
from pipeline.huggingface import export
from pipeline.huggingface.model_card import model_card, pipeline_task
from pipeline.objectives.vocabulary import Vocabulary
from tests.helpers.recipes import nano_recipe, write_run
from tests.pipeline.huggingface.conftest import HYBRIDS, LENGTH, Load

Export = Callable[[dict[str, Any]], Path]
AUTOS = {
    "fnet_t5": "AutoModelForSeq2SeqLM",
    "t5": "AutoModelForSeq2SeqLM",
    "gpt2": "AutoModelForCausalLM",
    "bert": "AutoModelForPreTraining",
    "fnet": "AutoModelForPreTraining",
}


def section(architecture: str) -> dict[str, Any]:
    return {"architecture": architecture, "max_length": 32}


def front_matter(folder: Path) -> str:
    return (folder / "README.md").read_text().split("---")[1]


@pytest.mark.parametrize("architecture", list(AUTOS))
def test_the_pipeline_that_the_card_names_exists_and_runs(exported: Export, architecture: str, load: Load) -> None:
    folder = exported(section(architecture))
    (task,) = re.findall(r"^pipeline_tag: (.*)$", front_matter(folder), re.MULTILINE)
    assert task in SUPPORTED_TASKS
    trust = {"trust_remote_code": True} if architecture == "fnet_t5" else {}
    pipe = transformers.pipeline(task, model=str(folder), **trust)
    if task == "fill-mask":
        found = pipe(f"the king {pipe.tokenizer.mask_token} a story", top_k=3)
        assert len({record["token"] for record in found}) == 3
    else:
        found = pipe("the king told", max_new_tokens=4, do_sample=False)
        assert found[0]["generated_text"].startswith("the king told")


@pytest.mark.parametrize("heads", [(), ("mlm",), ("sequence",), ("token",), ("answer",), ("order",)])
def test_the_card_names_no_pipeline_that_transformers_lacks(heads: tuple[str, ...]) -> None:
    config = ModelConfig(**expand_size({"size": "nano", "architecture": "bert", "vocab_size": 380, "heads": heads}))
    card = model_card(config, "nano", {})
    if heads in (("answer",), ("order",)):
        assert pipeline_task(config) is None
        assert "pipeline_tag" not in card
    else:
        assert f"pipeline_tag: {pipeline_task(config)}\n" in card
        assert pipeline_task(config) in SUPPORTED_TASKS


@pytest.mark.parametrize("architecture", list(AUTOS))
def test_all_weights_are_loaded_by_the_class_of_the_configuration_and_by_automodel(
    exported: Export, architecture: str, load: Load
) -> None:
    folder = exported(section(architecture))
    _, loading = load(folder, AUTOS[architecture], output_loading_info=True)
    assert not any(loading.values())
    _, loading = load(folder, "AutoModel", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["mismatched_keys"]
    model = load(folder, AUTOS[architecture])
    model.resize_token_embeddings(390)
    ids = torch.full((1, 4), 389)
    labels = {"labels": ids} if model.config.is_encoder_decoder else {}
    assert model(input_ids=ids, **labels)[0].isfinite().all()


def test_a_batch_of_a_decoder_only_model_is_padded_on_the_left(exported: Export, load: Load) -> None:
    """Otherwise the shorter rows would be continued after their padding."""
    folder = exported(section("gpt2"))
    model, tokenizer = load(folder, "AutoModelForCausalLM"), transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["a", "the king told a story of the sea"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    together = model.generate(**batch, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    for row, text in enumerate(texts):
        single = tokenizer([text], return_tensors="pt")
        assert int(single["input_ids"][0, 0]) == tokenizer.bos_token_id == model.generation_config.bos_token_id
        alone = model.generate(**single, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        assert torch.equal(together[row, -6:], alone[0, -6:])


@pytest.mark.parametrize("architecture", ["bert", "fnet"])
def test_texts_are_framed_as_the_rows_of_training_were(exported: Export, architecture: str, tokenizer_file: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported(section(architecture)))
    named = Vocabulary.of(export.load_tokenizer(tokenizer_file)).named
    found = tokenizer("the king", "a story")
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the king", "a story"))
    cls, sep = named["[CLS]"], named["[SEP]"]
    assert found["input_ids"] == [cls, *first, sep, *second, sep]
    assert found["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert ("attention_mask" in found) == (architecture == "bert")
    assert tokenizer.mask_token_id == named["[MASK]"]


def test_trainer_faults_of_transformers_are_named_in_the_card(exported: Export) -> None:
    for architecture in AUTOS:
        card = (exported(section(architecture)) / "README.md").read_text()
        assert ("accepts_loss_kwargs = False" in card) == (architecture in ("t5", "bert", "fnet"))
    card = (exported({"architecture": "t5", "tie_embeddings": False}) / "README.md").read_text()
    assert "tie_word_embeddings = False" in card


def test_an_untied_t5_is_resized_as_its_card_says(exported: Export, load: Load) -> None:
    """Without that setting transformers 5 ties the head to the embedding, and the model is lost."""
    model = load(exported({"architecture": "t5", "tie_embeddings": False}))
    ids = torch.randint(3, 300, (2, 8))
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).logits
        model.config.tie_word_embeddings = False
        model.resize_token_embeddings(400)
        torch.testing.assert_close(model(input_ids=ids, labels=ids).logits[..., :380], expected)
        assert model.lm_head.weight is not model.shared.weight


def test_the_card_has_the_name_of_the_run_and_shows_how_to_load_it(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "my-hybrid", nano_recipe(dataset, train={"steps": 1}))
    config = RunConfig.load(run)
    model = build_model(config.model)
    initialize(model, seed=0)
    checkpoint = run / "checkpoints" / "step_00000001"
    (checkpoint / "weights").mkdir(parents=True)
    save_file(model.state_dict(), checkpoint / "weights" / "model-00001-of-00001.safetensors")
    monkeypatch.setattr(export, "find", lambda *_: checkpoint)
    monkeypatch.setattr(export, "load_weights", lambda _: dict(model.state_dict()))
    (run / "tokenizer.json").write_bytes((dataset / "tokenizer.json").read_bytes())
    monkeypatch.chdir(run)
    export.export_run(Path(), tmp_path / "exported" / "demo")
    card = (tmp_path / "exported" / "demo" / "README.md").read_text()
    assert "\n# my-hybrid\n" in card
    assert 'folder = "my-hybrid"' in card
    assert "demo" not in card
    assert "AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)" in card
    assert not re.search(r"/(tmp|home|root|work)/", card)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_can_be_read_by_others_as_far_as_the_umask_allows(exported: Export, tmp_path: Path, umask: int) -> None:
    model = build_model(ModelConfig(**expand_size({"size": "nano", "vocab_size": 380})))
    before = os.umask(umask)
    try:
        export.export_model(model.config, model.state_dict(), tmp_path / "out")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o666 & ~umask}


def test_the_tokenizer_of_a_hybrid_makes_what_the_model_takes(exported: Export) -> None:
    folder = exported(HYBRIDS["tied"])
    values = json.loads((folder / "tokenizer_config.json").read_bytes())
    assert values["padding_side"] == "right"
    assert values["model_max_length"] == LENGTH
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    found = tokenizer(["the king " * 30], truncation=True, return_tensors="pt")
    assert set(found) == {"input_ids", "attention_mask"}
    assert found["input_ids"].shape == (1, LENGTH)
