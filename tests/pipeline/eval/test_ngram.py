"""n-gram tables against a dictionary implementation, known texts, and the n-grams of each form of batch."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.dataset.indexed_dataset import TokenFile
from data_prep.tokenization.tokenizer import load_tokenizer, num_ids
from pipeline.config import RunConfig
from pipeline.data.batches import DataShard, objective_of, open_rows, validation_batches
from pipeline.eval.evaluate import unigram_losses
from pipeline.eval.floors import ngram_floors, split, target_contexts
from pipeline.eval.ngram import UNKNOWN, bucket_weights, encode, fit, windows
from pipeline.objectives.interface import VALIDATION_SEED
from tests.helpers.recipes import nano_recipe, write_run

VOCABULARY = 7


def brute_force(counted: list[int], held_out: list[int], scored: list[int]) -> list[list[float]]:
    """Nats of each token of `scored` under order 1, 2, 3: dictionaries, and weights by the same rule in a plain loop."""
    grams = [Counter(tuple(counted[i - n + 1 : i + 1]) for i in range(n - 1, len(counted))) for n in (1, 2, 3)]
    contexts = [Counter(gram[:-1] for gram in found.elements()) for found in grams]

    def chances(text: list[int], weights: list[dict[int, float]]) -> list[list[float]]:
        rows = []
        for place, token in enumerate(text):
            row = [1 / VOCABULARY]
            for order, table in enumerate(weights):
                context = tuple(text[place - order : place]) if place >= order else None
                total = contexts[order][context] if context is not None else 0
                weight = table.get(total.bit_length(), 0.5) if total else 0.0
                longer = grams[order][(*context, token)] / total if total and context is not None else 0.0
                row.append(weight * longer + (1 - weight) * row[-1])
            rows.append(row)
        return rows

    weights: list[dict[int, float]] = []
    for order in range(3):
        shorter = [row[-1] for row in chances(held_out, weights)]
        cases: dict[int, list[tuple[float, float]]] = {}
        for place, token in enumerate(held_out):
            context = tuple(held_out[place - order : place])
            total = contexts[order][context] if place >= order else 0
            if total:
                pair = grams[order][(*context, token)] / total, shorter[place]
                cases.setdefault(total.bit_length(), []).append(pair)
        found = {}
        for bucket, pairs in cases.items():
            weight = 0.5
            for _ in range(30):
                share = sum(weight * a / (weight * a + (1 - weight) * b) for a, b in pairs)
                weight = (share + 0.5) / (len(pairs) + 1)
            found[bucket] = weight
        weights.append(found)
    return [[-math.log(chance) for chance in row[1:]] for row in chances(scored, weights)]


def test_losses_equal_those_of_dictionaries() -> None:
    generator = np.random.default_rng(3)
    step = generator.integers(0, 3, 900)
    text = (np.cumsum(step) % VOCABULARY).astype(np.int64)  # the next token depends on the last one
    counted, held_out, scored = text[:600], text[600:750], text[750:]
    model = fit(windows(counted), windows(held_out), VOCABULARY)
    expected = np.array(brute_force(counted.tolist(), held_out.tolist(), scored.tolist())).T
    np.testing.assert_allclose(model.losses(*windows(scored)), expected, rtol=1e-9)


def test_the_probabilities_of_all_tokens_after_a_context_sum_to_one() -> None:
    text = np.random.default_rng(0).integers(0, VOCABULARY, 300)
    model = fit(windows(text[:200]), windows(text[200:]), VOCABULARY)
    for context in ([1, 2], [UNKNOWN, 4], [UNKNOWN, UNKNOWN]):
        losses = model.losses(np.tile(context, (VOCABULARY, 1)), np.arange(VOCABULARY))
        np.testing.assert_allclose(np.exp(-losses).sum(1), 1, rtol=1e-12)


def test_the_perplexity_of_uniform_random_text_is_the_size_of_its_vocabulary() -> None:
    text = np.random.default_rng(1).integers(0, 50, 60_000)
    counted, held_out = split(windows(text[:50_000]))
    losses = fit(counted, held_out, 50).losses(*windows(text[50_000:])).mean(1)
    np.testing.assert_allclose(np.exp(losses), 50, rtol=0.02)


def test_a_cycle_is_known_from_as_many_tokens_as_it_needs() -> None:
    """In 0 1 0 2 0 1 0 2 … a 0 is followed by 1 or 2, each half of the time: only two tokens of context tell which."""
    text = np.tile([0, 1, 0, 2], 5_000)
    counted, held_out = split(windows(text))
    unigram, bigram, trigram = fit(counted, held_out, 3).losses(*windows(text[:4_000])).mean(1)
    assert unigram == pytest.approx(1.5 * math.log(2), abs=0.01)
    assert bigram == pytest.approx(0.5 * math.log(2), abs=0.01)
    assert trigram < 0.01


def test_the_unigram_table_is_the_unigram_model_but_for_its_smoothing() -> None:
    text = np.random.default_rng(2).zipf(1.5, 100_000) % 200
    counted, held_out = windows(text), windows(text[:5_000])
    found = fit(counted, held_out, 200, max_order=1).losses(*windows(text))[0]
    assert found.mean() == pytest.approx(unigram_losses(text, 200)[text].mean(), rel=1e-3)


def test_the_weights_maximise_the_likelihood_of_held_out_tokens() -> None:
    generator = np.random.default_rng(5)
    longer, shorter = generator.random((2, 4_000))
    weight = bucket_weights(longer, shorter, np.full(4_000, 6))[6]
    grid = np.linspace(0.001, 0.999, 999)
    best = grid[np.argmax([np.log(g * longer + (1 - g) * shorter).sum() for g in grid])]
    assert weight == pytest.approx(best, abs=0.02)


def test_a_vocabulary_too_large_for_the_order_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit 64 bits"):
        encode(np.zeros((1, 2), dtype=np.int64), np.zeros(1, dtype=np.int64), 3, 1 << 22)


def test_the_parts_of_a_split_are_all_of_it() -> None:
    contexts, targets = windows(np.arange(100_000))
    counted, held_out = split((contexts, targets))
    assert sorted([*counted[1], *held_out[1]]) == targets.tolist()
    assert len(held_out[1]) / len(targets) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("objective", ["prefix_lm", "span_corruption"])
def test_contexts_are_the_tokens_before_the_target_in_its_row(dataset: Path, tmp_path: Path, objective: str) -> None:
    """In a batch of one row, read from the row and from the decoder's text by plain lists."""
    config = config_of(dataset, tmp_path, objective)
    rows, made = open_rows(config.data, dataset, "val"), objective_of(config, VALIDATION_SEED)
    row = np.array([2])
    ids, lengths = rows.read(row)
    batch = made(ids, lengths, row)
    targets, mask = batch.losses[0]
    follows = objective == "prefix_lm"
    contexts, found = target_contexts("encoder_decoder", batch.inputs, targets, mask > 0, follows)
    written = targets[0][mask[0] > 0].tolist()
    text = (ids[0, : lengths[0]].tolist() if follows else [UNKNOWN, UNKNOWN, *written])[-len(written) - 2 :]
    assert found.tolist() == written
    assert contexts.tolist() == [text[place : place + 2] for place in range(len(written))]


