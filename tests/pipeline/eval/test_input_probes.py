"""Manipulations of the encoder's input: what each changes, what it keeps, and what it costs a model that cannot read order."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from data_prep.files import sha256_file
from data_prep.tokenization.tokenizer import load_tokenizer, num_ids
from launch.cli import _GlobalOptions, build_app
from models.architectures.build import build_model
from models.architectures.single_process import SingleProcessModel
from models.layers.initialization import initialize
from pipeline.config import RunConfig
from pipeline.data.batches import DataShard, PipelineBatch, objective_of, open_rows, validation_batches, vocabulary_of
from pipeline.eval.evaluate import evaluate
from pipeline.eval.input_probes import Swap, constant_input, first_half, input_use, shuffle, text_ids, text_places
from pipeline.objectives.loss import losses_of
from pipeline.objectives.vocabulary import Vocabulary
from tests.helpers.recipes import nano_recipe, write_run

SENTINEL, END = 30, 1
VOCABULARY = Vocabulary(start=0, end=END, sentinels=(SENTINEL, 31), ordinary=np.arange(2, 30))
ROWS, WIDTH = 40, 24


@pytest.fixture(scope="module")
def rows() -> tuple[Tensor, Tensor]:
    """Rows of 0 to 24 tokens: text, two sentinels at random places, and an end token."""
    generator = np.random.default_rng(0)
    ids = generator.integers(2, 30, (ROWS, WIDTH))
    for place in generator.integers(0, WIDTH, (2, ROWS)):
        ids[np.arange(ROWS), place] = SENTINEL
    lengths = np.concatenate([[0, 1, WIDTH], generator.integers(2, WIDTH + 1, ROWS - 3)])
    mask = np.arange(WIDTH) < lengths[:, None]
    ids[np.arange(ROWS), np.maximum(lengths - 1, 0)] = END
    return torch.from_numpy(ids * mask), torch.from_numpy(mask.astype(np.int64))


def test_ids_of_text_are_those_that_occur_in_it() -> None:
    assert np.flatnonzero(text_ids(VOCABULARY, 40)).tolist() == list(range(2, 30))
    assert len(text_ids(VOCABULARY, 8)) == 8


@pytest.mark.parametrize("half", [False, True])
def test_shuffling_keeps_the_tokens_of_a_row_and_every_place_of_other_tokens(rows: tuple[Tensor, Tensor], half: bool) -> None:
    ids, mask = rows
    places = text_places(ids, mask, text_ids(VOCABULARY, 40))
    chosen = first_half(places) if half else places
    found = shuffle(ids, chosen, 0)
    assert torch.equal(found.sort(1).values, ids.sort(1).values)
    assert torch.equal(found[~chosen], ids[~chosen])
    moved = (found != ids).any(1)
    assert moved[chosen.sum(1) > 5].all()
    for row, kept in enumerate(places.tolist()):  # the places by a plain loop
        expected = [place for place in range(WIDTH) if mask[row, place] and ids[row, place] not in (END, SENTINEL)]
        assert [place for place in range(WIDTH) if kept[place]] == expected
        if half:
            assert chosen[row].nonzero()[:, 0].tolist() == expected[: len(expected) // 2]


def test_every_order_of_a_shuffled_row_is_equally_likely() -> None:
    ids = torch.arange(3).repeat(6_000, 1)
    found = shuffle(ids, torch.ones_like(ids, dtype=torch.bool), 0)
    counts = torch.bincount(found @ torch.tensor([9, 3, 1]))
    assert (counts > 0).sum() == 6
    assert counts[counts > 0].sub(1_000).abs().max() < 5 * math.sqrt(1_000)


def test_the_order_depends_on_the_number_of_the_row_only(rows: tuple[Tensor, Tensor]) -> None:
    ids, mask = rows
    places = text_places(ids, mask, text_ids(VOCABULARY, 40))
    whole = shuffle(ids, places, 0)
    parts = [shuffle(ids[first : first + 7], places[first : first + 7], first) for first in range(0, ROWS, 7)]
    assert torch.equal(torch.cat(parts), whole)


def test_swapped_rows_are_all_rows_and_none_keeps_its_own(rows: tuple[Tensor, Tensor]) -> None:
    """Rows without text stay where they are."""
    ids, mask = rows
    ids, mask = ids.clone(), mask.clone()
    ids[:, 0], mask[1:, 0] = torch.arange(ROWS), 1  # every row has a number
    ids, mask = ids * mask, mask
    batches = [((ids[first : first + 8], mask[first : first + 8], ids[:8]), (ids[:8],)) for first in range(0, ROWS, 8)]
    swap = Swap(batches)
    swapped = [swap(index, inputs) for index, (inputs, _) in enumerate(batches)]
    numbers = torch.cat([inputs[0] for inputs in swapped])[:, 0]
    assert numbers[0] == 0
    assert sorted(numbers.tolist()) == list(range(ROWS))
    assert (numbers[1:] != torch.arange(1, ROWS)).all()
    assert torch.equal(torch.cat([inputs[1] for inputs in swapped]), mask[numbers])
    assert all(inputs[2] is batch[0][2] for inputs, batch in zip(swapped, batches, strict=True))


def test_the_constant_input_is_one_token(rows: tuple[Tensor, Tensor]) -> None:
    ids, mask = constant_input(*rows, END)
    assert mask.sum(1).tolist() == [1] * ROWS
    assert ids.tolist() == [[END] + [0] * (WIDTH - 1)] * ROWS


def config_of(dataset: Path, folder: Path, model: dict[str, object], **data: object) -> RunConfig:
    return RunConfig.load(write_run(folder, nano_recipe(dataset, model=model, data=data, train={"steps": 1})))


def random_model(config: RunConfig) -> SingleProcessModel:
    model = build_model(config.model)
    initialize(model, seed=5)
    return model.eval()


def write_checkpoint(folder: Path, config: RunConfig) -> None:
    """A complete checkpoint of random weights."""
    checkpoint = folder / "checkpoints" / "step_00000001"
    (checkpoint / "weights").mkdir(parents=True)
    (checkpoint / "state").mkdir()
    weights = {name: value.contiguous() for name, value in random_model(config).state_dict().items()}
    save_file(weights, checkpoint / "weights" / "model.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "model.safetensors")}
    (checkpoint / "weights" / "model.safetensors.index.json").write_text(json.dumps(index))
    sums = {f"weights/{path.name}": sha256_file(path) for path in (checkpoint / "weights").iterdir()}
    (checkpoint / "state" / "manifest.json").write_text(json.dumps({"sha256": sums}))
    (folder / "tokenizer.json").write_bytes((config.data.path / "tokenizer.json").read_bytes())


@pytest.mark.parametrize("architecture", ["t5", "fnet_t5"])
def test_losses_are_those_of_a_model_that_reads_the_changed_rows(dataset: Path, tmp_path: Path, architecture: str) -> None:
    """Row by row: one pass for each, with the encoder's text changed by hand."""
    config = config_of(dataset, tmp_path / "run", {"architecture": architecture})
    data, vocabulary = config.data, vocabulary_of(config.data.path)
    batches, num_targets = validation_batches(open_rows(data, data.path, "val"), objective_of(config), DataShard(3), 7)
    model = random_model(config)
    found = input_use(model, batches, vocabulary)
    is_text = text_ids(vocabulary, config.model.vocab_size)
    totals = dict.fromkeys(("shuffled", "far", "none"), 0.0)
    number = 0
    with torch.no_grad():
        for inputs, labels in batches:
            for row in range(3):
                ids, mask, written, targets, weights = (part[row : row + 1] for part in (*inputs, *labels))
                places = text_places(ids, mask, is_text)
                changed = {
                    "shuffled": (shuffle(ids, places, number), mask),
                    "far": (shuffle(ids, first_half(places), number), mask),
                    "none": constant_input(ids, mask, vocabulary.end),
                }
                number += 1
                for name, encoder in changed.items():
                    ((nll, _),) = losses_of(model(model.inputs((*encoder, written))), (targets, weights), model.factory)
                    totals[name] += float(nll[weights > 0].sum())
    assert found.shuffled_loss == pytest.approx(totals["shuffled"] / num_targets, rel=1e-5)
    assert found.far_half_shuffled_loss == pytest.approx(totals["far"] / num_targets, rel=1e-5)
    assert found.no_input_loss == pytest.approx(totals["none"] / num_targets, rel=1e-5)


