"""Batches as a pure function of (seed, global sample index): the mesh, the micro-batch and restarts change nothing.

A step takes `global_batch_size` consecutive samples of `order.SampleOrder`; each micro-batch of each replica takes its part.
Every rank knows the target tokens of the whole global batch without reading the rows of the others.

Shapes: B samples of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.dataset.manifest import Manifest, load_manifest
from data_prep.files import canonical_json, sha256_bytes
from data_prep.tokenization.tokenizer import TOKENIZER_FILE, load_tokenizer
from pipeline.config import DataConfig, RunConfig
from pipeline.data.order import SampleOrder, Skipping
from pipeline.data.rows import NO_ROW, JoinedRows, Rows, RowSource, StreamRows
from pipeline.objectives.catalogue import build_objective
from pipeline.objectives.interface import AnyBatch, Objective
from pipeline.objectives.vocabulary import Vocabulary

__all__ = [
    "NO_ROW",
    "DataShard",
    "PipelineBatch",
    "Rows",
    "TrainingBatches",
    "as_tensors",
    "objective_of",
    "validation_batches",
]

Ints = NDArray[np.int64]
PipelineBatch = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


@dataclass(frozen=True)
class DataShard:
    """The part of every global batch that this replica computes, and its micro-batch size in rows."""

    micro_batch_size: int
    data_parallel: int = 1
    data_rank: int = 0

    def micro_batches(self, samples: Ints) -> Iterator[Ints]:
        """This replica's micro-batches of the samples of one step."""
        for portion in samples.reshape(-1, self.data_parallel, self.micro_batch_size):
            yield portion[self.data_rank]


class TrainingBatches:
    """The training data of a run, from one source of rows or several blended by `weights`."""

    def __init__(
        self,
        rows: RowSource | Sequence[RowSource],
        objective: Objective,
        share: DataShard,
        global_batch_size: int,
        seed: int,
        weights: Sequence[float] = (1,),
        skip_ranges: Sequence[tuple[int, int]] = (),
    ) -> None:
        sources = [rows] if isinstance(rows, RowSource) else list(rows)
        if len(weights) != len(sources):
            raise ValueError(f"{len(sources)} data folders and {len(weights)} weights: give each folder one")
        if sources[0].row_length != objective.row_length:
            raise ValueError(
                f"rows of {sources[0].row_length} tokens, but the objective takes {objective.row_length}: pack again"
            )
        self.sources = tuple(sources)
        self.rows = sources[0] if len(sources) == 1 else JoinedRows(sources)
        self.order = SampleOrder([len(source) for source in sources], weights, seed)
        self.objective, self.share, self.global_batch_size = objective, share, global_batch_size
        self._skipping = Skipping(skip_ranges)
        self._step, self._position = 0, 0
        blend = [] if len(sources) == 1 else [{"weights": self.order.blend.shares.tolist()}]
        self.fingerprint = sha256_bytes(canonical_json([self.rows.fingerprint, *blend])) if blend else self.rows.fingerprint

    def continue_at(self, step: int, position: int) -> None:
        """Resume after `step` with sample `position`, where `position` is what `position_after(step)` returned.

        The global batch size and the skipped ranges may have changed since: samples before `position` stay as they were.
        """
        self._step, self._position = step, position

    def position_after(self, step: int) -> int:
        """The first sample that no step up to `step` has taken."""
        return self._position if step == self._step else int(self.samples(step)[-1]) + 1

    def samples(self, step: int) -> Ints:
        """The global sample indices of the `step`-th update, counted from 1."""
        done = step - 1 - self._step
        if done < 0:
            raise ValueError(f"step {step} lies before step {self._step}, where these batches resume")
        return self._skipping.take(self._position, done * self.global_batch_size, self.global_batch_size)

    def sample_rows(self, step: int) -> Ints:
        """Row of every sample of the `step`-th update: the same on every rank."""
        return self.order.rows(self.samples(step))

    def step(self, step: int) -> tuple[list[PipelineBatch], int]:
        """This replica's micro-batches of a step, and the target tokens of the whole global batch."""
        return make_micro_batches(self.rows, self.objective, self.share, self.samples(step), self.sample_rows(step))

    def raw_tokens(self, step: int) -> int:
        """Tokens of the corpus that the global batch of a step reads."""
        return int(self.rows.lengths(self.sample_rows(step)).sum())


