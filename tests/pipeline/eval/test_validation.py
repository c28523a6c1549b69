"""The rows and targets of a validation are the same for every run, whatever its seed, and for `fnet-t5 evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from data_prep.tokenization.tokenizer import load_tokenizer
from pipeline.config import RunConfig
from pipeline.data.batches import DataShard, PipelineBatch
from pipeline.eval.evaluate import LoadedRun
from pipeline.eval.validation import first_rows, input_probe, validation_sets
from tests.helpers.recipes import nano_recipe


def config_of(dataset: Path, seed: int) -> RunConfig:
    """Span corruption draws its spans at random."""
    data = {"objective": "span_corruption", "encoder_length": 48, "decoder_length": 40, "layout": "stream"}
    return RunConfig.model_validate(nano_recipe(dataset, data=data, train={"steps": 1, "seed": seed}))


def tensors(batches: Sequence[PipelineBatch]) -> list[torch.Tensor]:
    return [tensor for inputs, labels in batches for tensor in (*inputs, *labels)]


def assert_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert len(first) == len(second) > 0
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_validation_does_not_depend_on_the_seed_of_training(dataset: Path) -> None:
    def made(seed: int) -> list[torch.Tensor]:
        config = config_of(dataset, seed)
        probe = input_probe(config, DataShard(2))
        assert probe is not None
        sets = validation_sets(config, DataShard(2))
        return tensors(
            [*(batch for part in sets for batch in part.batches), *probe.batches, *probe.shuffled, first_rows(config)]
        )

    assert_equal(made(1), made(2))


def test_a_run_is_evaluated_on_the_rows_that_it_validated_on(dataset: Path) -> None:
    config, no_model = config_of(dataset, 3), None
    tokenizer = load_tokenizer(dataset / "tokenizer.json")
    loaded = LoadedRun(run=dataset, step=1, model=no_model, config=config, tokenizer=tokenizer)  # type: ignore[arg-type]
    batches, num_targets = loaded.validation()
    whole = validation_sets(config, DataShard(config.train.micro_batch_size))[-1]
    assert_equal(tensors(batches), tensors(whole.batches))
    assert num_targets == whole.target_tokens > 0
