"""What a run is validated on: the first rows of the validation split, and a fixed set of rows of each source.

All of it follows from the dataset folder and the lengths alone, so runs of different models and seeds read the same text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from data_prep.tokenization.tokenizer import TOKENIZER_FILE, load_tokenizer, token_byte_lengths
from pipeline.config import RunConfig
from pipeline.data.batches import DataShard, PipelineBatch, objective_of, open_rows, validation_batches
from pipeline.data.rows import RowSource
from pipeline.eval.evaluation_sets import ALL, evaluation_sets
from pipeline.objectives.interface import VALIDATION_SEED


@dataclass(frozen=True)
class ValidationSet:
    source: str
    """A source's name, or `all`."""
    batches: list[PipelineBatch]
    """This replica's share."""
    target_tokens: int
    target_bytes: int
    """UTF-8 bytes of the target tokens. Both over all replicas."""

    def bits_per_byte(self, loss: float) -> float | None:
        """From nats per target token; None where the targets have no bytes."""
        return loss * self.target_tokens / math.log(2) / self.target_bytes if self.target_bytes else None


def validation_sets(config: RunConfig, share: DataShard) -> list[ValidationSet]:
    """One for each source, where there are several and their documents are long enough, and the set of all of them last."""
    data = config.data
    objective = objective_of(config, VALIDATION_SEED)
    byte_lengths = torch.from_numpy(token_byte_lengths(load_tokenizer(data.path / TOKENIZER_FILE)))

    def make(source: str, rows: RowSource, num_rows: int) -> ValidationSet:
        batches, target_tokens = validation_batches(rows, objective, share, num_rows)
        whole, _ = validation_batches(rows, objective, DataShard(share.micro_batch_size), num_rows)
        target_bytes = sum(int(byte_lengths[labels[0][labels[1] > 0]].sum()) for _, labels in whole)
        return ValidationSet(source, batches, target_tokens, target_bytes)

    result = []
    if data.validation_rows_per_source:
        shortest = min(data.encoder_length + 1, data.row_length)  # a prefix of the encoder's length has something behind it
        sets = evaluation_sets(
            data.path, "val", data.row_length, data.validation_rows_per_source, shortest=shortest, required=False
        )
        if len(sets) > 1:
            result += [make(source, rows, len(rows)) for source, rows in sets.items()]
    return [*result, make(ALL, open_rows(data, data.path, "val"), data.validation_rows)]


def first_rows(config: RunConfig) -> PipelineBatch:
    """The split's first rows as one micro-batch, the same on every replica: what samples of text begin with."""
    data, rows = config.data, config.train.micro_batch_size
    objective = objective_of(config, VALIDATION_SEED)
    batches, _ = validation_batches(open_rows(data, data.path, "val"), objective, DataShard(rows), rows)
    return batches[0]
