"""Exported folders in a process that cannot import this package; imported FNets compared with transformers' FNet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from launch.cli import main
from launch.preflight import check_initial_weights
from models.architectures.build import build_model
from models.architectures.encoder_only import encoder_inputs
from models.architectures.pieces import Inputs, TextInputs
from models.architectures.seq2seq import Seq2Seq
from models.config import ModelConfig, expand_size
from models.generation.beam_search import beam_search
from models.generation.sampling import Sampling, generate, pad_prefixes
from models.layers.initialization import initialize
from pipeline.config import RunConfig
from pipeline.eval.evaluate import check_fits
from pipeline.huggingface.export import export_model
from pipeline.huggingface.import_fnet import MODEL, import_fnet
from pipeline.huggingface.model_card import model_card
from pipeline.run_folder import load_weights

LENGTH = 24

# Loads a folder with transformers alone. It runs in another folder, where `models` and `pipeline` cannot be imported.
STRANGER = """
import json, sys
import torch, transformers
from importlib.util import find_spec
assert find_spec("pipeline") is None and find_spec("models") is None, "our package is visible here"
folder = sys.argv[1]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()
inputs = tokenizer(["the sea and the king", "a story"], return_tensors="pt", padding=True, return_token_type_ids=False)
decoder_ids = torch.arange(12).view(2, 6)
with torch.no_grad():
    logits = model(**inputs, decoder_input_ids=decoder_ids).logits
    greedy = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    beams = model.generate(**inputs, max_new_tokens=8, num_beams=3, num_return_sequences=3, do_sample=False)
    nocache = model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=False)
assert torch.equal(greedy, nocache)
labels = decoder_ids.clone()
model(**inputs, labels=labels).loss.backward()
assert all(parameter.grad is not None for parameter in model.parameters())
model.save_pretrained(sys.argv[2])
found = {"ids": inputs["input_ids"], "mask": inputs["attention_mask"], "logits": logits, "greedy": greedy, "beams": beams}
torch.save(found, sys.argv[3])
"""


def build(section: dict[str, Any]) -> Seq2Seq:
    model = build_model(ModelConfig(**expand_size({"size": "nano", "vocab_size": 380, **section})))
    assert isinstance(model, Seq2Seq)
    initialize(model, seed=5)
    return model.eval()


def export(model: Seq2Seq, folder: Path, tokenizer_file: Path) -> None:
    card = model_card(model.config, "nano", {"data": "a story"})
    export_model(model.config, model.state_dict(), folder, tokenizer=tokenizer_file, card=card, encoder_length=LENGTH)


def outputs_of_transformers(folder: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Outputs of the script above, run in a separate folder without this repository on its path."""
    away = tmp_path / "away"
    away.mkdir()
    # -I ignores PYTHONPATH and the current folder; the finder of an editable install of this package is removed too
    hide = (
        "import sys; sys.path = [p for p in sys.path if 'site-packages' in p or 'lib/python' in p];"
        "sys.meta_path = [f for f in sys.meta_path if '__editable__' not in repr(f)]\n"
    )
    result = tmp_path / "result.pt"
    done = subprocess.run(
        [sys.executable, "-I", "-c", hide + STRANGER, str(folder), str(tmp_path / "again"), str(result)],
        cwd=away,
        capture_output=True,
        text=True,
        env={"HOME": str(away), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(away / "hf")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(result)


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"num_attention_layers": 1, "tie_embeddings": False},
        {"encoder_block": "fnet", "feed_forward": "gelu_tanh", "init_std": 0.3, "max_length": 40},
        pytest.param({"mixing": "hartley", "feed_forward": "relu", "encoder_d_ff": 192}, marks=pytest.mark.slow),
        pytest.param({"architecture": "t5", "tie_embeddings": False}, marks=pytest.mark.slow),
    ],
    ids=["fourier", "mixed, untied", "FNet's encoder", "hartley, wide", "t5"],
)
def test_transformers_loads_an_export_and_computes_equal_outputs(
    section: dict[str, Any], tmp_path: Path, tokenizer_file: Path
) -> None:
    model = build(section)
    folder = tmp_path / "exported"
    export(model, folder, tokenizer_file)
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pkl", ".pt")]
    found = outputs_of_transformers(folder, tmp_path)
    prompts = [row[mask.bool()].tolist() for row, mask in zip(found["ids"], found["mask"], strict=True)]
    length = LENGTH if section.get("architecture") != "t5" else found["ids"].shape[1]
    ids, mask = pad_prefixes(prompts, length, pad_id=0)
    with torch.no_grad():
        logits = model(Inputs(ids, mask, torch.arange(12).view(2, 6)))[..., :380]
    # FNet's unnormalised transform amplifies rounding, so the tolerance is relative to the largest logit
    torch.testing.assert_close(found["logits"], logits, rtol=1e-4, atol=1e-5 * float(logits.abs().max()))
    greedy = torch.stack(list(generate(model, ids, mask, start_id=0, eos_id=1, sampling=Sampling(max_new_tokens=8))), 1)
    assert torch.equal(found["greedy"][:, 1 : 1 + greedy.shape[1]], greedy)
    beams = beam_search(model, ids, mask, start_id=0, eos_id=1, sampling=Sampling(max_new_tokens=8, num_beams=3))
    ours = [beam.tokens for row in beams for beam in row]
    assert [row[1 : 1 + len(tokens)].tolist() for row, tokens in zip(found["beams"], ours, strict=True)] == ours
    again = load_file(tmp_path / "again" / "model.safetensors")  # saved again by transformers, without loss
    assert all(
        torch.equal(again[name], tensor) for name, tensor in load_file(folder / "model.safetensors").items() if name in again
    )