def test_contexts_of_one_stack() -> None:
    ids, targets = np.array([[9, 5, 6, 7]]), np.array([[5, 6, 7, 8]])
    contexts, _ = target_contexts("decoder_only", (ids, ids > 0), targets, np.array([[True, False, True, True]]), False)
    assert contexts.tolist() == [[UNKNOWN, UNKNOWN], [5, 6], [6, 7]]
    places = np.array([[1, 3]])
    contexts, _ = target_contexts("encoder_only", (ids, ids, ids, places), np.array([[1, 2]]), np.array([[True, True]]), False)
    assert contexts.tolist() == [[UNKNOWN, 9], [5, 6]]


def config_of(dataset: Path, folder: Path, objective: str, **model: object) -> RunConfig:
    layout = {"layout": "stream"} if objective != "prefix_lm" else {}
    recipe = nano_recipe(dataset, data={"objective": objective, **layout}, train={"steps": 1}, model=model)
    if objective == "span_corruption":
        recipe["data"] |= {"encoder_length": 24, "decoder_length": 12}
    if model.get("architecture") in ("gpt2", "fnet"):
        recipe["model"] |= {"max_length": 24}
    return RunConfig.load(write_run(folder / "run", recipe))


@pytest.mark.parametrize(
    ("objective", "architecture"),
    [("prefix_lm", "fnet_t5"), ("span_corruption", "t5"), ("causal_lm", "gpt2"), ("masked_lm", "fnet")],
)
def test_floors_of_each_form(dataset: Path, tmp_path: Path, objective: str, architecture: str) -> None:
    config = config_of(dataset, tmp_path, objective, architecture=architecture)
    batches, num_targets = validation_batches(
        open_rows(config.data, dataset, "val"), objective_of(config, VALIDATION_SEED), DataShard(2), 8
    )
    size = num_ids(load_tokenizer(dataset / "tokenizer.json"))
    floors = ngram_floors(config, batches, size)
    assert num_targets > 0
    assert floors.trigram_loss < floors.bigram_loss + 0.1 < floors.unigram_loss < math.log(size) + 1
    if objective == "span_corruption":  # its tables know sentinels, which the training text does not have
        tokens = TokenFile(dataset / "train").tokens
        written = np.concatenate([labels[0][labels[1] > 0].numpy() for _, labels in batches])
        assert floors.unigram_loss < unigram_losses(tokens, size)[written].mean()


def test_only_the_given_number_of_tokens_is_counted(dataset: Path, tmp_path: Path) -> None:
    config = config_of(dataset, tmp_path, "prefix_lm")
    batches, _ = validation_batches(open_rows(config.data, dataset, "val"), objective_of(config), DataShard(2), 8)
    assert ngram_floors(config, batches, 4096, max_tokens=1_000).counted_tokens == 950