def test_an_encoder_that_mixes_nothing_and_has_no_positions_cannot_tell_the_order(dataset: Path, tmp_path: Path) -> None:
    """Its decoder reads a set of vectors: shuffling changes nothing but rounding, another row's text does."""
    config = config_of(dataset, tmp_path / "run", {"architecture": "fnet_t5", "mixing": "identity"})
    data = config.data
    batches, _ = validation_batches(open_rows(data, data.path, "val"), objective_of(config), DataShard(4), 8)
    model = random_model(config)
    found = input_use(model, batches, vocabulary_of(data.path))
    plain = loss_by_hand(model, batches)
    assert found.shuffled_loss == pytest.approx(plain, abs=1e-5)
    assert found.far_half_shuffled_loss == pytest.approx(plain, abs=1e-5)
    assert abs(found.no_input_loss - plain) > 1e-4


def loss_by_hand(model: SingleProcessModel, batches: list[PipelineBatch]) -> float:
    total = count = 0.0
    with torch.no_grad():
        for inputs, (targets, weights) in batches:
            nll = torch.nn.functional.cross_entropy(model(model.inputs(inputs)).transpose(1, 2), targets, reduction="none")
            total, count = total + float(nll[weights > 0].sum()), count + int((weights > 0).sum())
    return total / count


