"""Interpolated n-gram tables: the loss that counting short contexts reaches, a floor below which a model has learnt more.

    p_k(w | c) = λ_b count(c w) / count(c) + (1 - λ_b) p_{k-1}(w | c without its first token),    p_0 = 1 / vocabulary

(Jelinek & Mercer 1980, "Interpolated estimation of Markov source parameters from sparse data"; Chen & Goodman 1999, "An
empirical study of smoothing techniques for language modeling".) Contexts of about equal counts form a bucket b and share a
weight λ_b, found by expectation maximisation on tokens that were not counted. A context that was never seen leaves all to the
shorter one.

Tables are sorted numbers, one for each n-gram, and counts.
Shapes: T tokens or targets, K the largest order, C = K - 1 tokens of context, V ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
Floats = NDArray[np.float64]

UNKNOWN = -1
"""In a context: no token there. It matches no n-gram."""
MAX_ORDER = 3
_NUM_BUCKETS = 64  # by the number of binary digits of an int64
_ROUNDS = 30


@dataclass(frozen=True, eq=False, kw_only=True)
class NGramTable:
    """The counts of all n-grams of one order."""

    order: int
    vocab_size: int
    codes: Ints
    """Ascending: the tokens of each n-gram as digits of a number to the base `vocab_size`."""
    cumulative: Ints
    """One longer than `codes`: how many n-grams of the text have a smaller code."""
    weights: Floats
    """λ of each bucket (64,). The bucket of a context is the number of binary digits of its count."""

    def counts(self, contexts: Ints, targets: Ints) -> tuple[Ints, Ints]:
        """How often each n-gram was counted, and how often its context (T,): contexts (T, C), the nearest token last."""
        known, codes = encode(contexts, targets, self.order, self.vocab_size)
        first = codes - codes % self.vocab_size  # of the n-grams with this context
        seen = self._between(codes, codes + 1)
        total = self._between(first, first + self.vocab_size)
        return seen * known, total * known

    def _between(self, low: Ints, high: Ints) -> Ints:
        """Number of n-grams in the text with codes from `low` up to and without `high`."""
        return self.cumulative[np.searchsorted(self.codes, high)] - self.cumulative[np.searchsorted(self.codes, low)]

    def interpolate(self, contexts: Ints, targets: Ints, shorter: Floats) -> Floats:
        """p_k (T,) of the targets, from p_{k-1} (T,)."""
        seen, total = self.counts(contexts, targets)
        weight = np.where(total > 0, self.weights[_bucket(total)], 0.0)
        return weight * seen / np.maximum(total, 1) + (1 - weight) * shorter


@dataclass(frozen=True)
class NGramModel:
    """Tables of order 1 up to K, each interpolated with the one before."""

    tables: tuple[NGramTable, ...]

    def losses(self, contexts: Ints, targets: Ints) -> Floats:
        """Nats (K, T) of each target under each order. contexts (T, C): the tokens before it, the nearest last."""
        found = np.empty((len(self.tables), len(targets)))
        probability = np.full(len(targets), 1 / self.tables[0].vocab_size)
        for number, table in enumerate(self.tables):
            probability = table.interpolate(contexts, targets, probability)
            found[number] = -np.log(probability)
        return found


def encode(contexts: Ints, targets: Ints, order: int, vocab_size: int) -> tuple[NDArray[np.bool_], Ints]:
    """Which n-grams are complete, and the code of each (T,), 0 if it is not.

    Raises ValueError if the codes exceed 64 bits: the vocabulary is too large for the order.
    """
    if vocab_size**order > np.iinfo(np.int64).max - vocab_size:
        raise ValueError(f"{order}-grams of {vocab_size} ids do not fit 64 bits: count a lower order")
    codes = np.zeros(len(targets), dtype=np.int64)
    known = targets != UNKNOWN
    for column in range(contexts.shape[1] - (order - 1), contexts.shape[1]):
        codes = codes * vocab_size + contexts[:, column]
        known = known & (contexts[:, column] != UNKNOWN)
    codes = codes * vocab_size + targets
    codes[~known] = 0
    return known, codes


def windows(tokens: NDArray[np.integer], max_order: int = MAX_ORDER) -> tuple[Ints, Ints]:
    """Contexts (T, max_order - 1) and targets (T,) of a continuous text (T,), both int32."""
    padded = np.full(len(tokens) + max_order - 1, UNKNOWN, dtype=np.int32)
    padded[max_order - 1 :] = tokens
    return np.lib.stride_tricks.sliding_window_view(padded, max_order)[:, :-1], padded[max_order - 1 :]


def fit(counted: tuple[Ints, Ints], held_out: tuple[Ints, Ints], vocab_size: int, max_order: int = MAX_ORDER) -> NGramModel:
    """Tables of order 1 to `max_order` from `counted`, weights from `held_out`: contexts (T, C) and targets (T,) of each."""
    tables: list[NGramTable] = []
    probability = np.full(len(held_out[1]), 1 / vocab_size)
    for order in range(1, max_order + 1):
        known, codes = encode(*counted, order, vocab_size)
        codes, counts = np.unique(codes[known], return_counts=True)
        cumulative = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        table = NGramTable(
            order=order, vocab_size=vocab_size, codes=codes, cumulative=cumulative, weights=np.full(_NUM_BUCKETS, 0.5)
        )
        seen, total = table.counts(*held_out)
        table.weights[:] = bucket_weights(seen / np.maximum(total, 1), probability, _bucket(total))
        probability = table.interpolate(*held_out, probability)
        tables.append(table)
    return NGramModel(tuple(tables))


def bucket_weights(longer: Floats, shorter: Floats, buckets: Ints) -> Floats:
    """λ (64,) of each bucket by expectation maximisation on held-out targets.

    longer, shorter (T,): the probabilities of the targets by the n-gram's own counts and by the shorter context. buckets (T,).
    Half an observation for either side keeps λ between 0 and 1 and is all that a bucket without targets has.
    """
    weights = np.full(_NUM_BUCKETS, 0.5)
    sizes = np.bincount(buckets, minlength=_NUM_BUCKETS)
    for _ in range(_ROUNDS):
        mixed = weights[buckets] * longer
        share = mixed / (mixed + (1 - weights[buckets]) * shorter)
        weights = (np.bincount(buckets, weights=share, minlength=_NUM_BUCKETS) + 0.5) / (sizes + 1)
    return weights


def _bucket(total: Ints) -> Ints:
    return np.frexp(total.astype(np.float64))[1].astype(np.int64)
