"""Batches as a pure function of (seed, global sample index): not of the mesh, the micro-batch, or where a run was restarted.

Sample i of a run is row `permute(i mod R)` of epoch `i // R`, for R rows. A step takes `global_batch_size` consecutive samples;
micro-batch k of replica r takes its share of them. Nothing has to be replayed to continue at a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.indexed_dataset import TokenFile
from data_prep.packing import PackedRows, rows_file
from data_prep.tokenizer import TOKENIZER_FILE, load_tokenizer, start_id
from pipeline.config import RunConfig
from pipeline.objectives.prefix_lm import Batch, PrefixLM
from pipeline.permutation import permute

Ints = NDArray[np.int64]
PipelineBatch = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]

NO_ROW = -1  # an empty row: fills the last micro-batch of a validation set, and weighs nothing


class Rows:
    """The packed rows of one split of a dataset folder, read by mmap."""

    def __init__(self, folder: Path, split: str, row_length: int) -> None:
        prefix = folder / split
        index = folder / rows_file(split, row_length)
        if not folder.is_dir():
            raise ValueError(f"data.path {folder} does not exist: make it with `fnet-t5 prepare --output {folder}`")
        if not Path(f"{prefix}.bin").is_file():
            raise ValueError(
                f"{folder} has no {split} split (too little text fell to it): prepare with --{split}, or more text"
            )
        if not index.is_file():
            made = sorted(path.stem.rpartition("_")[2] for path in folder.glob(f"{split}.rows_*.npy"))
            raise ValueError(
                f"{folder} has no {split} rows of {row_length} tokens (data.encoder_length + data.decoder_length); "
                f"it has {', '.join(made) or 'none'}: change the lengths, or add these rows by "
                f"`fnet-t5 data pack {folder} {row_length}`"
            )
        self.tokens = TokenFile(prefix).tokens
        self.packed = PackedRows.load(index)

    def __len__(self) -> int:
        return int(self.packed.num_rows)

    def lengths(self, rows: Ints) -> Ints:
        """Tokens in each row (int64); 0 for NO_ROW."""
        return np.where(rows == NO_ROW, 0, self.packed.lengths_of(np.maximum(rows, 0)))

    def read(self, rows: Ints) -> tuple[Ints, Ints]:
        """Token ids (len(rows), row_length) padded with 0 at their end, and the lengths; both int64."""
        lengths = self.lengths(rows)
        tokens, _ = self.packed.gather(self.tokens, np.maximum(rows, 0))
        return np.asarray(tokens, dtype=np.int64), lengths


@dataclass(frozen=True)
class Share:
    """Which part of every global batch this replica computes, and in which portions."""

    micro_batch_size: int
    data_parallel: int = 1
    data_rank: int = 0

    def micro_batches(self, samples: Ints) -> Iterator[Ints]:
        """This replica's micro-batches of the samples of one step."""
        for portion in samples.reshape(-1, self.data_parallel, self.micro_batch_size):
            yield portion[self.data_rank]


class TrainingBatches:
    """The training data of a run."""

    def __init__(self, rows: Rows, objective: PrefixLM, share: Share, global_batch_size: int, seed: int) -> None:
        if len(rows) < 1:
            raise ValueError("the training split holds no rows: prepare more text")
        self.rows, self.objective, self.share = rows, objective, share
        self.global_batch_size, self.seed = global_batch_size, seed

    def sample_rows(self, step: int) -> Ints:
        """Row of every sample of the `step`-th update (counted from 1): the same on every rank."""
        first = (step - 1) * self.global_batch_size
        samples = np.arange(first, first + self.global_batch_size, dtype=np.int64)
        epochs, positions = np.divmod(samples, len(self.rows))
        result = np.empty_like(samples)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            result[chosen] = permute(positions[chosen], len(self.rows), f"{self.seed}/{epoch}")
        return result

    def step(self, step: int) -> tuple[list[PipelineBatch], int]:
        """This replica's micro-batches of a step, and the target tokens of the whole global batch."""
        return _make(self.rows, self.objective, self.share, self.sample_rows(step))


def objective_of(config: RunConfig) -> PrefixLM:
    """The objective of a run, with the start token of the data's tokenizer."""
    tokenizer = load_tokenizer(config.data.path / TOKENIZER_FILE)
    return PrefixLM(config.data.encoder_length, config.data.decoder_length, start_id=start_id(tokenizer))


def validation_batches(rows: Rows, objective: PrefixLM, share: Share, num_rows: int) -> tuple[list[PipelineBatch], int]:
    """The first `num_rows` rows as micro-batches of the training shape, and their target tokens over all replicas.

    The same rows on every mesh; the last micro-batches are filled up with empty rows.
    """
    chosen = np.arange(min(num_rows, len(rows)), dtype=np.int64)
    portion = share.micro_batch_size * share.data_parallel
    filled = np.full(-(-len(chosen) // portion) * portion, NO_ROW, dtype=np.int64)
    filled[: len(chosen)] = chosen
    return _make(rows, objective, share, filled)


def _make(rows: Rows, objective: PrefixLM, share: Share, samples: Ints) -> tuple[list[PipelineBatch], int]:
    num_targets = int(objective.num_targets(rows.lengths(samples)).sum())
    # The engine averages micro-batch losses over accumulation steps and replicas; this weight makes the average the mean over
    # all target tokens of the global batch, however they are spread.
    weight = len(samples) // share.micro_batch_size / max(1, num_targets)
    batches = [as_tensors(objective(*rows.read(portion)), weight) for portion in share.micro_batches(samples)]
    return batches, num_targets


def as_tensors(batch: Batch, weight: float) -> PipelineBatch:
    """(inputs, labels) as DeepSpeed's pipeline takes them: integer inputs, and targets with the weight of each one's loss."""
    inputs = tuple(torch.from_numpy(array) for array in (batch.encoder_ids, batch.encoder_mask, batch.decoder_ids))
    weights = torch.from_numpy(batch.target_mask).float() * weight
    return inputs, (torch.from_numpy(batch.targets), weights)
