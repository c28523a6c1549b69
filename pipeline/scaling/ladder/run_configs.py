"""The `RunConfig` of each run folder of a planned run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.tokenization.tokenizer import TOKENIZER_FILE
from pipeline.config import RunConfig
from pipeline.scaling.ladder.ladder import End, Ladder, PlannedRun

_VALIDATIONS = 12
"""Validations of a main run, which give the loss curves of the report."""
_CHECKPOINTS = 8


def sweep_folder(run: PlannedRun, rate: float) -> str:
    """The name of the run folder of one try of a sweep."""
    return f"{run.name}-lr{rate:.3g}"


def run_config(ladder: Ladder, run: PlannedRun, end: End, rate: float, parent: str | None) -> RunConfig:
    """The configuration of one end of a run. Raises ValueError, with the key, if the recipe's shared sections are invalid."""
    recipe, size = ladder.recipe, ladder.recipe.sizes[run.size]
    main_run = run.ends[-1]
    train: dict[str, Any] = {
        "checkpoint_every": max(1, main_run.steps // _CHECKPOINTS),
        "validate_every": max(1, main_run.steps // _VALIDATIONS),
        "log_every": max(1, main_run.steps // 200),
        "keep_last": 1,
        **recipe.train,
        "steps": end.steps,
        "global_batch_size": run.rows,
        "micro_batch_size": size.micro_batch_size,
        "seed": run.seed,
        "checkpoint_steps": sorted({other.decay_begin for other in run.ends[:-1]}) if end is main_run else [],
    }
    optimizer = {
        **recipe.optimizer,
        "learning_rate": rate,
        "schedule": "wsd",
        "warmup_steps": run.warmup_steps,
        "decay_begin": end.decay_begin,
    }
    config = RunConfig.model_validate(
        {
            "model": run.model,
            "data": {
                **recipe.data.model_dump(mode="json"),
                "path": str(ladder.data_path),
                "objective": ladder.objective_of(run).model_dump(mode="json"),
            },
            "mesh": size.mesh.model_dump(mode="json"),
            "train": train,
            "optimizer": optimizer,
            "tracking": {**recipe.tracking.model_dump(mode="json"), "parent_run": parent},
        }
    )
    # an archive is read without the data; the vocabulary size stands in the plan
    return config.resolved() if (ladder.data_path / TOKENIZER_FILE).is_file() else config


def runs_of(folder: Path) -> Path:
    """The folder of a ladder's run folders."""
    return folder / "runs"
