"""Training a run folder with four processes: files, exact resume, comparison with one process, errors."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_prep.dataset.indexed_dataset import TokenFile
from data_prep.tokenization.tokenizer import load_tokenizer, num_ids
from launch.preflight import check_initial_weights
from models.architectures.pieces import Inputs
from models.config import expand_size
from models.generation.sampling import Sampling, generate, pad_prefixes
from pipeline.checkpoint.checkpoint import verify
from pipeline.config import RunConfig
from pipeline.data.batches import DataShard, Rows, TrainingBatches, objective_of
from pipeline.eval.evaluate import evaluate, evaluate_sources, load_model
from pipeline.eval.evaluation_sets import evaluation_sets
from pipeline.eval.generate import stop_ids, write_text, write_texts
from pipeline.eval.input_probes import shuffle
from pipeline.huggingface.export import export_run
from pipeline.objectives.loss import weighted_loss
from pipeline.run_folder import find, load_weights
from pipeline.tracking.metrics import read_metrics
from tests.helpers.processes import WORKER, start_processes
from tests.helpers.recipes import nano_recipe, write_run

NUM_PROCESSES = 4


def recipe(dataset: Path, **train: Any) -> dict[str, Any]:
    """Ten steps on tensor 2 × pipeline 2, saved and validated every five, tracked."""
    return nano_recipe(
        dataset,
        data={"validation_rows": 21},
        mesh={"tensor_parallel": 2, "pipeline_parallel": 2},
        train={"steps": 10, "checkpoint_every": 5, "validate_every": 5, **train},
        optimizer={"learning_rate": 0.003, "warmup_steps": 3, "decay_steps": 10},
        tracking={"experiment": "test", "enabled": True},
    )


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, dataset: Path, tracking: str) -> Path:
    """Ten steps without interruption."""
    run = write_run(tmp_path_factory.mktemp("runs") / "straight", recipe(dataset))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking)
        start_processes(NUM_PROCESSES, WORKER, run)
    return run


@pytest.fixture(scope="module")
def resumed(straight: Path, dataset: Path, tracking: str) -> Path:
    """Five steps, then resumed in the same folder to ten, with leftover files as after a crash."""
    run = write_run(straight.with_name("resumed"), recipe(dataset, steps=5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking)
        start_processes(NUM_PROCESSES, WORKER, run)
        config = json.loads((run / "config.json").read_text())
        config["train"]["steps"] = 10
        (run / "config.json").write_text(json.dumps(config))
        half_written = run / "checkpoints" / ".step_00000010.partial" / "weights"
        half_written.mkdir(parents=True)
        (half_written / "model-00001-of-00002.safetensors").write_bytes(b"cut")
        with (run / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 6, "loss": 1.0}\n{"step": 7, "lo')
        start_processes(NUM_PROCESSES, WORKER, run)
    return run


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the values that depend on the clock and the machine."""
    measured = ("seconds", "tokens_per_second", "tflops_per_device", "data_wait_seconds", "memory_gb")
    return {name: value for name, value in row.items() if name not in measured and not name.startswith("system_")}


def test_resume_is_bitwise_equal(straight: Path, resumed: Path) -> None:
    first, second = (load_weights(find(run, 10)) for run in (straight, resumed))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    rows = [[without_times(row) for row in read_metrics(run / "metrics.jsonl")] for run in (straight, resumed)]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0] if "loss" in row] == list(range(1, 11))


def test_resume_restores_the_optimizer(straight: Path, resumed: Path) -> None:
    folders = [run / "checkpoints/step_00000010/state/engine" for run in (straight, resumed)]
    names = sorted(path.name for path in folders[0].iterdir())
    assert len(names) == NUM_PROCESSES
    for name in names:
        ours, theirs = (load_file(folder / name) for folder in folders)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
        assert any(key.endswith("@exp_avg_sq") and value.abs().max() > 0 for key, value in ours.items())


def test_run_folder_has_the_documented_files(straight: Path, dataset: Path) -> None:
    assert (straight / "STATUS").read_text() == "finished\n"
    assert (straight / "checkpoints/latest").read_text() == "step_00000010\n"
    last = read_metrics(straight / "metrics.jsonl")[-1]
    assert last["validation_loss"] > 0
    assert last["source"] == "all"
    rows = [row for row in read_metrics(straight / "metrics.jsonl") if "loss" in row]
    for name in ("grad_norm", "learning_rate", "encoder_tokens", "decoder_tokens", "target_tokens", "flops", "seconds"):
        assert all(name in row for row in rows), name
    assert rows[-1]["encoder_tokens"] == 10 * 8 * 16
    assert rows[-1]["target_tokens"] < rows[-1]["raw_tokens"] <= 10 * 8 * 24
    assert rows[-1]["decoder_tokens"] == 10 * 8 * 8
    assert 0 < rows[-1]["target_tokens"] <= rows[-1]["decoder_tokens"]
    verify(straight / "checkpoints/step_00000010")


