"""Fixtures for objectives: a trained tokenizer, its vocabulary, a test of equal probabilities, and rows of distinct tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import chisquare
from tokenizers import Tokenizer

from data_prep.tokenization.tokenizer import train_tokenizer
from pipeline.objectives.vocabulary import Vocabulary

TEXT = "The quick brown fox jumps over the lazy dog. Is it lazy? It sleeps!\nA second line follows here.\nAnd a third one.\n"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT] * 50, 500)


@pytest.fixture(scope="session")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary.of(tokenizer)


@pytest.fixture(scope="session")
def equally_likely() -> Callable[[dict[object, int], int], None]:
    """A chi-squared test of `num_outcomes` equally likely outcomes. Fails below p = 10^-4; seeds fix the draws."""

    def check(counts: dict[object, int], num_outcomes: int) -> None:
        assert len(counts) == num_outcomes
        assert chisquare(list(counts.values())).pvalue > 1e-4

    return check


@pytest.fixture(scope="session")
def distinct_rows() -> Callable[[int, int], np.ndarray]:
    """Rows whose token at position p is 1000 + p, so that each output token shows its position in the input."""

    def make(num_rows: int, length: int) -> np.ndarray:
        return np.tile(1000 + np.arange(length), (num_rows, 1))

    return make
