"""Shared by benchmarks of training: random tokens in the shapes of prefix-LM (the cost does not depend on the text), and a
mesh of one process."""

from __future__ import annotations

import os
import socket

import numpy as np

from pipeline.data.batches import PipelineBatch, as_tensors
from pipeline.objectives.prefix_lm import PrefixLM

VOCABULARY = 32128


def be_the_only_process() -> None:
    """Set torchrun's environment variables for a job of only this process, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def random_batches(encoder_length: int, decoder_length: int, micro_batch: int, count: int) -> list[PipelineBatch]:
    """`count` micro-batches of one step of an encoder-decoder. Their weights make the loss a mean over all targets."""
    rng = np.random.default_rng(0)
    length = encoder_length + decoder_length
    objective = PrefixLM(encoder_length=encoder_length, decoder_length=decoder_length, start_id=0)
    result = []
    for number in range(count):
        rows = rng.integers(2, 32000, size=(micro_batch, length))
        samples = number * micro_batch + np.arange(micro_batch)
        batch = objective(rows, np.full(micro_batch, length), samples)
        result.append(as_tensors(batch, 1 / (micro_batch * decoder_length)))
    return result
