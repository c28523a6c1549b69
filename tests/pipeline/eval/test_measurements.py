"""What is measured of a finished run: against a model that is scored row by row, and plain loops over tokens."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from data_prep.dataset.indexed_dataset import TokenFile
from data_prep.tokenization import tokenizer as tokenizers
from pipeline.config import RunConfig
from pipeline.data.batches import objective_of
from pipeline.eval.evaluate import evaluate_input_use
from pipeline.eval.evaluation_sets import evaluation_sets
from pipeline.eval.input_probes import shuffle, text_ids, text_places
from pipeline.eval.measurements import Extent, Measurements, measure_run, read_measurements
from pipeline.eval.row_losses import RowLosses, paired_difference, read_losses, slice_losses, slices_of, write_losses
from pipeline.eval.suffix_bpb import read_suffix_bpb
from pipeline.objectives.interface import VALIDATION_SEED, Batch
from pipeline.objectives.vocabulary import Vocabulary
from tests.helpers.recipes import nano_recipe, random_model, write_checkpoint, write_run

EXTENT = Extent(prefix=16, suffix=8, rows_per_source=5)


def trained(dataset: Path, folder: Path, architecture: str = "t5", objective: Any = "prefix_lm") -> RunConfig:
    """A run folder with random weights."""
    model = {"architecture": architecture} | ({"max_length": 24} if architecture == "gpt2" else {})
    data = {"objective": objective}
    if objective not in ("prefix_lm", "causal_lm"):
        data |= {"encoder_length": 24, "decoder_length": 12, "layout": "stream"}
    config = RunConfig.load(write_run(folder, nano_recipe(dataset, model=model, data=data, train={"steps": 1})))
    write_checkpoint(folder, config)
    return config


class Token(NamedTuple):
    row: int
    position: int
    nats: float
    is_text: bool
    in_prefix: bool


def by_hand(config: RunConfig, objective: Any, rows: Any, first: int = 0, change: Any = None) -> list[Token]:
    """Every target of a set whose first row has the number `first`: one row at a time, with plain lists."""
    vocabulary = Vocabulary.of(tokenizers.load_tokenizer(config.data.path / "tokenizer.json"))
    is_text = text_ids(vocabulary, config.model.vocab_size)
    model, found = random_model(config), []
    follows = config.data.objective.name == "prefix_lm"
    for number in range(len(rows)):
        tokens, lengths = rows.read(np.array([number]))
        row = first + number
        batch = objective(tokens, lengths, np.array([row]))
        assert isinstance(batch, Batch)
        inputs = tuple(torch.from_numpy(part) for part in batch.inputs)
        with torch.no_grad():
            logits = model(model.inputs(inputs if change is None else change(row, inputs, is_text)))
        nats = torch.nn.functional.cross_entropy(logits[0], torch.from_numpy(batch.targets[0]), reduction="none").tolist()
        read = batch.encoder_ids[0][batch.encoder_mask[0] > 0].tolist()
        bigrams = {(a, b) for a, b in pairwise(read) if is_text[a] and is_text[b]}
        before = read[-1] if follows else None
        for position in range(int(batch.target_mask.sum())):
            target = int(batch.targets[0, position])
            found.append(Token(row, position, nats[position], bool(is_text[target]), (before, target) in bigrams))
            before = target
    return found


def check(losses: RowLosses, expected: list[Token]) -> None:
    assert losses.row.tolist() == [one.row for one in expected]
    assert losses.position.tolist() == [one.position for one in expected]
    np.testing.assert_allclose(losses.nats, [one.nats for one in expected], rtol=2e-5)
    assert losses.is_text.tolist() == [one.is_text for one in expected]
    assert losses.in_prefix.tolist() == [one.in_prefix for one in expected]


def all_by_hand(config: RunConfig, objective: Any, sets: Any, change: Any = None) -> list[Token]:
    """Rows are numbered from set to set."""
    found: list[Token] = []
    first = 0
    for rows in sets.values():
        found += by_hand(config, objective, rows, first, change)
        first += len(rows)
    return found


def shuffled(row: int, inputs: Any, is_text: Any) -> Any:
    ids, mask, written = inputs
    return shuffle(ids, text_places(ids, mask, is_text), row), mask, written


def measured(run: Path, floors: Path | None = None) -> tuple[RowLosses, Measurements]:
    measure_run(run, EXTENT, floors)
    losses, found = read_losses(run), read_measurements(run)
    assert losses is not None
    assert found is not None
    return losses, found


def test_losses_of_a_prefix_lm_run_equal_those_of_single_rows(dataset: Path, tmp_path: Path) -> None:
    config = trained(dataset, tmp_path / "run")
    losses, found = measured(tmp_path / "run")
    objective, sets = objective_of(config, VALIDATION_SEED), evaluation_sets(dataset, "val", 24, 5, shortest=17)
    expected = all_by_hand(config, objective, sets)
    check(losses, expected)
    assert 0 < sum(one.in_prefix for one in expected) < len(expected)
    assert losses.source.tolist() == [name for name, rows in sets.items() for _ in by_hand(config, objective, rows)]
    assert found.num_rows == sum(map(len, sets.values())) == 10
    assert found.text_loss == pytest.approx(losses.nats[losses.is_text].mean(), rel=1e-6)
    changed = [one.nats for one in all_by_hand(config, objective, sets, shuffled) if one.is_text]
    assert found.input_use is not None
    assert found.input_use.shuffled_loss == pytest.approx(np.mean(changed), rel=1e-5)
    # suffix bits per byte come from the same pass, and count every target
    everything = read_suffix_bpb(tmp_path / "run")["all"]
    assert everything["nll"] == pytest.approx(float(losses.nats.sum()), rel=1e-5)


def test_documents_are_those_that_hold_the_rows(dataset: Path, tmp_path: Path) -> None:
    trained(dataset, tmp_path / "run")
    losses, _ = measured(tmp_path / "run")
    texts = TokenFile(dataset / "val")
    bounds = np.concatenate([[0], np.cumsum(texts.lengths)])
    number = 0
    for rows in evaluation_sets(dataset, "val", 24, 5, shortest=17).values():
        for row in range(len(rows)):
            tokens, lengths = rows.read(np.array([row]))
            (document,) = set(losses.document[losses.row == number].tolist())
            text = texts.tokens[bounds[document] : bounds[document + 1]].tolist()
            window = tokens[0, : lengths[0]].tolist()
            assert any(text[start : start + len(window)] == window for start in range(len(text)))
            number += 1


def test_only_text_counts_in_the_losses_of_span_corruption(dataset: Path, tmp_path: Path) -> None:
    """Sentinels and end tokens are written by the decoder, and are not text."""
    config = trained(dataset, tmp_path / "run", objective="span_corruption")
    losses, found = measured(tmp_path / "run")
    objective, length = objective_of(config, VALIDATION_SEED), config.data.row_length
    sets = evaluation_sets(dataset, "val", length, 5, shortest=length // 2)
    check(losses, all_by_hand(config, objective, sets))
    assert 0 < int((~losses.is_text).sum()) < int(losses.is_text.sum())
    assert found.text_tokens == int(losses.is_text.sum())
    assert "span_corruption" in found.rows
    changed = [one.nats for one in all_by_hand(config, objective, sets, shuffled) if one.is_text]
    assert found.input_use is not None
    assert found.input_use.shuffled_loss == pytest.approx(np.mean(changed), rel=1e-5)


def test_a_decoder_alone_is_scored_on_the_same_tokens_and_floors_are_counted_once(dataset: Path, tmp_path: Path) -> None:
    trained(dataset, tmp_path / "t5")
    trained(dataset, tmp_path / "gpt2", "gpt2", "causal_lm")
    losses, found = measured(tmp_path / "t5", tmp_path / "floors")
    (kept,) = (tmp_path / "floors").iterdir()
    floors = json.loads(kept.read_bytes())
    kept.write_text(json.dumps({**floors, "trigram_loss": 1.25}))
    theirs, second = measured(tmp_path / "gpt2", tmp_path / "floors")
    assert losses.is_on_rows_of(theirs)
    assert not np.array_equal(losses.nats, theirs.nats)
    assert found.text_sha256 == second.text_sha256
    assert second.input_use is None
    assert second.shuffle_cost is None
    assert second.floors is not None
    assert second.floors.trigram_loss == 1.25
    assert found.floors is not None
    assert found.floors.trigram_loss < found.floors.bigram_loss < found.floors.unigram_loss < math.log(600)


def test_a_run_is_not_measured_on_other_text(dataset: Path, tmp_path: Path) -> None:
    trained(dataset, tmp_path / "run")
    before, _ = measured(tmp_path / "run")
    with pytest.raises(ValueError, match=r"suffix_bpb\.json evaluates this run on other text \(8 tokens given 16"):
        measure_run(tmp_path / "run", Extent(prefix=12, suffix=8, rows_per_source=5))
    after = read_losses(tmp_path / "run")
    assert after is not None
    assert np.array_equal(before.nats, after.nats)


def made_up(num_documents: int, seed: int, shift: float = 0.0) -> RowLosses:
    """Losses whose tokens have a part in common in each document."""
    generator = np.random.default_rng(seed)
    sizes = np.random.default_rng(9).integers(5, 40, num_documents)
    document = np.repeat(np.arange(num_documents), sizes)
    nats = 2 + shift + 0.5 * generator.standard_normal(num_documents)[document] + generator.standard_normal(len(document))
    position = np.concatenate([np.arange(size) for size in sizes])
    return RowLosses(
        row=document.astype(np.int32),
        document=document.astype(np.int32),
        source=np.array(["Songs", "Tales"], dtype=object)[document % 2],
        position=position.astype(np.int16),
        nats=nats.astype(np.float32),
        is_text=position % 5 > 0,
        in_prefix=position % 3 == 0,
    )


def test_the_interval_of_a_difference_is_that_of_independent_documents() -> None:
    """Its half width is 1.96 standard errors of a ratio over clusters (Cochran 1977, Sampling Techniques, section 2.11)."""
    first, second = made_up(300, 1), made_up(300, 2, 0.1)
    chosen = first.is_text
    found = paired_difference(first, second, chosen, np.random.default_rng(0), 4000)
    ahead = (second.nats - first.nats)[chosen].astype(np.float64)
    assert found.value == pytest.approx(ahead.mean())
    rest = np.bincount(first.document[chosen], weights=ahead - ahead.mean())
    error = math.sqrt(300 / 299 * float((rest**2).sum())) / len(ahead)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    assert (found.high + found.low) / 2 == pytest.approx(found.value, abs=0.1 * error)
    alone = 1.96 * ahead.std() / math.sqrt(len(ahead))
    assert found.high - found.low > 1.5 * 2 * alone  # tokens of one document are alike


def test_intervals_contain_the_true_difference() -> None:
    found = []
    for number in range(200):
        first, second = made_up(60, 2 * number), made_up(60, 2 * number + 1, 0.1)
        one = paired_difference(first, second, first.is_text, np.random.default_rng(number), 400)
        found.append(one.low < 0.1 < one.high)
    assert 0.90 <= np.mean(found) <= 0.98


def test_other_rows_and_too_few_documents_are_refused() -> None:
    first, generator = made_up(30, 1), np.random.default_rng(0)
    with pytest.raises(ValueError, match="scored on other rows"):
        paired_difference(first, made_up(31, 2), first.is_text, generator)
    with pytest.raises(ValueError, match="4 documents are too few"):
        paired_difference(first, made_up(30, 2), first.document < 4, generator)


def test_slices_are_all_of_the_text_and_files_keep_what_was_written(tmp_path: Path) -> None:
    losses = made_up(30, 1)
    slices = list(slices_of(losses))
    for kind in ("place", "recall", "source", "position"):
        parts = [chosen for name, _, chosen in slices if name == kind]
        assert np.array_equal(np.sum(parts, axis=0), losses.is_text), kind
    means = {one.name: one for one in slice_losses(losses)}
    first = [float(n) for n, p, text in zip(losses.nats, losses.position, losses.is_text, strict=True) if text and p < 4]
    assert means["first 4 target tokens"].text_loss == pytest.approx(np.mean(first))
    assert means["first 4 target tokens"].tokens == len(first)
    write_losses(tmp_path, losses)
    again = read_losses(tmp_path)
    assert again is not None
    assert losses.is_on_rows_of(again)
    assert np.array_equal(losses.nats, again.nats)
    assert losses.source.tolist() == again.source.tolist()
    (tmp_path / "losses.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="delete it and measure the run again"):
        read_losses(tmp_path)
    (tmp_path / "measurements.json").write_text("{}")
    with pytest.raises(ValueError, match="measure the run again"):
        read_measurements(tmp_path)
    assert read_measurements(tmp_path / "nowhere") is None


def test_evaluation_reads_the_tokenizer_once(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(dataset, tmp_path / "run", objective="span_corruption")
    reads = []
    real = tokenizers.load_tokenizer

    def counted(path: Path) -> Any:
        reads.append(path)
        return real(path)

    for module in ("pipeline.eval.evaluate", "pipeline.data.batches"):
        monkeypatch.setattr(f"{module}.load_tokenizer", counted)
    evaluate_input_use(tmp_path / "run")
    assert len(reads) == 1
