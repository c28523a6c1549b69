"""Branches: a new run that starts from a checkpoint of another, to decay a stable WSD run or to retry before a spike."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import orjson

from data_prep.files import atomic_write
from pipeline.checkpoint.checkpoint import verify
from pipeline.run_folder import LATEST, METRICS, checkpoints_of, find, step_of
from pipeline.tracking.metrics import read_metrics


def branch(parent: Path, output: Path, step: int | None = None) -> int:
    """Give the new run folder `output` a checkpoint of `parent` (the latest, or that of `step`) and the metrics up to it.

    Files are hard links where the file system allows them, so that a branch takes no space. Returns the step. A second call for
    the same output changes nothing. Raises ValueError if the parent has no such checkpoint.
    """
    checkpoint = find(parent, step)
    start = step_of(checkpoint)
    folder = checkpoints_of(output)
    if folder.is_dir():  # started before: it resumes from its own latest checkpoint
        return start
    verify(checkpoint)
    partial = output / ".branch.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(checkpoint, partial / checkpoint.name, copy_function=_link)
    (partial / LATEST).write_text(checkpoint.name + "\n")
    with atomic_write(output / METRICS) as file:
        for row in read_metrics(parent / METRICS):
            if row["step"] <= start:
                file.write(orjson.dumps(row) + b"\n")
    partial.rename(folder)
    return start


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
