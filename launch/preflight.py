"""The checks of a training run before any process starts: its folder, the data that it reads, the weights it begins with.

`launch.start.check_run` calls them in order.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.dataset.manifest import MANIFEST_FILE, Manifest
from data_prep.files import sha256_file
from data_prep.tokenization.tokenizer import TOKENIZER_FILE
from pipeline.config import RunConfig
from pipeline.optim.lr_schedule import learning_rate
from pipeline.run_folder import POSITION, STATE, hold, problem, step_of

if TYPE_CHECKING:  # imports torch
    from pipeline.data.batches import TrainingBatches

# What a launch on a cluster puts into a run folder before the run's own processes start.
_BEFORE_THE_START = {"launch", "logs", "STATUS"}
_COMPARED_STEPS = 64


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
    with hold(run_dir):
        pass


def check_disk(config: RunConfig, run_dir: Path) -> list[str]:
    """Try to write where the checkpoints will be, and compare the free space with their size.

    Raises ValueError if nothing can be written there or not even one checkpoint fits. Returns a warning if not all of them fit.
    """
    place = run_dir / "checkpoints"
    while not place.is_dir():
        if place == place.parent:
            raise ValueError(f"{run_dir}: no folder above it exists: give another --output")
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"fnet-t5")
            file.flush()
    except OSError as error:
        raise ValueError(
            f"{place} cannot be written ({error.strerror or error}), so {run_dir} could not be saved: change its permissions, "
            "free space, or give another --output"
        ) from error
    train = config.train
    one = checkpoint_bytes(config)
    number = -(-train.steps // train.checkpoint_every) if train.keep_last is None else train.keep_last + 1
    free = shutil.disk_usage(place).free
    if free < one:
        raise ValueError(
            f"{place} has {free / 1e9:.2f} GB free, and one checkpoint of this run takes {one / 1e9:.2f} GB: free space, or "
            "give another --output"
        )
    present = sum(path.is_dir() for path in (run_dir / "checkpoints").glob("step_*[0-9]"))
    if free < (lacking := max(0, number - present) * one):
        return [
            f"warning: {place} has {free / 1e9:.2f} GB free, and the {number - present} checkpoints to come take "
            f"{lacking / 1e9:.2f} GB: give train.keep_last, a larger train.checkpoint_every, or free space"
        ]
    return []


def checkpoint_bytes(config: RunConfig) -> int:
    """Bytes of a checkpoint: the weights in their precision, and three fp32 numbers of optimizer state for each parameter."""
    from pipeline.planner.memory import num_parameters

    return num_parameters(config) * (12 + (2 if config.train.precision == "bf16" else 4))


def check_resume(config: RunConfig, checkpoint: Path, fingerprint: str, *, is_branch: bool) -> None:
    """Raise ValueError if a checkpoint cannot continue under this configuration: other data, another seed, fewer steps.

    `fingerprint` is that of the data as they are now. A checkpoint whose position cannot be read is judged by the ranks.
    """
    try:
        position = json.loads((checkpoint / STATE / POSITION).read_bytes())
        known, seed, step = position["dataset_fingerprint"], position["seed"], int(position["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    whose = f"--branch {checkpoint}" if is_branch else f"{checkpoint}"
    remedy = "or give another --output"
    if is_branch:
        remedy = (
            "a branch goes on with the data and seed of its parent; to change them and keep weights and moments, give "
            f"train.initial_weights={checkpoint} train.initial_moments=true in place of --branch"
        )
    if known != fingerprint:
        raise ValueError(f"{whose} was trained on other data than {config.data.path} holds: give the same data; {remedy}")
    if seed != config.train.seed:
        raise ValueError(f"{whose} was trained with train.seed {seed}, not {config.train.seed}: give the same seed; {remedy}")
    key = config.train.length_key
    if config.train.steps < step:
        at_least = step if key == "steps" else f"{step} steps by train.{key}"
        remedy = (
            f"give a larger train.{key}, or an earlier --branch-step"
            if is_branch
            else (
                f"give at least {at_least}, or branch off an earlier one: --branch {checkpoint.parent.parent} --branch-step N "
                "and another --output"
            )
        )
        raise ValueError(f"{config.train.length} is less than the {step} steps that {whose} has done: {remedy}")


def schedule_warnings(config: RunConfig) -> list[str]:
    """What is allowed and probably not meant."""
    steps, warmup = config.train.steps, config.optimizer.warmup_steps
    if warmup < steps:
        return []
    return [
        f"warning: optimizer.warmup_steps {warmup} is not less than {config.train.length}: the learning rate never reaches "
        f"{config.optimizer.learning_rate}"
    ]


def changed_rates(config: RunConfig, run_dir: Path, checkpoint: Path) -> list[str]:
    """A warning if another length of a begun run changes the learning rates of steps that it would have made anyway."""
    before = RunConfig.load(run_dir)
    done = step_of(checkpoint)
    last = min(before.train.steps, config.train.steps)
    steps = sorted({done + 1 + (last - done - 1) * share // _COMPARED_STEPS for share in range(_COMPARED_STEPS + 1)})
    rates = [
        [learning_rate(step, run.train.steps, run.optimizer) for step in steps if step <= last] for run in (before, config)
    ]
    if rates[0] == rates[1]:
        return []
    return [
        f"warning: train.steps was {before.train.steps:,} and is {config.train.steps:,}: the learning rates of further steps "
        "are others than planned, because the schedule ends with the run; optimizer.decay_steps fixes where it ends"
    ]


def check_initial_weights(config: RunConfig) -> list[str]:
    """Raise ValueError if train.initial_weights is given and lacks weights of this model, or the moments that are wanted.

    Returns a warning if they were trained with another tokenizer.
    """
    folder = config.train.initial_weights
    if folder is None:
        return []
    if (folder / "checkpoints").is_dir():
        raise ValueError(
            f"train.initial_weights {folder} is a run folder: give one of its checkpoints, {folder}/checkpoints/step_…"
        )
    if config.train.initial_moments:
        _check_moments(folder)
    check_weights(config, folder, f"train.initial_weights {folder} does not fit the recipe's model section")
    trained, needed = folder.parent.parent / TOKENIZER_FILE, config.data.path / TOKENIZER_FILE
    if folder.parent.name != "checkpoints" or not trained.is_file() or sha256_file(trained) == sha256_file(needed):
        return []
    return [
        f"warning: train.initial_weights {folder} was trained with another tokenizer ({trained}) than that of data.path: its "
        f"ids mean other text; prepare the data with --tokenizer {trained}"
    ]


def _check_moments(folder: Path) -> None:
    """Raise ValueError if a folder is no checkpoint with the state of an optimizer."""
    from pipeline.checkpoint.load_check import holds_not_finite
    from pipeline.checkpoint.optimizer_state import OPTIMIZER_FOLDER

    if not (folder / STATE / OPTIMIZER_FOLDER).is_dir():
        raise ValueError(
            f"train.initial_moments: {folder} has weights alone, no {STATE}/{OPTIMIZER_FOLDER} with moments: give a checkpoint "
            "of a run as train.initial_weights, or leave train.initial_moments out"
        )
    if (wrong := problem(folder)) is not None:
        raise ValueError(f"train.initial_weights: {wrong}")
    if holds_not_finite(folder / STATE):
        raise ValueError(
            f"train.initial_weights {folder} holds a model whose outputs are not finite: give an earlier checkpoint"
        )


def check_weights(config: RunConfig, folder: Path, problem: str) -> None:
    """Raise ValueError, beginning with `problem`, if the weights in a folder do not fit the recipe's model."""
    import torch

    from models.architectures.build import build_model
    from pipeline.eval.evaluate import check_fits
    from pipeline.run_folder import weight_shapes

    with torch.device("meta"):
        model = build_model(config.model)
    check_fits(model, weight_shapes(folder), problem)


def check_data(config: RunConfig, manifest: Manifest) -> TrainingBatches:
    """Raise ValueError if the dataset lacks what the run reads, or its files differ in size from its manifest's records.

    `manifest` is that of `config.data.path`. Returns the training data. The objective is made too: it may need ids that the
    tokenizer does not have.
    """
    from pipeline.data.batches import DataShard, TrainingBatches, objective_of, open_rows, training_rows
    from pipeline.data.rows import check_size

    folder, train = config.data.path, config.train
    rows, weights = training_rows(config.data, manifest)
    shard = DataShard(train.micro_batch_size)
    batches = TrainingBatches(rows, objective_of(config), shard, train.global_batch_size, train.seed, weights)
    open_rows(config.data, folder, "val", manifest)
    for name in manifest.files:
        check_size(folder, manifest, name)
    return batches
