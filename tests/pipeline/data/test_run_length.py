"""Steps from tokens and epochs, and how often rows are read, compared with counting every sample."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.tokenization.tokenizer import load_tokenizer
from pipeline.config import RunConfig
from pipeline.data.batches import DataShard, TrainingBatches, objective_of, training_rows
from pipeline.data.blend import Blend
from pipeline.data.order import SampleOrder
from pipeline.data.run_length import describe_length, repetition_warnings, steps_of, with_steps
from tests.helpers.datasets import tales, write_text_dataset
from tests.helpers.recipes import nano_recipe


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """A folder with the tokenizer of `dataset` and fewer rows."""
    texts = {"train": tales(1)[:3], "val": tales(2)[:2]}
    tokenizer = load_tokenizer(dataset / "tokenizer.json")
    return write_text_dataset(tmp_path_factory.mktemp("small") / "data", texts, [24], tokenizer=tokenizer)


def opened(dataset: Path, other: Path | None = None, **train: Any) -> tuple[RunConfig, TrainingBatches]:
    """A run with batches of 8 rows; with `other`, a blend of 3 to 1."""
    data = {} if other is None else {"blend": [{"path": str(dataset), "weight": 3}, {"path": str(other), "weight": 1}]}
    config = RunConfig.model_validate(nano_recipe(dataset, data=data, train=train))
    rows, weights = training_rows(config.data)
    return config, TrainingBatches(rows, objective_of(config), DataShard(2), 8, config.train.seed, weights)


@pytest.mark.parametrize("epochs", [0.5, 1.0, 2.0, 2.25])
def test_epochs_are_the_fewest_steps_that_read_every_row_so_often(other: Path, epochs: float) -> None:
    config, batches = opened(other, epochs=epochs)
    steps = steps_of(config.train, batches)
    read = Counter(np.concatenate([batches.sample_rows(step) for step in range(1, steps + 1)]).tolist())
    assert sum(read.values()) >= epochs * len(batches.rows) > sum(read.values()) - 8
    if epochs == int(epochs):
        assert min(read[row] for row in range(len(batches.rows))) == epochs


def test_tokens_are_the_fewest_steps_that_read_them(other: Path) -> None:
    """Over whole epochs the mean is exact; in between the last rows decide."""
    _, batches = opened(other, steps=1)
    corpus = int((other / "train.bin").stat().st_size / 2)
    rows = len(batches.rows)
    for epochs in (1, 3):
        config, _ = opened(other, tokens=epochs * corpus)
        assert steps_of(config.train, batches) == -(-epochs * rows // 8)
    config, _ = opened(other, tokens=corpus // 2)
    steps = steps_of(config.train, batches)
    read = [sum(batches.raw_tokens(step) for step in range(1, count + 1)) for count in (steps - 1, steps)]
    assert read[0] - 24 * 8 < config.train.tokens <= read[1] + 24 * 8


def test_the_tokens_of_a_blend_are_weighted_by_its_shares(dataset: Path, tmp_path: Path) -> None:
    """The second folder has one short row."""
    texts = {"train": [("The.", "one")], "val": tales(2)[:2]}
    short = write_text_dataset(tmp_path / "short", texts, [24], tokenizer=load_tokenizer(dataset / "tokenizer.json"))
    config, batches = opened(dataset, short, tokens=2000)
    steps = steps_of(config.train, batches)
    read = sum(batches.raw_tokens(step) for step in range(1, steps + 1))
    assert read == pytest.approx(2000, abs=24 * 8)
    means = [sum(source.lengths(np.arange(len(source)))) / len(source) for source in batches.sources]
    assert means[1] < 0.5 * means[0]
    assert steps == -(-2000 // (8 * (0.75 * means[0] + 0.25 * means[1]))).astype(int)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 200))
def test_epochs_and_repeated_rows_are_those_of_a_plain_count(weights: list[int], position: int) -> None:
    sizes = [5, 17, 3, 40][: len(weights)]
    order = SampleOrder(sizes, weights, seed=2)
    sources, _ = Blend(weights)(np.arange(position))
    taken = np.bincount(sources, minlength=len(weights))
    assert order.epochs(position).tolist() == [count / size for count, size in zip(taken, sizes, strict=True)]
    rows = order.rows(np.arange(position))
    assert order.repeated_rows(position) == position - len(set(rows.tolist()))


def test_a_length_is_told_in_epochs(dataset: Path, other: Path) -> None:
    config, batches = opened(other, epochs=3)
    config = with_steps(config, batches)
    rows = len(batches.rows)
    steps = -(-3 * rows // 8)
    assert config.train.steps == steps
    read = f"{8 * steps / rows:.2f} epochs of the {rows} rows: every row is seen about {8 * steps / rows:.1f} times"
    assert describe_length(config, batches) == f"{steps} steps (train.epochs 3) read {read}"
    assert describe_length(*opened(dataset, steps=2)).endswith(": no row is seen twice")
    blended = describe_length(*opened(dataset, other, steps=rows))
    assert f"{2 * rows / rows:.2f} epochs of the {rows} rows of {other}: every row is seen about 2.0 times" in blended
    assert f"rows of {dataset}: no row is seen twice; " in blended
    with_tokens, batches = opened(other, tokens=5000)
    mean = sum(batches.rows.lengths(np.arange(rows))) / rows
    assert f"(train.tokens 5,000, at {mean:.1f} tokens a row on average)" in describe_length(with_tokens, batches)


def test_rows_repeated_in_every_batch_are_told(dataset: Path, other: Path) -> None:
    config, batches = opened(other, steps=1)
    assert repetition_warnings(config, batches) == []
    rows = len(batches.rows)
    size = 4 * rows
    large, _ = opened(other, steps=1, global_batch_size=size)
    (line,) = repetition_warnings(large, batches)
    assert line.startswith(
        f"warning: a step reads {size} rows of {other}, which has {rows}: each row is about 4.0 times in every"
    )
    blend, batches = opened(dataset, other, steps=1, global_batch_size=size + 8)
    (line,) = repetition_warnings(blend, batches)  # a quarter of the batch is one row more than the small folder has
    assert f"a step reads {rows + 2} rows of {other}, which has {rows}: " in line


def test_a_length_is_given_once(dataset: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.tokens 100 and train\.epochs 2\.0 both give the length of the run"):
        opened(dataset, tokens=100, epochs=2)
    with pytest.raises(ValueError, match=r"the run has no length: give train\.steps, train\.tokens or train\.epochs"):
        opened(dataset)
    config, batches = opened(dataset, steps=7, tokens=10**6)
    with pytest.raises(
        ValueError, match=r"train\.steps 7 and train\.tokens 1000000 \(which is \d+ steps of 8 rows\) both give"
    ):
        with_steps(config, batches)
    resolved = with_steps(opened(dataset, tokens=10**6)[0], batches)
    assert with_steps(resolved, batches) == resolved  # as a run's config.json is read again
    assert with_steps(opened(dataset, steps=7)[0], batches).train.steps == 7
