"""The checks of a training run before any process starts: its folder, the data that it reads, the weights it begins with.

`launch.start.check_run` calls them in order.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.dataset.manifest import MANIFEST_FILE, Manifest
from data_prep.files import only_writer
from pipeline.config import RunConfig

# What a launch on a cluster puts into a run folder before the run's own processes start.
_BEFORE_THE_START = {"launch", "logs", "STATUS"}


def check_folder(run_dir: Path) -> None:
    """Raise ValueError if `run_dir` holds something other than a run, FolderInUseError if a process is training in it."""
    if not run_dir.exists():
        return
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is a file: give another --output")
    if (run_dir / MANIFEST_FILE).exists():
        raise ValueError(f"{run_dir} holds a dataset, which a run would overwrite: give another --output")
    others = {path.name for path in run_dir.iterdir()} - _BEFORE_THE_START
    if others and not (run_dir / "config.json").is_file():
        raise ValueError(f"{run_dir} holds files that are not a run's: give another --output")
    with only_writer(run_dir):
        pass


def check_initial_weights(config: RunConfig) -> None:
    """Raise ValueError if train.initial_weights is given and holds no weights of this model."""
    folder = config.train.initial_weights
    if folder is None:
        return
    if (folder / "checkpoints").is_dir():
        raise ValueError(
            f"train.initial_weights {folder} is a run folder: give one of its checkpoints, {folder}/checkpoints/step_…"
        )
    check_weights(config, folder, f"train.initial_weights {folder} does not fit the recipe's model section")


def check_weights(config: RunConfig, folder: Path, problem: str) -> None:
    """Raise ValueError, beginning with `problem`, if the weights in a folder do not fit the recipe's model."""
    import torch

    from models.architectures.build import build_model
    from pipeline.eval.evaluate import check_fits
    from pipeline.run_folder import weight_shapes

    with torch.device("meta"):
        model = build_model(config.model)
    check_fits(model, weight_shapes(folder), problem)


def check_data(config: RunConfig, manifest: Manifest) -> None:
    """Raise ValueError if the dataset lacks what the run reads, or its files differ in size from its manifest's records.

    `manifest` is that of `config.data.path`.
    """
    from pipeline.data.batches import open_rows, training_rows
    from pipeline.data.rows import check_size

    folder = config.data.path
    training_rows(config.data, manifest)
    open_rows(config.data, folder, "val", manifest)
    for name in manifest.files:
        check_size(folder, manifest, name)
