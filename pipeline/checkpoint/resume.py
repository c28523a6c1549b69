"""Which checkpoint a run resumes from, and whether it belongs to the run."""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_prep.files import VISIBLE_SECONDS, await_visible
from pipeline.checkpoint.checkpoint import Position, check_share
from pipeline.checkpoint.load_check import holds_not_finite
from pipeline.checkpoint.retention import remove_leftovers, set_aside, were_set_aside
from pipeline.config import RunConfig
from pipeline.distributed.mesh import Mesh
from pipeline.run_folder import STATE, Report, by_preference, problem

_log = logging.getLogger(__name__)

_VISIBLE_SECONDS = VISIBLE_SECONDS


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
            return Found(checkpoint, [*notes, f"resuming from {checkpoint.name} instead"] if notes else [])
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
    """("", "") for a checkpoint that can be resumed, else ("damaged" or "diverged", why): a collective.

    What no rank can see is damaged. What only some see is there: the others wait for it.
    """
    views = _gathered((socket.gethostname(), problem(checkpoint)), mesh)
    seen_on = next((host for host, wrong in views if wrong is None), None)
    if seen_on is None:
        return "damaged", views[0][1]
    if any(wrong for _, wrong in views):
        _await_visible(checkpoint, seen_on, mesh, report)
    verdict = ("", "")
    try:
        check_share(checkpoint, report, (mesh.rank, mesh.world_size))
    except ValueError as error:
        verdict = ("damaged", str(error))
    report(f"waiting for the other ranks to verify {checkpoint.name}")
    found = next((one for one in _gathered(verdict, mesh) if one[0]), ("", ""))
    if not found[0] and mesh.is_main and holds_not_finite(checkpoint / STATE):
        found = ("diverged", f"{checkpoint} holds a model whose outputs are not finite: the run had diverged when it was saved")
    last = [found]
    torch.distributed.broadcast_object_list(last)
    return last[0]


def _await_visible(checkpoint: Path, host: str, mesh: Mesh, report: Report) -> None:
    """Wait until every rank sees what `host` sees of a checkpoint: a collective. Raises ValueError on all if one does not."""

    def unseen() -> str | None:
        report(f"waiting until {checkpoint.name} can be seen here")
        return problem(checkpoint)

    wrong = await_visible(checkpoint, unseen, _VISIBLE_SECONDS)
    text = wrong and (
        f"rank {mesh.rank} on {socket.gethostname()} does not see all of {checkpoint} after {_VISIBLE_SECONDS:.0f} s, and "
        f"{host} does ({wrong.partition(': ')[0]}): the run folder must be on a file system that all nodes share; check how it "
        "is mounted, or rerun the same command"
    )
    if (first := next(filter(None, _gathered(text, mesh)), None)) is not None:
        raise ValueError(first)


def _gathered(value: Any, mesh: Mesh) -> list[Any]:
    """The values of all ranks: a collective."""
    values = [value] * mesh.world_size
    torch.distributed.all_gather_object(values, value)
    return values


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
