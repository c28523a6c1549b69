"""Prefix-LM with drawn prefixes, causal LM, and both for a decoder-only model: the targets are the same tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.objectives.causal_lm import CausalLM, DecoderOnlyAdapter
from pipeline.objectives.prefix_lm import PrefixLM, PrefixLMConfig
from pipeline.objectives.vocabulary import Vocabulary

VOCABULARY = Vocabulary(start=7, end=1)


def drawn(prefixes: tuple[int, ...], encoder_length: int, decoder_length: int) -> PrefixLM:
    config = PrefixLMConfig(prefix_lengths=prefixes)
    return config.build(config.row_length(encoder_length, decoder_length), encoder_length, decoder_length, VOCABULARY, "0")


def test_prefixes_are_drawn_from_the_stated_set(
    equally_likely: Callable[..., None], distinct_rows: Callable[[int, int], np.ndarray]
) -> None:
    objective = drawn((4, 6, 10), 12, 8)
    assert objective.row_length == 12
    batch = objective(distinct_rows(3000, 12), np.full(3000, 12), np.arange(3000))
    equally_likely(Counter(batch.encoder_mask.sum(1).tolist()), 3)
    for row in range(50):
        prefix = int(batch.encoder_mask[row].sum())
        assert batch.encoder_ids[row].tolist() == [*range(1000, 1000 + prefix), *[0] * (12 - prefix)]
        assert batch.targets[row].tolist() == [*range(1000 + prefix, 1012), *[0] * (8 - 12 + prefix)]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 200), st.integers(1, 200), st.floats(0.02, 0.98))
def test_a_prefix_share_gives_the_longest_row_that_fits(encoder_length: int, decoder_length: int, share: float) -> None:
    config = PrefixLMConfig(target_share=share)
    found = config.row_length(encoder_length, decoder_length)

    def fits(length: int) -> bool:
        rest = min(max(1, round(length * share)), length - 1)
        return length - rest <= encoder_length and rest <= decoder_length

    assert fits(found)
    assert not fits(found + 1)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_decoder_only_targets_equal_encoder_decoder_targets(bidirectional: bool) -> None:
    lengths = np.array([12, 9, 3, 0])
    rows = (1000 + np.arange(48)).reshape(4, 12) * (np.arange(12) < lengths[:, None])
    pair = drawn((4, 6), 8, 8)
    batch = pair(rows, lengths, np.arange(4))
    text = DecoderOnlyAdapter(pair, 7, bidirectional)(rows, lengths, np.arange(4))
    for row, length in enumerate(lengths.tolist()):
        tokens, prefix = rows[row, :length].tolist(), min(int(pair.prefixes(np.arange(4))[row]), length)
        assert text.ids[row].tolist() == ([7, *tokens[:-1]] if length else []) + [0] * (16 - length)
        expected = [2 if bidirectional and place <= prefix else 1 for place in range(length)] + [0] * (16 - length)
        assert text.mask[row].tolist() == expected
        assert text.targets[row][text.target_mask[row] == 1].tolist() == tokens[prefix:]
        assert tokens[prefix:] == batch.targets[row][batch.target_mask[row] == 1].tolist()


def test_causal_lm_predicts_every_token() -> None:
    rows, lengths = np.array([[11, 12, 13], [21, 0, 0]]), np.array([3, 1])
    batch = CausalLM(3, start_id=7)(rows, lengths, np.arange(2))
    assert batch.ids.tolist() == [[7, 11, 12], [7, 0, 0]]
    assert batch.mask.tolist() == batch.target_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.targets.tolist() == [[11, 12, 13], [21, 0, 0]]
