"""Which checkpoint a run resumes from, and whether it belongs to the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.checkpoint.checkpoint import Position, set_aside, verify
from pipeline.config import RunConfig
from pipeline.distributed.mesh import Mesh
from pipeline.run_folder import latest

_log = logging.getLogger(__name__)


def newest_intact(run: Path, mesh: Mesh, keep_alive: Callable[[], None]) -> Path | None:
    """The newest checkpoint whose files all match their checksums, or None where a run has none: a collective.

    Corrupt ones are renamed and reported. `keep_alive` is called after each, because reading one may take minutes. Raises
    ValueError where all are corrupt.
    """
    found: list[Path | None] = [None]
    problem: list[str] = [""]
    if mesh.is_main:
        while (checkpoint := latest(run)) is not None:
            try:
                verify(checkpoint)
                found = [checkpoint]
                break
            except ValueError as error:
                problem = [f"{error}; moved to {set_aside(checkpoint).name}"]
                _log.warning("skipped corrupt checkpoint: %s", problem[0])
                keep_alive()
    torch.distributed.broadcast_object_list(found)
    torch.distributed.broadcast_object_list(problem)
    if found[0] is None and problem[0]:
        raise ValueError(f"{run} has no intact checkpoint: {problem[0]}. Give another --output to start over")
    return found[0]


def validate_position(position: Position, config: RunConfig, fingerprint: str, run: Path) -> None:
    """Raise ValueError where a checkpoint's data or seed is not the run's: its data order would change."""
    if position.dataset_fingerprint != fingerprint:
        raise ValueError(
            f"{config.data.path} is not the data that {run} was trained on (fingerprint {fingerprint}, the checkpoint has "
            f"{position.dataset_fingerprint}): restore the data, or give another --output"
        )
    if position.seed != config.train.seed:
        raise ValueError(
            f"train.seed {config.train.seed} differs from the checkpoint's {position.seed}: the data order would change; keep "
            "the seed, or give another --output"
        )
