"""Which checkpoint a run resumes from, and whether it belongs to the run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.checkpoint.checkpoint import Position, verify
from pipeline.checkpoint.load_check import holds_not_finite
from pipeline.checkpoint.retention import remove_leftovers, set_aside, were_set_aside
from pipeline.config import RunConfig
from pipeline.distributed.mesh import Mesh
from pipeline.run_folder import STATE, Report, by_preference, problem

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """The checkpoint that a run resumes from (None: it starts at step 0), and what a person should know about others."""

    checkpoint: Path | None
    notes: list[str]


def newest_intact(run: Path, mesh: Mesh, report: Report) -> Found:
    """The newest checkpoint whose files all match their checksums and whose values are finite: a collective.

    What earlier starts left unfinished is removed first. Each rank reads a part of the files. A checkpoint that is incomplete
    or differs from its checksums is renamed to `….damaged`, one that is not finite to `….diverged`. Raises ValueError where
    there are checkpoints and none can be used.
    """
    if mesh.is_main:
        for path in remove_leftovers(run):
            _log.info("removed %s, left by an interrupted save", path)
    notes: list[str] = []
    while True:
        candidates = [next(iter(by_preference(run)), None)] if mesh.is_main else [None]
        torch.distributed.broadcast_object_list(candidates)
        checkpoint = candidates[0]
        if checkpoint is None:
            break
        why, text = _judge(checkpoint, mesh, report)
        if not why:
            return Found(checkpoint, notes)
        if mesh.is_main:
            notes.append(f"skipped checkpoint: {text}; moved to {set_aside(checkpoint, why).name}")
            _log.warning(notes[-1])
    if mesh.is_main and not notes and (aside := were_set_aside(run)):  # an earlier start: this one must not begin at step 0
        notes.append(f"earlier starts have set aside {', '.join(path.name for path in aside)}")
    broadcast = [notes]
    torch.distributed.broadcast_object_list(broadcast)
    if broadcast[0]:
        raise ValueError(
            f"{run} has no intact checkpoint: {broadcast[0][-1]}. To start over, give another --output, or delete the folders "
            "that were set aside"
        )
    return Found(None, [])


def _judge(checkpoint: Path, mesh: Mesh, report: Report) -> tuple[str, str]:
    """("", "") for a checkpoint that can be resumed, else ("damaged" or "diverged", why): a collective."""
    verdict = ("", "")
    if mesh.is_main and (wrong := problem(checkpoint)) is not None:
        verdict = ("damaged", wrong)
    first = [verdict]
    torch.distributed.broadcast_object_list(first)
    if first[0][0]:
        return first[0]
    try:
        verify(checkpoint, report, (mesh.rank, mesh.world_size))
    except ValueError as error:
        verdict = ("damaged", str(error))
    report(f"waiting for the other ranks to verify {checkpoint.name}")
    verdicts = [verdict] * mesh.world_size
    torch.distributed.all_gather_object(verdicts, verdict)
    found = next((one for one in verdicts if one[0]), ("", ""))
    if not found[0] and mesh.is_main and holds_not_finite(checkpoint / STATE):
        found = ("diverged", f"{checkpoint} holds a model whose outputs are not finite: the run had diverged when it was saved")
    last = [found]
    torch.distributed.broadcast_object_list(last)
    return last[0]


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