def test_one_process_computes_the_loss_of_four(straight: Path) -> None:
    validations = {row["step"]: row for row in read_metrics(straight / "metrics.jsonl") if "validation_loss" in row}
    for step in (5, 10):
        result = evaluate(straight, step)
        assert result.loss == pytest.approx(validations[step]["validation_loss"], rel=1e-5)
        assert result.target_tokens == validations[step]["validation_target_tokens"]


def test_the_loss_with_a_shuffled_input_is_logged_as_one_process_computes_it(straight: Path, dataset: Path) -> None:
    """On text tokens alone, without end tokens; four processes log what two passes in one process give."""
    model, config, _ = load_model(straight, 10)
    tokenizer = load_tokenizer(dataset / "tokenizer.json")
    special = {tokenizer.token_to_id(name) for name in ("<pad>", "</s>", "<unk>")}
    source = Rows(dataset, "val", 24)
    chosen = np.arange(min(config.train.input_use_rows, len(source)))
    ids, lengths = source.read(chosen)
    batch = objective_of(config)(ids, lengths, chosen)
    encoder, mask, *rest = map(torch.from_numpy, batch.inputs)
    targets, taken = map(torch.from_numpy, batch.losses[0])
    is_text = taken.bool() & torch.tensor([[one not in special for one in row] for row in targets.tolist()])
    changed = shuffle(encoder, (mask > 0) & torch.tensor([[one not in special for one in row] for row in encoder.tolist()]), 0)
    assert not torch.equal(changed, encoder)
    row = [row for row in read_metrics(straight / "metrics.jsonl") if "text_loss" in row][-1]
    assert (row["step"], row["source"]) == (10, "all")
    for name, inputs in (("text_loss", encoder), ("shuffled_text_loss", changed)):
        with torch.no_grad():
            nll = model.factory.cross_entropy(model(model.inputs((inputs, mask, *rest))), targets)
        assert row[name] == pytest.approx(float(nll[is_text].double().mean()), rel=1e-5)


def test_reference_losses_and_bits_per_byte_are_over_the_target_text(straight: Path, dataset: Path) -> None:
    """The test decodes the targets to count bytes, counts unigrams in Python, and computes bits per byte from both."""
    tokenizer = load_tokenizer(dataset / "tokenizer.json")
    ids, lengths = Rows(dataset, "val", 24).read(np.arange(21))
    targets = [row[16:length].tolist() for row, length in zip(ids, lengths, strict=True)]
    result = evaluate(straight)
    assert result.target_bytes == sum(len(tokenizer.decode(row).encode()) for row in targets)
    counts = Counter(np.asarray(TokenFile(dataset / "train").tokens).tolist())
    total = sum(counts.values()) + num_ids(tokenizer)
    flat = [token for row in targets for token in row]
    unigram = -sum(math.log((counts[token] + 1) / total) for token in flat) / len(flat)
    assert result.unigram_loss == pytest.approx(unigram, rel=1e-9)
    assert result.bits_per_byte == pytest.approx(result.loss * len(flat) / math.log(2) / result.target_bytes, rel=1e-9)


def test_text_is_streamed_during_decoding(straight: Path) -> None:
    model, config, _ = load_model(straight)
    tokenizer = load_tokenizer(straight / "tokenizer.json")
    sampling = Sampling(max_new_tokens=30, temperature=1.5, seed=4)
    streamed = "".join(write_text(model, tokenizer, "The “with” statement", config.data.encoder_length, sampling))
    prompt = tokenizer.encode("The “with” statement", add_special_tokens=False).ids
    encoder_ids, mask = pad_prefixes([prompt], config.data.encoder_length, pad_id=0)
    tokens = [int(token) for token in generate(model, encoder_ids, mask, start_id=0, eos_id=1, sampling=sampling)]
    assert streamed == tokenizer.decode([token for token in tokens if token != 1])
    with pytest.raises(ValueError, match="prompt is empty"):
        next(write_text(model, tokenizer, "", config.data.encoder_length, sampling))