@pytest.mark.parametrize(
    ("section", "auto"),
    [
        ({"architecture": "gpt2", "max_length": 32}, "AutoModelForCausalLM"),
        ({"architecture": "bert", "max_length": 32}, "AutoModelForMaskedLM"),
        ({"architecture": "fnet", "max_length": 32}, "AutoModelForMaskedLM"),
    ],
    ids=lambda value: value["architecture"] if isinstance(value, dict) else "",
)
def test_other_architectures_export_to_transformers_classes(
    section: dict[str, Any], auto: str, tmp_path: Path, tokenizer_file: Path
) -> None:
    model = build_model(ModelConfig(**expand_size({"size": "nano", "vocab_size": 380, **section}))).eval()
    initialize(model, seed=5)
    card = model_card(model.config, "nano", {})
    export_model(model.config, model.state_dict(), tmp_path / "out", tokenizer=tokenizer_file, card=card)
    assert not list((tmp_path / "out").glob("*.py"))
    theirs = getattr(transformers, auto).from_pretrained(tmp_path / "out").eval()
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(["the sea"], return_tensors="pt")["input_ids"]
    mask = torch.ones_like(ids)
    with torch.no_grad():
        found = model(TextInputs(ids, mask)) if "gpt2" in section.values() else model(encoder_inputs(ids, mask)).mlm
        torch.testing.assert_close(theirs(input_ids=ids).logits, found[..., :380], rtol=1e-4, atol=1e-5)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_mismatched_weights_error_names_the_tensor_and_the_remedy() -> None:
    model = build({})
    shapes = shapes_of(model)
    with pytest.raises(
        ValueError, match=r"feed_forward\.gate\.weight is \(192, 64\) there, \(128, 64\) by the model section; give"
    ):
        check_fits(model, shapes_of(build({"encoder_d_ff": 192})), "a does not fit b")
    del shapes["decoder.layers.1.cross_attention.key.weight"]
    with pytest.raises(ValueError, match=r"a does not fit b: missing \['decoder\.layers\.1\.cross_attention\.key"):
        check_fits(model, shapes, "a does not fit b")


