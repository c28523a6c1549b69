"""Evaluating a checkpoint in one process, from its canonical weights alone, on exactly the rows that training validated on.

Losses are nats per target token over all target tokens. Bits per byte is the same negative log-likelihood in bits over the
UTF-8 bytes of the target text: it does not depend on the tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn

from data_prep.dataset.indexed_dataset import TokenFile
from data_prep.tokenization.tokenizer import TOKENIZER_FILE, load_tokenizer, num_ids, start_id, token_byte_lengths
from models.architectures.build import build_model
from models.architectures.single_process import SingleProcessModel
from pipeline.config import RunConfig
from pipeline.data.batches import DataShard, PipelineBatch, objective_of, open_rows, validation_batches
from pipeline.eval.evaluation_sets import evaluation_sets
from pipeline.eval.floors import Floors, ngram_floors
from pipeline.eval.input_probes import InputUse, Swap, input_use, mean_loss
from pipeline.eval.suffix_bpb import Nll, Score, score, suffix_bpb_objective
from pipeline.objectives.interface import VALIDATION_SEED, AnyBatch
from pipeline.objectives.loss import losses_of
from pipeline.objectives.vocabulary import Vocabulary
from pipeline.run_folder import find, load_weights, step_of

_TOKENS_PER_COUNT = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results on the validation rows of a run."""

    step: int
    loss: float
    """Nats per target token. For an encoder-only model plus the nats per row of predicting the order of its segments."""
    swapped_loss: float | None
    """The loss with the encoder inputs swapped between rows: higher if the decoder uses the encoder. None without an encoder or
    a decoder."""
    unigram_loss: float
    """Nats per target token of the training split's token frequencies, on the same targets."""
    bits_per_byte: float | None
    """None for an encoder-only model, whose targets are no continuous text."""
    target_tokens: int
    target_bytes: int
    order_loss: float | None = None
    """The part of an encoder-only model's loss that is the order of its segments, in nats per row."""


@dataclass(frozen=True)
class InputReport:
    """An evaluation, what the model reads from its encoder, and what counting short contexts reaches on the same targets."""

    evaluation: Evaluation
    input_use: InputUse | None
    """None without an encoder or a decoder."""
    floors: Floors

    @property
    def token_loss(self) -> float:
        """What the floors compare with: nats per target token, without the order of segments of an encoder-only model."""
        return self.evaluation.loss - (self.evaluation.order_loss or 0.0)


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A checkpoint's model with the run's configuration and tokenizer: each file is read once."""

    run: Path
    step: int
    model: SingleProcessModel
    config: RunConfig
    tokenizer: Tokenizer

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.tokenizer)

    @cached_property
    def byte_lengths(self) -> NDArray[np.integer]:
        """UTF-8 bytes of each token (ids,)."""
        return token_byte_lengths(self.tokenizer)

    @property
    def has_two_stacks(self) -> bool:
        return not (self.config.model.is_decoder_only or self.config.model.is_encoder_only)

    def validation(self) -> tuple[list[PipelineBatch], int]:
        """The rows that training validated on, and their number of targets. Raises ValueError if there are no targets."""
        data = self.config.data
        batches, num_targets = validation_batches(
            open_rows(data, data.path, "val"),
            objective_of(self.config, VALIDATION_SEED, self.vocabulary),
            DataShard(self.config.train.micro_batch_size),
            data.validation_rows,
        )
        if num_targets == 0:
            raise ValueError(f"the validation rows of {data.path} hold no target tokens: prepare more validation text")
        return batches, num_targets


def load_run(run: Path, step: int | None = None) -> LoadedRun:
    """A run's checkpoint, the latest by default. Raises ValueError if run or checkpoint are missing."""
    model, config, found_step = load_model(run, step)
    tokenizer = load_tokenizer(run / TOKENIZER_FILE)
    return LoadedRun(run=run, step=found_step, model=model, config=config, tokenizer=tokenizer)


def load_model(run: Path, step: int | None = None) -> tuple[SingleProcessModel, RunConfig, int]:
    """The single-process model of a run's checkpoint (the latest by default), its configuration, and its step."""
    config = RunConfig.load(run)
    checkpoint = find(run, step)
    model = build_model(config.model)
    weights = load_weights(checkpoint)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    check_fits(model, shapes, f"{checkpoint} does not fit {run}/config.json")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model.eval(), config, step_of(checkpoint)


def check_fits(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], problem: str) -> None:
    """Raise ValueError, with a message that begins with `problem`, if the names or shapes of weights are not the model's."""
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    if missing or unexpected:
        raise ValueError(
            f"{problem}: missing {missing[:3]}, unexpected {unexpected[:3]}; another architecture or number of layers"
        )
    for name, tensor in expected.items():
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(
                f"{problem}: {name} is {shapes[name]} there, {tuple(tensor.shape)} by the model section; "
                "give the model section that the weights were trained with"
            )


