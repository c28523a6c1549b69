"""What the ranks check before and after they load a checkpoint: its data and seed, and the logits that it stores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.checkpoint import load_check
from pipeline.checkpoint.checkpoint import Position
from pipeline.checkpoint.load_check import check_logits, holds_not_finite
from pipeline.checkpoint.resume import validate_position
from pipeline.tracking.metrics import Counters


def test_other_data_and_another_seed_are_refused_by_the_ranks() -> None:
    position = Position(step=4, seed=3, dataset_fingerprint="abc", counters=Counters(), mesh={})
    config: Any = SimpleNamespace(data=SimpleNamespace(path=Path("data")), train=SimpleNamespace(seed=3))
    validate_position(position, config, "abc", Path("run"))
    with pytest.raises(
        ValueError, match=r"data is not the data that run was trained on \(fingerprint abd, the checkpoint has abc"
    ):
        validate_position(position, config, "abd", Path("run"))
    with pytest.raises(ValueError, match=r"train\.seed 3 differs from the checkpoint's 4"):
        validate_position(replace(position, seed=4), config, "abc", Path("run"))


@pytest.fixture
def _alone() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize(
    ("change", "is_accepted"), [(0.0, True), (9e-4, True), (2e-3, False), (float("nan"), False), (float("inf"), False)]
)
def test_loaded_logits_must_be_those_that_are_stored(
    change: float, is_accepted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the largest logit, 4, a thousandth is allowed in fp32."""
    stored = torch.tensor([[1.0, -4.0, 2.0]])
    computed = stored.clone()
    computed[0, 0] += 4 * change
    save_file({"logits": stored}, tmp_path / "probe.safetensors")
    monkeypatch.setattr(load_check, "selected_logits", lambda engine, batch: computed)
    config = SimpleNamespace(train=SimpleNamespace(precision="fp32"))
    engine: Any = SimpleNamespace(config=config, mesh=SimpleNamespace(device="cpu"))
    batch: Any = None
    if is_accepted:
        check_logits(tmp_path, engine, batch)
        return
    with pytest.raises(ValueError, match="computes other logits than those stored with it"):
        check_logits(tmp_path, engine, batch)


@pytest.mark.usefixtures("_alone")
def test_logits_of_another_shape_and_stored_ones_that_are_not_finite_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = SimpleNamespace(
        config=SimpleNamespace(train=SimpleNamespace(precision="fp32")), mesh=SimpleNamespace(device="cpu")
    )
    batch: Any = None
    monkeypatch.setattr(load_check, "selected_logits", lambda engine, batch: torch.ones(1, 4))
    save_file({"logits": torch.ones(1, 3)}, tmp_path / "probe.safetensors")
    with pytest.raises(ValueError, match="computes other logits"):
        check_logits(tmp_path, engine, batch)
    assert not holds_not_finite(tmp_path)
    save_file({"logits": torch.tensor([[1.0, float("nan")]])}, tmp_path / "probe.safetensors")
    assert holds_not_finite(tmp_path)
    with pytest.raises(ValueError, match="values which are not finite"):
        check_logits(tmp_path, engine, batch)
