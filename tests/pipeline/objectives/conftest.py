"""A real tokenizer for objectives, rows of real text, and a test of whether counts follow equal chances."""

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
    """Fails where counts of outcomes speak against `num_outcomes` equal chances: p below 10^-4, draws fixed by their seed."""

    def check(counts: dict[object, int], num_outcomes: int) -> None:
        assert len(counts) == num_outcomes
        assert chisquare(list(counts.values())).pvalue > 1e-4

    return check


@pytest.fixture(scope="session")
def distinct_rows() -> Callable[[int, int], np.ndarray]:
    """Rows whose token at place p is 1000 + p: what comes out says where it came from."""

    def make(num_rows: int, length: int) -> np.ndarray:
        return np.tile(1000 + np.arange(length), (num_rows, 1))

    return make