def evaluate(run: Path, step: int | None = None) -> Evaluation:
    """Evaluate a run's checkpoint on its validation rows. Raises ValueError if run, checkpoint or data are missing."""
    loaded = load_run(run, step)
    return _evaluate(loaded, *loaded.validation())


def evaluate_input_use(run: Path, step: int | None = None) -> InputReport:
    """`evaluate`, and in addition three passes with manipulated encoder inputs, and n-gram floors.

    Raises ValueError if run, checkpoint or data are missing.
    """
    loaded = load_run(run, step)
    batches, num_targets = loaded.validation()
    return InputReport(
        _evaluate(loaded, batches, num_targets),
        input_use(loaded.model, batches, loaded.vocabulary) if loaded.has_two_stacks else None,
        ngram_floors(loaded.config, batches, num_ids(loaded.tokenizer), vocabulary=loaded.vocabulary),
    )


@torch.no_grad()
def _evaluate(loaded: LoadedRun, batches: Sequence[PipelineBatch], num_targets: int) -> Evaluation:
    model, config, byte_lengths = loaded.model, loaded.config, loaded.byte_lengths
    unigram = unigram_losses(TokenFile(config.data.path / "train").tokens, len(byte_lengths))
    sums: dict[int, tuple[float, int]] = {}  # of each loss: nats, places
    unigram_nll = 0.0
    target_bytes = 0
    for inputs, labels in batches:
        for number, (nll, weights) in enumerate(losses_of(model(model.inputs(inputs)), labels, model.factory)):
            total, count = sums.get(number, (0.0, 0))
            taken = weights > 0
            sums[number] = total + float(nll[taken].double().sum()), count + int(taken.sum())
        chosen = labels[0][labels[1] > 0].numpy()
        unigram_nll += float(unigram[chosen].sum())
        target_bytes += int(byte_lengths[chosen].sum())
    return Evaluation(
        step=loaded.step,
        loss=sum(total / count for total, count in sums.values() if count),
        swapped_loss=mean_loss(model, batches, Swap(batches)) if loaded.has_two_stacks else None,
        unigram_loss=unigram_nll / num_targets,
        bits_per_byte=None if config.model.is_encoder_only else sums[0][0] / math.log(2) / target_bytes,
        target_tokens=num_targets,
        target_bytes=target_bytes,
        order_loss=sums[1][0] / sums[1][1] if 1 in sums and sums[1][1] else None,
    )


def evaluate_sources(
    run: Path,
    step: int | None = None,
    *,
    split: str = "val",
    prefix_length: int | None = None,
    suffix_length: int = 128,
    rows_per_source: int = 256,
) -> dict[str, Score]:
    """Suffix bits per byte on fixed rows of each source, whatever the run was trained on.

    The prefix is as long as the run's encoder by default. Results of two runs are comparable if the lengths and the dataset
    folder are the same. A GPU is used if there is one.
    """
    loaded = load_run(run, step)
    data, byte_lengths = loaded.config.data, loaded.byte_lengths
    prefix = data.encoder_length if prefix_length is None else prefix_length
    start = start_id(loaded.tokenizer)
    objective = suffix_bpb_objective(loaded.config.model.architecture, data.encoder_length, prefix, suffix_length, start)
    sets = evaluation_sets(data.path, split, prefix + suffix_length, rows_per_source, shortest=prefix + 1)
    return score(sets, objective, nll_of(loaded.model), byte_lengths, loaded.config.train.micro_batch_size)


def nll_of(model: SingleProcessModel) -> Nll:
    """The losses of a model, which is moved to a GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    @torch.no_grad()
    def nll(batch: AnyBatch) -> NDArray[np.floating]:
        inputs = model.inputs(tuple(torch.from_numpy(part).to(device) for part in batch.inputs))
        targets = torch.from_numpy(batch.losses[0][0]).to(device)
        return model.factory.cross_entropy(model(inputs), targets).cpu().numpy()

    return nll


def unigram_losses(tokens: NDArray[np.integer], vocab_size: int) -> NDArray[np.float64]:
    """Negative log-likelihood in nats of each id (vocab_size,) under the frequencies of `tokens`, with one added to each."""
    counts = np.ones(vocab_size, dtype=np.int64)
    for start in range(0, len(tokens), _TOKENS_PER_COUNT):
        counts += np.bincount(tokens[start : start + _TOKENS_PER_COUNT], minlength=vocab_size)
    return -np.log(counts / counts.sum())