def test_export_error_names_the_unsupported_field(tmp_path: Path, tokenizer_file: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.position is 'rope'.*'relative'"):
        export(build({"position": "rope"}), tmp_path / "a", tokenizer_file)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").touch()
    with pytest.raises(ValueError, match="not empty"):
        export(build({}), tmp_path / "b", tokenizer_file)


# --- import ---


@pytest.fixture(params=["safetensors", "bin", "bare"])
def fnet_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small random FNet in the format of google/fnet-base: the current one, the old one, and one without heads."""
    torch.manual_seed(0)
    config = transformers.FNetConfig(
        vocab_size=300, hidden_size=64, num_hidden_layers=2, intermediate_size=128, max_position_embeddings=24
    )
    model = (transformers.FNetModel if request.param == "bare" else transformers.FNetForPreTraining)(config)
    folder = tmp_path / "fnet"
    model.save_pretrained(folder)
    if request.param == "bin":
        tensors = model.state_dict() | {"fnet.embeddings.position_ids": torch.arange(24)[None]}
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def test_an_imported_encoder_equals_the_fnet_of_transformers(fnet_folder: Path, tmp_path: Path) -> None:
    report = import_fnet(fnet_folder, tmp_path / "out")
    config = ModelConfig(**json.loads((tmp_path / "out" / "model.json").read_bytes()))
    model = Seq2Seq(config).eval()
    model.load_state_dict(load_weights(tmp_path / "out"))
    theirs = transformers.FNetModel.from_pretrained(fnet_folder).eval()
    ids = torch.randint(0, 300, (2, 24))
    with torch.no_grad():
        expected = theirs(ids).last_hidden_state
        found = model.encode(ids, torch.ones_like(ids)).state.encoder_hidden
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    reported = set(report.used) | set(report.resized) | set(report.left)
    names = set(load_file(fnet_folder / "model.safetensors")) if (fnet_folder / "model.safetensors").exists() else set()
    assert reported >= {name if name.startswith(("fnet.", "cls.")) else f"fnet.{name}" for name in names}
    assert all(name.startswith(("decoder.", "relative_bias.")) for name in report.fresh)


def test_training_can_start_from_imported_weights(fnet_folder: Path, tmp_path: Path) -> None:
    """With model.json as the recipe's model section; another section is refused by name."""
    import_fnet(fnet_folder, tmp_path / "out", decoder_layers=1)
    section = json.loads((tmp_path / "out" / MODEL).read_text())
    length = section.get("max_length", 512)
    recipe = {
        "model": section,
        "data": {"path": "unused", "encoder_length": length, "decoder_length": 8},
        "train": {"steps": 1, "initial_weights": str(tmp_path / "out")},
    }
    check_initial_weights(RunConfig.model_validate(recipe))
    recipe["model"] = {**section, "num_decoder_layers": 2}
    with pytest.raises(ValueError, match=r"does not fit the recipe's model section: missing \['decoder.layers.1"):
        check_initial_weights(RunConfig.model_validate(recipe))


def test_a_different_vocabulary_and_length_are_resized_and_reported(fnet_folder: Path, tmp_path: Path) -> None:
    report = import_fnet(fnet_folder, tmp_path / "out", vocab_size=200, max_length=40, decoder_layers=1)
    assert report.resized == {
        "fnet.embeddings.word_embeddings.weight": "embedding.tokens.weight: 300 rows to 256, 200 kept",
        "fnet.embeddings.position_embeddings.weight": "encoder.input.positions.weight: 24 rows to 40, 24 kept",
    }
    weights = load_weights(tmp_path / "out")
    theirs = transformers.FNetModel.from_pretrained(fnet_folder).state_dict()
    assert torch.equal(weights["embedding.tokens.weight"][:200], theirs["embeddings.word_embeddings.weight"][:200])
    assert torch.equal(weights["encoder.input.positions.weight"][:24], theirs["embeddings.position_embeddings.weight"])


def test_the_import_command_reports_every_tensor(
    fnet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(
        sys, "argv", ["fnet-t5", "import", str(fnet_folder), "--output", str(tmp_path / "out"), "--vocab-size", "200"]
    )
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert not exit_info.value.code
    shown = capsys.readouterr().out
    for name in ("fnet.embeddings.word_embeddings.weight", "fnet.encoder.layer.1.output.dense.bias", "pooler.dense.weight"):
        assert name in shown
    assert "1 resized" in shown


def test_a_folder_without_an_fnet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        import_fnet(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model_type 'bert'"):
        import_fnet(tmp_path, tmp_path / "out")


def test_a_bin_file_that_runs_code_on_load_is_refused(fnet_folder: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (fnet_folder / "model.safetensors").unlink(missing_ok=True)
    torch.save({"fnet.embeddings.word_embeddings.weight": Evil()}, fnet_folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        import_fnet(fnet_folder, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