def test_a_run_is_exported_with_its_results(straight: Path, tmp_path: Path) -> None:
    config = export_run(straight, tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert config.architecture == "fnet_t5"
    assert "validation loss, nats per target token" in card
    weights = load_weights(find(straight))
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert exported.keys() == weights.keys()
    assert all(torch.equal(exported[name], weights[name][: len(exported[name])]) for name in weights)


def test_batched_generation_equals_single_generation(straight: Path) -> None:
    model, config, _ = load_model(straight)
    tokenizer = load_tokenizer(straight / "tokenizer.json")
    length, prompts = config.data.encoder_length, ["The with statement", "x", "def test_"]
    for beams in (1, 3):
        sampling = Sampling(max_new_tokens=20, num_beams=beams)
        together = write_texts(model, tokenizer, prompts, length, sampling)
        assert together == ["".join(write_text(model, tokenizer, prompt, length, sampling)) for prompt in prompts]
    whole = write_texts(model, tokenizer, prompts[:1], length, Sampling(max_new_tokens=20))[0]
    tokens = tokenizer.encode(whole, add_special_tokens=False).ids
    cut = "".join(write_text(model, tokenizer, prompts[0], length, Sampling(max_new_tokens=20), stops=[tokens[3]]))
    assert whole.startswith(cut)
    assert len(cut) < len(whole)
    with pytest.raises(ValueError, match="--stop 'a long sentence' is"):
        stop_ids(tokenizer, ["a long sentence"])
    with pytest.raises(ValueError, match=r"number 2.*empty"):
        write_texts(model, tokenizer, ["a", ""], length, sampling)


def test_resume_continues_the_same_mlflow_run(resumed: Path, tracking: str) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking)
    run = client.get_run((resumed / "mlflow_run_id").read_text().strip())
    assert run.info.status == "FINISHED"
    assert run.data.params["train.steps"] == "5"
    assert run.data.tags["restart.train.steps"] == "10"
    experiment = client.get_experiment_by_name("test")
    assert len(client.search_runs([experiment.experiment_id])) == 2  # this run and the uninterrupted one
    history = client.get_metric_history(run.info.run_id, "loss")
    written = {row["step"]: row["loss"] for row in read_metrics(resumed / "metrics.jsonl") if "loss" in row}
    assert {metric.step: metric.value for metric in history} == written
    assert sorted(written) == list(range(1, 11))


def test_a_flipped_bit_in_a_checkpoint_is_detected(straight: Path, tmp_path: Path) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(straight / "checkpoints/step_00000010", copy)
    part = next((copy / "weights").glob("*.safetensors"))
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    with pytest.raises(ValueError, match=part.name):
        verify(copy)


def test_sources_are_scored_on_suffixes_given_prefixes(straight: Path, dataset: Path) -> None:
    """The same bits per byte by a plain loop over documents, one at a time."""
    scores = evaluate_sources(straight, prefix_length=12, suffix_length=8, rows_per_source=10_000)
    assert list(scores) == ["Python documentation", "Python topics"]
    model, _, _ = load_model(straight)
    tokenizer = load_tokenizer(dataset / "tokenizer.json")
    split = TokenFile(dataset / "val")
    nll, num_bytes, num_tokens = 0.0, 0, 0
    for number in range(0, len(split), 2):  # documents of the two sources alternate
        document = split[number].tolist()
        for start in range(0, len(document), 20):
            prefix, suffix = document[start : start + 12], document[start + 12 : start + 20]
            if not suffix:
                continue
            encoder_ids, mask = pad_prefixes([prefix], 16, pad_id=0)
            with torch.no_grad():
                logits = model(Inputs(encoder_ids, mask, torch.tensor([[0, *suffix[:-1]]])))
            nll -= float(logits.log_softmax(-1)[0, torch.arange(len(suffix)), suffix].double().sum())
            num_tokens += len(suffix)
            num_bytes += len(tokenizer.decode(suffix).encode()) if "\ufffd" not in tokenizer.decode(suffix) else 0
    found = scores["Python documentation"]
    assert found.target_tokens == num_tokens
    assert found.nll == pytest.approx(nll, rel=1e-5)
    assert found.target_bytes == pytest.approx(num_bytes, rel=0.01)
    assert found.bits_per_byte == pytest.approx(nll / math.log(2) / found.target_bytes, rel=1e-5)


