"""Evaluating a checkpoint in one process, from its canonical weights alone, on exactly the rows that training validated on.

Losses are nats per target token over all target tokens. Bits per byte is the same negative log-likelihood in bits over the
UTF-8 bytes of the target text: it does not depend on the tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_prep.indexed_dataset import TokenFile
from data_prep.tokenizer import TOKENIZER_FILE, load_tokenizer, start_id, token_byte_lengths
from models.pieces import Inputs
from models.seq2seq import Seq2Seq
from pipeline.batches import Share, objective_of, open_rows, validation_batches
from pipeline.config import RunConfig
from pipeline.evaluation_sets import evaluation_sets
from pipeline.objectives.interface import VALIDATION_SEED, AnyBatch
from pipeline.run_folder import find, load_weights
from pipeline.yardstick import Score, score, yardstick_objective

_COUNTED_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Evaluation:
    """Results on the validation rows of a run."""

    step: int
    loss: float
    """Nats per target token."""
    swapped_loss: float
    """The same with every decoder reading the encoder input of another row: higher where the decoder uses the encoder."""
    unigram_loss: float
    """Of the training split's token frequencies, on the same target tokens."""
    bits_per_byte: float
    target_tokens: int
    target_bytes: int


def load_model(run: Path, step: int | None = None) -> tuple[Seq2Seq, RunConfig, int]:
    """The single-process model of a run's checkpoint (the latest by default), its configuration, and its step."""
    config = RunConfig.load(run)
    checkpoint = find(run, step)
    model = Seq2Seq(config.model)
    weights = load_weights(checkpoint)
    check_fits(model, weights, f"{checkpoint} does not fit {run}/config.json")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model.eval(), config, int(checkpoint.name.removeprefix("step_"))


def check_fits(model: nn.Module, weights: Mapping[str, Tensor], problem: str) -> None:
    """Raise ValueError, beginning with `problem`, where the names or shapes of `weights` are not the model's."""
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unexpected:
        raise ValueError(
            f"{problem}: missing {missing[:3]}, unexpected {unexpected[:3]}; another architecture or number of layers"
        )
    for name, tensor in expected.items():
        if tensor.shape != weights[name].shape:
            raise ValueError(
                f"{problem}: {name} is {tuple(weights[name].shape)} there, {tuple(tensor.shape)} by the model section; "
                "give the model section that the weights were trained with"
            )


@torch.no_grad()
def evaluate(run: Path, step: int | None = None) -> Evaluation:
    """Evaluate a run's checkpoint on its validation rows. Raises ValueError where run, checkpoint or data are missing."""
    model, config, found_step = load_model(run, step)
    data = config.data
    share = Share(config.train.micro_batch_size)
    batches, num_targets = validation_batches(
        open_rows(data, data.path, "val"), objective_of(config, VALIDATION_SEED), share, data.validation_rows
    )
    if num_targets == 0:
        raise ValueError(f"the validation rows of {data.path} hold no target tokens: prepare more validation text")
    byte_lengths = token_byte_lengths(load_tokenizer(run / TOKENIZER_FILE))
    unigram = unigram_losses(TokenFile(data.path / "train").tokens, len(byte_lengths))
    nll = swapped_nll = unigram_nll = 0.0
    target_bytes = 0
    encoder_ids = torch.cat([inputs[0] for inputs, _ in batches])
    encoder_mask = torch.cat([inputs[1] for inputs, _ in batches])
    used = encoder_mask.sum(1) > 0  # rows that fill up the last micro-batch have no text to lend
    partner = torch.arange(len(used))
    partner[used] = partner[used].roll(int(used.sum()) // 2)  # far away: the next row often continues the same document
    for index, (inputs, (targets, weights)) in enumerate(batches):
        rows = slice(index * share.micro_batch_size, (index + 1) * share.micro_batch_size)
        taken = weights > 0
        nll += _nll(model, Inputs(*inputs), targets, taken)
        other = partner[rows]
        swapped_nll += _nll(model, Inputs(encoder_ids[other], encoder_mask[other], inputs[2]), targets, taken)
        chosen = targets[taken].numpy()
        unigram_nll += float(unigram[chosen].sum())
        target_bytes += int(byte_lengths[chosen].sum())
    return Evaluation(
        step=found_step,
        loss=nll / num_targets,
        swapped_loss=swapped_nll / num_targets,
        unigram_loss=unigram_nll / num_targets,
        bits_per_byte=nll / math.log(2) / target_bytes,
        target_tokens=num_targets,
        target_bytes=target_bytes,
    )


@torch.no_grad()
def evaluate_sources(
    run: Path,
    step: int | None = None,
    *,
    split: str = "val",
    prefix_length: int | None = None,
    suffix_length: int = 128,
    rows_per_source: int = 256,
) -> dict[str, Score]:
    """The common yardstick on each source's fixed rows: suffixes given prefixes, whatever the run was trained on.

    The prefix is as long as the run's encoder by default. Two runs compare where the lengths and the dataset folder are
    the same.
    """
    model, config, _ = load_model(run, step)
    data, tokenizer = config.data, load_tokenizer(run / TOKENIZER_FILE)
    prefix = data.encoder_length if prefix_length is None else prefix_length
    objective = yardstick_objective(config.model.architecture, data.encoder_length, prefix, suffix_length, start_id(tokenizer))
    sets = evaluation_sets(data.path, split, prefix + suffix_length, rows_per_source, shortest=prefix + 1)

    def nll(batch: AnyBatch) -> NDArray[np.floating]:
        inputs = Inputs(*map(torch.from_numpy, batch.inputs))
        return model.factory.cross_entropy(model(inputs), torch.from_numpy(batch.losses[0][0])).numpy()

    return score(sets, objective, nll, token_byte_lengths(tokenizer), config.train.micro_batch_size)


def unigram_losses(tokens: NDArray[np.integer], vocab_size: int) -> NDArray[np.float64]:
    """Negative log-likelihood in nats of each id (vocab_size,) under the frequencies of `tokens`, with one added to each."""
    counts = np.ones(vocab_size, dtype=np.int64)
    for start in range(0, len(tokens), _COUNTED_AT_ONCE):
        counts += np.bincount(tokens[start : start + _COUNTED_AT_ONCE], minlength=vocab_size)
    return -np.log(counts / counts.sum())


def _nll(model: Seq2Seq, inputs: Inputs, targets: Tensor, taken: Tensor) -> float:
    losses = model.factory.cross_entropy(model(inputs), targets)  # (B, M)
    return float(losses[taken].double().sum())
