"""Weights of a run folder are read with their checksums by everything that loads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.eval.evaluate import load_model
from pipeline.huggingface.export import export_run
from pipeline.run_folder import find, load_weights
from tests.helpers.recipes import nano_recipe, write_checkpoint, write_run

READERS: dict[str, Callable[[Path, Path], object]] = {
    "weights": lambda run, there: load_weights(find(run)),
    "evaluate and generate": lambda run, there: load_model(run),
    "export": lambda run, there: export_run(run, there),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_flipped_bit_in_the_weights_is_refused(reader: str, dataset: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", nano_recipe(dataset, train={"steps": 1}))
    write_checkpoint(run, RunConfig.load(run))
    READERS[reader](run, tmp_path / "intact")
    weights = find(run) / "weights" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1  # the last bit of a mantissa
    weights.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors differs from its checksum: the checkpoint is damaged"):
        READERS[reader](run, tmp_path / "damaged")
    assert not (tmp_path / "damaged" / "model.safetensors").exists()
