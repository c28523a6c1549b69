"""What a checkpoint says about itself, read without loading it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.run_folder import POSITION, STATE, is_complete


@dataclass(frozen=True)
class Stored:
    step: int
    mesh: str
    """tensor × pipeline × data, or "?" where it does not say."""
    num_bytes: int
    target_tokens: int
    is_complete: bool


def describe(checkpoint: Path) -> Stored:
    """A checkpoint's own account, of one that is damaged too."""
    path = checkpoint / STATE / POSITION
    position = json.loads(path.read_bytes()) if path.is_file() else {}
    mesh = position.get("mesh")
    return Stored(
        step=int(checkpoint.name.removeprefix("step_")),
        mesh=f"{mesh['tensor']} × {mesh['pipeline']} × {mesh['data']}" if mesh else "?",
        num_bytes=sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()),
        target_tokens=position.get("counters", {}).get("target_tokens", 0),
        is_complete=is_complete(checkpoint),
    )