@pytest.mark.parametrize(
    ("architecture", "objective"), [("fnet_t5", "prefix_lm"), ("gpt2", "causal_lm"), ("fnet", "masked_lm")]
)
def test_the_command_prints_them_below_its_lines(
    dataset: Path, tmp_path: Path, architecture: str, objective: str, capsys: pytest.CaptureFixture[str]
) -> None:
    has_encoder_and_decoder = architecture == "fnet_t5"
    model = {"architecture": architecture} | ({} if has_encoder_and_decoder else {"max_length": 24})
    folder = tmp_path / "run"
    config = config_of(dataset, folder, model, objective=objective, layout="stream")
    write_checkpoint(folder, config)
    app = build_app(_GlobalOptions())
    app(["evaluate", str(folder), "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(evaluate(folder).loss, rel=1e-6)
    assert (found["input_use"] is not None) == has_encoder_and_decoder
    assert found["floors"]["unigram_loss"] < math.log(num_ids(load_tokenizer(config.data.path / "tokenizer.json")))
    app(["evaluate", str(folder)], standalone_mode=False)
    lines, use = capsys.readouterr().out.split("Does the model use its input?")
    assert "validation loss, nats per target token" in lines
    assert ("with encoder inputs swapped between rows" in lines) == has_encoder_and_decoder
    assert ("no encoder input" in use) == has_encoder_and_decoder
    if has_encoder_and_decoder:
        row = next(line for line in use.splitlines() if "its tokens shuffled in the row" in line)
        assert f"{found['input_use']['shuffled_loss']:.4f}" in row
        assert f"{found['input_use']['shuffled_loss'] - found['loss']:+.4f}" in row
    token_loss = found["loss"] - (found["order_loss"] or 0)
    trigram = next(line for line in use.splitlines() if "floor: trigram" in line)
    assert f"{found['floors']['trigram_loss'] - token_loss:+.4f}" in trigram
    assert "better than the model" in trigram  # the model's weights are random
