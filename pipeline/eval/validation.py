"""Validation sets of a training run: the first rows of the validation split, and a fixed set of rows of each source.

They depend only on the dataset folder and the lengths, so runs of different models and seeds are validated on the same text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from data_prep.tokenization.tokenizer import TOKENIZER_FILE, load_tokenizer, token_byte_lengths
from pipeline.config import RunConfig
from pipeline.data.batches import DataShard, PipelineBatch, objective_of, open_rows, validation_batches, vocabulary_of
from pipeline.data.rows import RowSource
from pipeline.eval.evaluation_sets import ALL, evaluation_sets
from pipeline.eval.input_probes import shuffle, text_ids, text_places
from pipeline.objectives.interface import VALIDATION_SEED


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """Rows of one source as micro-batches, and the size of their targets."""

    source: str
    """The name of a source, or `all`."""
    batches: list[PipelineBatch]
    """The micro-batches of this replica."""
    target_tokens: int
    """Over all replicas."""
    target_bytes: int
    """UTF-8 bytes of the target tokens, over all replicas."""

    def bits_per_byte(self, loss: float) -> float | None:
        """Bits per byte of a loss in nats per target token; None if the targets have no bytes."""
        return loss * self.target_tokens / math.log(2) / self.target_bytes if self.target_bytes else None


def validation_sets(config: RunConfig, shard: DataShard) -> list[ValidationSet]:
    """One set for each source with documents that are long enough, if there are several; the set of all sources comes last."""
    data = config.data
    objective = objective_of(config, VALIDATION_SEED)
    byte_lengths = torch.from_numpy(token_byte_lengths(load_tokenizer(data.path / TOKENIZER_FILE)))

    def make(source: str, rows: RowSource, num_rows: int) -> ValidationSet:
        batches, target_tokens = validation_batches(rows, objective, shard, num_rows)
        whole, _ = validation_batches(rows, objective, DataShard(shard.micro_batch_size), num_rows)
        target_bytes = sum(int(byte_lengths[labels[0][labels[1] > 0]].sum()) for _, labels in whole)
        return ValidationSet(source=source, batches=batches, target_tokens=target_tokens, target_bytes=target_bytes)

    result = []
    if data.validation_rows_per_source:
        shortest = min(
            data.encoder_length + 1, data.row_length
        )  # a prefix of the encoder's length is followed by at least one target
        sets = evaluation_sets(
            data.path, "val", data.row_length, data.validation_rows_per_source, shortest=shortest, required=False
        )
        if len(sets) > 1:
            result += [make(source, rows, len(rows)) for source, rows in sets.items()]
    return [*result, make(ALL, open_rows(data, data.path, "val"), data.validation_rows)]


@dataclass(frozen=True, kw_only=True)
class InputProbe:
    """Validation rows with the loss on text tokens alone, as they are and with the encoder's text in random order.

    Sentinels and end tokens are easily predicted, and in short rows they are many: they would hide the loss of the text.
    """

    batches: list[PipelineBatch]
    """The micro-batches of this replica."""
    shuffled: list[PipelineBatch]
    """The same rows and targets. Only the text tokens of each encoder input change places."""


def input_probe(config: RunConfig, shard: DataShard) -> InputProbe | None:
    """The first `train.input_use_rows` rows of the validation split; None if the run measures no use of its input.

    That is so without an encoder or a decoder, and where the rows hold no text target.
    """
    data, num_rows = config.data, config.train.input_use_rows
    if not num_rows or config.model.is_decoder_only or config.model.is_encoder_only:
        return None
    rows, objective = open_rows(data, data.path, "val"), objective_of(config, VALIDATION_SEED)
    is_text = text_ids(vocabulary_of(data.path), config.model.padded_vocab_size)
    of_text = torch.from_numpy(is_text)

    def text_weights(labels: tuple[Tensor, ...]) -> Tensor:
        return ((labels[1] > 0) & of_text[labels[0]]).float()

    whole, _ = validation_batches(rows, objective, DataShard(shard.micro_batch_size), num_rows)
    count = int(sum(text_weights(labels).sum() for _, labels in whole))
    if not count:
        return None
    # the engine averages over micro-batches and replicas, as `make_micro_batches` says
    num_batches = -(-len(whole) // shard.data_parallel) * shard.data_parallel
    batches: list[PipelineBatch] = []
    shuffled: list[PipelineBatch] = []
    for index, (inputs, labels) in enumerate(validation_batches(rows, objective, shard, num_rows)[0]):
        ids, mask, *rest = inputs
        of_row = (labels[0], text_weights(labels) * num_batches / count)
        first_row = (index * shard.data_parallel + shard.data_rank) * shard.micro_batch_size
        batches.append((inputs, of_row))
        shuffled.append(((shuffle(ids, text_places(ids, mask, is_text), first_row), mask, *rest), of_row))
    return InputProbe(batches=batches, shuffled=shuffled)


def first_rows(config: RunConfig) -> PipelineBatch:
    """The first rows of the validation split as one micro-batch, the same on every replica: the prompts of samples."""
    data, rows = config.data, config.train.micro_batch_size
    objective = objective_of(config, VALIDATION_SEED)
    batches, _ = validation_batches(open_rows(data, data.path, "val"), objective, DataShard(rows), rows)
    return batches[0]