def vocabulary_of(folder: Path) -> Vocabulary:
    """The ids that objectives use, from a dataset folder's tokenizer."""
    return Vocabulary.of(load_tokenizer(folder / TOKENIZER_FILE))


def objective_of(config: RunConfig, seed: str | None = None, vocabulary: Vocabulary | None = None) -> Objective:
    """The objective of a run. `seed` names its stream of random numbers; default: the stream of training.

    `vocabulary` is that of data.path's tokenizer, which is read if it is not given.
    """
    data = config.data
    return build_objective(
        data.objective,
        architecture=config.model.architecture,
        encoder_length=data.encoder_length,
        decoder_length=data.decoder_length,
        vocabulary=vocabulary or vocabulary_of(data.path),
        seed=str(config.train.seed) if seed is None else seed,
    )


def open_rows(data: DataConfig, folder: Path, split: str, manifest: Manifest | None = None) -> RowSource:
    """The rows of one split of a folder as a recipe wants them. `manifest` is the folder's; it is read if it is not given."""
    return (StreamRows if data.layout == "stream" else Rows)(folder, split, data.row_length, manifest)


def training_rows(data: DataConfig, manifest: Manifest | None = None) -> tuple[list[RowSource], list[float]]:
    """The sources of the training text and their weights. `manifest` is that of data.path; it is read if it is not given.

    Raises ValueError where the tokenizers of the sources differ.
    """
    if not data.blend:
        return [open_rows(data, data.path, "train", manifest)], [1]
    manifest = manifest or load_manifest(data.path)
    manifests = [manifest if part.path == data.path else load_manifest(part.path) for part in data.blend]
    for part, its_manifest in zip(data.blend, manifests, strict=True):
        if its_manifest.tokenizer.sha256 != manifest.tokenizer.sha256:
            raise ValueError(
                f"data.blend: {part.path} was prepared with another tokenizer than {data.path}: prepare it again with "
                f"--tokenizer {data.path / TOKENIZER_FILE}"
            )
    rows = [open_rows(data, part.path, "train", known) for part, known in zip(data.blend, manifests, strict=True)]
    return rows, [part.weight for part in data.blend]


def validation_batches(
    rows: RowSource, objective: Objective, share: DataShard, num_rows: int
) -> tuple[list[PipelineBatch], int]:
    """The first `num_rows` rows as micro-batches of the training shape, and their target tokens over all replicas.

    The rows are the same on every mesh; empty rows fill the last micro-batches. The objective's random numbers are those of the
    row's number.
    """
    chosen = np.arange(min(num_rows, len(rows)), dtype=np.int64)
    portion = share.micro_batch_size * share.data_parallel
    filled = np.full(-(-len(chosen) // portion) * portion, NO_ROW, dtype=np.int64)
    filled[: len(chosen)] = chosen
    return make_micro_batches(rows, objective, share, np.arange(len(filled)), filled)


def make_micro_batches(
    source: RowSource, objective: Objective, share: DataShard, samples: Ints, rows: Ints
) -> tuple[list[PipelineBatch], int]:
    """This replica's micro-batches of a global batch, with the weights of their losses, and the number of targets in it.

    `samples` and `rows` (S,): the sample numbers of the global batch, which seed the objective, and its rows, with NO_ROW
    for an empty one.
    """
    counts = objective.loss_counts(source.lengths(rows), samples)
    # The engine averages micro-batch losses over accumulation steps and replicas; these weights make the average the mean over
    # all targets of the global batch, however they are distributed.
    weights = [len(samples) // share.micro_batch_size / max(1, count) for count in counts]
    batches = [
        as_tensors(objective(*source.read(mine), numbers), *weights)
        for mine, numbers in zip(share.micro_batches(rows), share.micro_batches(samples), strict=True)
    ]
    return batches, counts[0]


def as_tensors(batch: AnyBatch, *weights: float) -> PipelineBatch:
    """(inputs, labels) for DeepSpeed's pipeline: integer inputs, and for each loss its targets and their weights."""
    inputs = tuple(torch.from_numpy(array) for array in batch.inputs)
    labels: list[Tensor] = []
    for (targets, mask), weight in zip(batch.losses, weights, strict=True):
        # by numpy: torch would wake its threads, which then spin while the next batch is made
        labels += [torch.from_numpy(targets), torch.from_numpy(np.where(mask, np.float32(weight), np.float32(0)))]
    return inputs, tuple(labels)