def test_a_corrupt_checkpoint_is_skipped(straight: Path, tmp_path: Path) -> None:
    """The run resumes from the newest intact checkpoint, renames the corrupt one, and ends with equal losses."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    config = json.loads((run / "config.json").read_text())
    config["mesh"] = {"tensor_parallel": 1, "pipeline_parallel": 1}
    config["tracking"]["enabled"] = False
    (run / "config.json").write_text(json.dumps(config))

    def damage(step: int) -> None:
        part = next((run / f"checkpoints/step_{step:08d}/state/engine").iterdir())
        data = bytearray(part.read_bytes())
        data[-1] ^= 1
        part.write_bytes(data)

    damage(10)
    start_processes(1, WORKER, run)
    assert sorted(path.name for path in (run / "checkpoints").glob("step_*")) == [
        "step_00000005",
        "step_00000010",
        "step_00000010.damaged",
    ]
    for name, value in load_weights(find(straight, 10)).items():
        torch.testing.assert_close(load_weights(find(run, 10))[name], value, rtol=1e-3, atol=1e-4)
    damage(5)
    damage(10)
    with pytest.raises(AssertionError, match=r"has no intact checkpoint: .* differs from its checksum"):
        start_processes(1, WORKER, run)


def test_validation_is_logged_by_source(straight: Path, tracking: str) -> None:
    """The mean over each source's rows, weighted by targets, in the log and in MLflow."""
    from mlflow.tracking import MlflowClient

    rows = [row for row in read_metrics(straight / "metrics.jsonl") if "validation_loss" in row and row["step"] == 10]
    assert [row["source"] for row in rows] == ["Python documentation", "Python topics", "all"]
    config = RunConfig.load(straight)
    for row in rows[:-1]:
        source = evaluation_sets(config.data.path, "val", 24, 32, shortest=17)[row["source"]]
        tokens, lengths = source.read(np.arange(len(source)))
        assert row["validation_target_tokens"] == int((lengths - 16).sum())
        assert 0.5 < row["bits_per_byte"] < 12
        batch = objective_of(config)(tokens, lengths, np.arange(len(source)))
        model, _, _ = load_model(straight)
        with torch.no_grad():
            logits = model(model.inputs([torch.from_numpy(array) for array in batch.inputs]))
        targets, taken = map(torch.from_numpy, batch.losses[0])
        nll = model.factory.cross_entropy(logits, targets)
        expected = float(nll[taken > 0].double().mean())
        assert row["validation_loss"] == pytest.approx(expected, rel=1e-5)
    client = MlflowClient(tracking)
    run_id = (straight / "mlflow_run_id").read_text().strip()
    kept = client.get_metric_history(run_id, "validation_loss/Python topics")
    assert [metric.value for metric in kept][-1] == rows[1]["validation_loss"]
    by_tokens = client.get_metric_history(run_id, "by_tokens/loss")
    assert by_tokens[-1].step == read_metrics(straight / "metrics.jsonl")[-1]["raw_tokens"]


def test_a_run_starts_from_given_weights(straight: Path, tmp_path: Path, dataset: Path) -> None:
    """Start from another run's checkpoint: the first loss equals that model's loss on the new run's first batch."""
    given = find(straight, 10)
    run = write_run(tmp_path / "run", recipe(dataset, steps=1, seed=7, initial_weights=str(given)))
    config = json.loads((run / "config.json").read_text())
    config["mesh"] = {"tensor_parallel": 2, "pipeline_parallel": 1}
    config["tracking"]["enabled"] = False
    (run / "config.json").write_text(json.dumps(config))
    check_initial_weights(RunConfig.load(run))
    start_processes(2, WORKER, run)
    model, _, _ = load_model(straight, 10)
    resolved = RunConfig.load(run)
    batches = TrainingBatches(Rows(dataset, "train", 24), objective_of(resolved), DataShard(8), 8, resolved.train.seed)
    ((inputs, labels),), _ = batches.step(1)
    with torch.no_grad():
        expected = float(weighted_loss(model.factory)(model(model.inputs(inputs)), labels))
    assert read_metrics(run / "metrics.jsonl")[0]["loss"] == pytest.approx(expected, rel=1e-5)
    config["model"]["d_ff"] = 64
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"train\.initial_weights .* does not fit the recipe's model section: "):
        check_initial_weights(RunConfig.load(run))


SINGLE_STACKS = {
    "gpt2": ({"architecture": "gpt2", "max_length": 24}, {"objective": "causal_lm"}),
    "prefix_decoder": ({"architecture": "prefix_decoder"}, {"objective": "prefix_lm"}),
    "fnet": ({"architecture": "fnet", "max_length": 16}, {"objective": "masked_lm"}),
}


