"""The rows and targets of a validation are the same for every run, whatever its seed."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.config import RunConfig
from pipeline.data.batches import DataShard
from pipeline.eval.validation import first_rows, input_probe, validation_sets
from tests.helpers.recipes import nano_recipe


def test_validation_does_not_depend_on_the_seed_of_training(dataset: Path) -> None:
    """Span corruption draws its spans at random."""

    def tensors(seed: int) -> list[torch.Tensor]:
        data = {"objective": "span_corruption", "encoder_length": 48, "decoder_length": 40, "layout": "stream"}
        sections = nano_recipe(dataset, data=data, train={"steps": 1, "seed": seed})
        config = RunConfig.model_validate(sections)
        sets = validation_sets(config, DataShard(2))
        probe = input_probe(config, DataShard(2))
        assert probe is not None
        batches = [batch for part in sets for batch in part.batches] + probe.batches + probe.shuffled + [first_rows(config)]
        return [tensor for inputs, labels in batches for tensor in (*inputs, *labels)]

    first, second = tensors(1), tensors(2)
    assert len(first) == len(second) > 20
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
