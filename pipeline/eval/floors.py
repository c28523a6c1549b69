"""The losses of n-gram tables on exactly the targets that a run's model is scored on.

What is counted: the training text where targets are text (prefix-LM, causal LM, text infilling, masked LM); where they hold
sentinels too (span corruption, UL2, mixtures), the targets that the objective makes of the training rows. The context of a
target is what stands before it in its row: in the decoder's text, for prefix-LM also the end of the prefix, in the decoder-only
form the whole text, and for an encoder alone the tokens that it reads before the place (a masked one matches no count).

Shapes: B rows, N encoder length, M decoder length, L tokens, P predicted places, T targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.dataset.indexed_dataset import TokenFile
from pipeline.config import RunConfig
from pipeline.data.batches import PipelineBatch, objective_of, open_rows
from pipeline.eval.ngram import MAX_ORDER, UNKNOWN, fit, windows
from pipeline.objectives.catalogue import form_of
from pipeline.objectives.interface import Form
from pipeline.objectives.vocabulary import Vocabulary

Ints = NDArray[np.integer]
Pairs = tuple[Ints, Ints]
"""Contexts (T, 2), the nearest token last, and targets (T,)."""

MAX_TOKENS = 20_000_000
"""Training tokens that are counted, from the start of the split. They take about 1 GB of memory while they are counted."""
_TEXT_TARGETS = ("prefix_lm", "causal_lm", "text_infilling", "masked_lm")
_HELD_OUT = 20  # every twentieth block fits the weights
_BLOCK = 4096
_ROWS_PER_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class Floors:
    """Losses of interpolated n-gram tables in nats per target token, on the targets of a model."""

    unigram_loss: float
    bigram_loss: float
    trigram_loss: float
    counted_tokens: int
    """Tokens (for span corruption and mixtures targets) of the training split that were counted."""


def ngram_floors(
    config: RunConfig,
    batches: Sequence[PipelineBatch],
    vocab_size: int,
    max_tokens: int = MAX_TOKENS,
    vocabulary: Vocabulary | None = None,
) -> Floors:
    """The floors of a run on its validation `batches`, from the first `max_tokens` of its training text.

    `vocabulary` is that of data.path's tokenizer, which is read if it is needed and not given.
    Raises ValueError if the batches or the training text hold no targets.
    """
    form = form_of(config.model.architecture)
    follows = form == "encoder_decoder" and config.data.objective.name == "prefix_lm"
    scored = join(
        target_contexts(form, [part.numpy() for part in inputs], labels[0].numpy(), labels[1].numpy() > 0, follows)
        for inputs, labels in batches
    )
    return floors_on(scored, config, vocab_size, max_tokens, vocabulary)


def floors_on(
    scored: Pairs, config: RunConfig, vocab_size: int, max_tokens: int = MAX_TOKENS, vocabulary: Vocabulary | None = None
) -> Floors:
    """The floors on chosen targets and their contexts, from a run's training text. See `ngram_floors`."""
    counted, held_out = split(_training_pairs(config, form_of(config.model.architecture), max_tokens, vocabulary))
    if not (len(scored[1]) and len(counted[1])):
        raise ValueError(f"{config.data.path} holds no target tokens to count or to score: prepare more text")
    losses = fit(counted, held_out, vocab_size).losses(*scored).mean(1)
    return Floors(
        unigram_loss=float(losses[0]),
        bigram_loss=float(losses[1]),
        trigram_loss=float(losses[2]),
        counted_tokens=len(counted[1]),
    )


def target_contexts(form: Form, inputs: Sequence[Ints], targets: Ints, taken: NDArray[np.bool_], follows_prefix: bool) -> Pairs:
    """The contexts (T, 2) and the targets (T,) of one batch where `taken` (B, M) is true.

    `inputs` are those of the batch of this form; `follows_prefix`: the decoder's text continues the encoder's.
    """
    num_rows, width = targets.shape
    before = np.full((num_rows, width + MAX_ORDER - 1), UNKNOWN, dtype=np.int32)  # [:, p + k]: token k of target p's context
    contexts = np.lib.stride_tricks.sliding_window_view(before, MAX_ORDER - 1, axis=1)[:, :width]
    if form == "encoder_only":
        ids, _, _, positions = inputs
        places = positions[:, :, None] + np.arange(1 - MAX_ORDER, 0)
        found = np.take_along_axis(ids[:, None], np.maximum(places, 0), axis=2)
        contexts = np.where(places >= 0, found, UNKNOWN)
    elif form == "decoder_only":
        before[:, MAX_ORDER - 1 : -1] = inputs[0][:, 1:]  # the ids are the text behind the start token
    else:
        before[:, MAX_ORDER - 1 :] = targets
        if follows_prefix:
            ids, mask = inputs[:2]
            places = (mask > 0).sum(1, keepdims=True) + np.arange(1 - MAX_ORDER, 0)
            before[:, : MAX_ORDER - 1] = np.where(places >= 0, np.take_along_axis(ids, np.maximum(places, 0), axis=1), UNKNOWN)
    return contexts[taken].astype(np.int32), targets[taken].astype(np.int32)


def split(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """The pairs to be counted, and those that fit the weights: every twentieth block, so both have all parts of the text."""
    contexts, targets = pairs
    block = min(_BLOCK, max(1, len(targets) // _HELD_OUT))
    held_out = np.arange(len(targets), dtype=np.int32) // block % _HELD_OUT == _HELD_OUT - 1
    return (contexts[~held_out], targets[~held_out]), (contexts[held_out], targets[held_out])


def _training_pairs(config: RunConfig, form: Form, max_tokens: int, vocabulary: Vocabulary | None) -> Pairs:
    data = config.data
    if data.objective.name in _TEXT_TARGETS:
        return windows(TokenFile(data.path / "train").tokens[:max_tokens])
    rows, objective = open_rows(data, data.path, "train"), objective_of(config, vocabulary=vocabulary)
    num_rows = min(len(rows), -(-max_tokens // rows.row_length))

    def pairs() -> Iterator[Pairs]:
        for first in range(0, num_rows, _ROWS_PER_BATCH):
            chosen = np.arange(first, min(first + _ROWS_PER_BATCH, num_rows), dtype=np.int64)
            batch = objective(*rows.read(chosen), chosen)
            targets, mask = batch.losses[0]
            yield target_contexts(form, batch.inputs, targets, mask > 0, follows_prefix=False)

    return join(pairs())


def join(pairs: Iterable[Pairs]) -> Pairs:
    """The pairs of several batches together."""
    contexts, targets = zip(*pairs, strict=True)
    return np.concatenate(contexts), np.concatenate(targets)
