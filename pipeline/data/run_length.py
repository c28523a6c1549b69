"""The length of a run: steps from a number of tokens or epochs, and how often each row is read.

    tokens   steps = ceil(tokens / (rows of a step * mean tokens of a row)), the mean over the blend
    epochs   steps = ceil(epochs * rows of all folders / rows of a step)

Samples of `data.skip_ranges` count as read: other steps do not follow from leaving some out.
"""

from __future__ import annotations

import math
from fractions import Fraction

from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.data.batches import TrainingBatches


def with_steps(config: RunConfig, batches: TrainingBatches) -> RunConfig:
    """The same run with `train.steps`, where its recipe gives tokens or epochs.

    Raises ValueError if the recipe gives steps too, and others than those that follow.
    """
    train = config.train
    if train.length_key == "steps":
        return config
    steps = steps_of(train, batches)
    if train.steps not in (0, steps):
        key = train.length_key
        raise ValueError(
            f"train.steps {train.steps} and train.{key} {getattr(train, key)} (which is {steps} steps of "
            f"{train.global_batch_size} rows) both give the length of the run: keep one of them"
        )
    return config.model_copy(update={"train": train.model_copy(update={"steps": steps})})


def steps_of(train: TrainConfig, batches: TrainingBatches) -> int:
    """The steps of a run whose length is given in tokens or epochs."""
    if train.tokens is not None:
        return math.ceil(train.tokens / (train.global_batch_size * tokens_per_row(batches)))
    assert train.epochs is not None
    # a tenth is no binary number: 0.1 epochs of 30 rows are 3 rows, not 3.0000000000000004
    return max(1, math.ceil(round(train.epochs * len(batches.rows), 6) / train.global_batch_size))


def tokens_per_row(batches: TrainingBatches) -> Fraction:
    """The mean over the rows that training reads: with a blend, weighted by its shares. Exact, so that steps are not rounded up
    where tokens are a whole number of them."""
    shares = batches.order.blend.shares.tolist()
    means = [Fraction(source.num_tokens, len(source)) for source in batches.sources]
    return sum((share * mean for share, mean in zip(shares, means, strict=True)), Fraction(0)) / sum(shares)


def describe_length(config: RunConfig, batches: TrainingBatches) -> str:
    """How much data the whole run reads and how often each row, in one line."""
    train, key = config.train, config.train.length_key
    why = ""
    if key == "tokens":
        why = f" (train.tokens {train.tokens:,}, at {float(tokens_per_row(batches)):,.1f} tokens a row on average)"
    elif key == "epochs":
        why = f" (train.epochs {train.epochs:g})"
    return f"{train.steps:,} steps{why} read {epochs_read(config.data, batches, train.steps * train.global_batch_size)}"


def epochs_read(data: DataConfig, batches: TrainingBatches, position: int) -> str:
    """The epochs that the samples before `position` make, of each folder."""
    folders = [part.path for part in data.blend]
    parts = []
    for number, (epochs, source) in enumerate(zip(batches.order.epochs(position).tolist(), batches.sources, strict=True)):
        where = f" of {folders[number]}" if folders else ""
        often = f"every row is seen about {epochs:,.1f} times" if epochs > 1 else "no row is seen twice"
        parts.append(f"{epochs:,.2f} epochs of the {len(source):,} rows{where}: {often}")
    return "; ".join(parts)


def repetition_warnings(config: RunConfig, batches: TrainingBatches) -> list[str]:
    """A warning for each folder of which a single step reads more rows than it has."""
    size, order = config.train.global_batch_size, batches.order
    folders = [part.path for part in config.data.blend] or [config.data.path]
    of_step = order.blend.shares / order.blend.shares.sum() * size
    return [
        f"warning: a step reads {count:,.0f} rows of {folder}, which has {rows:,}: each row is about {count / rows:,.1f} times "
        "in every batch; give a smaller train.global_batch_size or more text"
        for folder, count, rows in zip(folders, of_step.tolist(), order.num_rows.tolist(), strict=True)
        if count > rows
    ]
