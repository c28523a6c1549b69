"""Batches of random tokens in the shapes of prefix-LM training: for benchmarks, whose cost does not depend on the text."""

from __future__ import annotations

import numpy as np

from pipeline.batches import PipelineBatch, as_tensors
from pipeline.objectives.prefix_lm import PrefixLM

VOCABULARY = 32128


def random_batches(encoder_length: int, decoder_length: int, micro_batch: int, count: int) -> list[PipelineBatch]:
    """`count` micro-batches of one step for an encoder-decoder; their weights make the loss a mean over all targets."""
    rng = np.random.default_rng(0)
    length = encoder_length + decoder_length
    objective = PrefixLM(encoder_length, decoder_length, start_id=0)
    result = []
    for number in range(count):
        rows = rng.integers(2, 32000, size=(micro_batch, length))
        samples = number * micro_batch + np.arange(micro_batch)
        batch = objective(rows, np.full(micro_batch, length), samples)
        result.append(as_tensors(batch, 1 / (micro_batch * decoder_length)))
    return result