@pytest.mark.parametrize("name", ["gpt2", pytest.param("prefix_decoder", marks=pytest.mark.slow), "fnet"])
def test_models_of_one_stack_train(tmp_path: Path, dataset: Path, name: str) -> None:
    """Train from a recipe on pipeline 2, compute the same loss on one process, and generate text."""
    model, data = SINGLE_STACKS[name]
    run = write_run(tmp_path / name, recipe(dataset, steps=4, checkpoint_every=4, validate_every=4, samples=2, sample_tokens=5))
    config = json.loads((run / "config.json").read_text())
    vocab_size = config["model"]["vocab_size"]
    config["model"] = expand_size({"size": "nano", "vocab_size": vocab_size, **model})
    config["data"] = {"path": str(dataset), "validation_rows": 21, "encoder_length": 16, "decoder_length": 8, **data}
    config["mesh"] = {"tensor_parallel": 1, "pipeline_parallel": 2}
    config["tracking"]["enabled"] = False
    if name == "fnet":  # its rows are shorter
        config["data"]["layout"] = "stream"
    (run / "config.json").write_text(json.dumps(config))
    start_processes(2, WORKER, run)
    rows = read_metrics(run / "metrics.jsonl")
    result = evaluate(run)
    assert result.swapped_loss is None
    assert result.loss == pytest.approx(rows[-1]["validation_loss"], rel=1e-5)
    samples = run / "samples" / "step_00000004.txt"
    if name == "fnet":
        assert not samples.exists()
        return
    text = samples.read_text()
    assert text.count("given: ") == text.count("written: ") == 2
    if name == "gpt2":
        check_greedy(run, dataset)


def check_greedy(run: Path, dataset: Path) -> None:
    """The first sample is what `write_text` makes of the same half row."""
    model, _, _ = load_model(run)
    tokenizer = load_tokenizer(dataset / "tokenizer.json")
    tokens, lengths = Rows(dataset, "val", 24).read(np.arange(1))
    assert lengths[0] == 24
    prompt = tokenizer.decode(tokens[0, :12].tolist())
    assert tokenizer.encode(prompt).ids == tokens[0, :12].tolist()
    written = "".join(write_text(model, tokenizer, prompt, 16, Sampling(max_new_tokens=5)))
    shown = (run / "samples/step_00000004.txt").read_text().split("written: ")[1]
    assert shown.startswith(written + "\n")


@pytest.mark.slow
def test_another_objective_resumes_bitwise_equal(tmp_path: Path, dataset: Path) -> None:
    """A mixture on a blended stream, made by two threads three steps ahead; one range is skipped. Two replicas."""
    mixture = {
        "name": "mixture",
        "parts": [{"objective": "span_corruption", "mode_token": "[NLU]"}, {"objective": "text_infilling"}],
    }
    data = {
        "objective": mixture, "encoder_length": 48, "decoder_length": 40, "layout": "stream", "prefetch_steps": 3,
        "loader_workers": 2, "skip_ranges": [[9, 20]],
        "blend": [{"path": str(dataset), "weight": 3}, {"path": str(dataset), "weight": 1}],
    }  # fmt: skip
    runs = []
    for name, starts in (("straight", [6]), ("resumed", [3, 6])):
        run = write_run(tmp_path / name, recipe(dataset, steps=6, checkpoint_every=3, validate_every=3))
        config = json.loads((run / "config.json").read_text())
        config["data"] = {"path": str(dataset), "validation_rows": 21, **data}
        config["mesh"] = {"tensor_parallel": 1, "pipeline_parallel": 2}
        config["tracking"]["enabled"] = False
        for steps in starts:
            config["train"]["steps"] = steps
            (run / "config.json").write_text(json.dumps(config))
            start_processes(NUM_PROCESSES, WORKER, run)
        runs.append(run)
    first, second = (load_weights(find(run, 6)) for run in runs)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    rows = [[without_times(row) for row in read_metrics(run / "metrics.jsonl")] for run in runs]
    assert [row for row in rows[0] if "loss" in row] == [row for row in rows[1] if "loss" in row]
    assert rows[0][-1]["raw_tokens"] > 0
    assert evaluate(runs[1]).loss == pytest.approx(rows[1][-1]["validation_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"seed": 1}}, "train.seed 1 differs"),
        ({"model": {"d_ff": 64}}, "it is another model's checkpoint"),
        ({"data": {"layout": "stream"}}, "is not the data that"),
    ],
)
@pytest.mark.slow
def test_resume_with_changed_settings_is_refused(
    straight: Path, tmp_path: Path, change: dict[str, dict[str, Any]], message: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    config = json.loads((run / "config.json").read_text())
    for section, values in change.items():
        config[section].update(values)
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(AssertionError, match=message):
        start_processes(NUM_PROCESSES, WORKER, run)
    assert (run / "STATUS").read_text() == "failed\n"
