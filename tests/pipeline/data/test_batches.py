"""Data order and batches are pure functions of (seed, global sample index), independent of the mesh."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.dataset.indexed_dataset import TokenFile
from pipeline.data.batches import DataShard, Rows, TrainingBatches, validation_batches
from pipeline.data.permutation import permute
from pipeline.objectives.prefix_lm import PrefixLM

OBJECTIVE = PrefixLM(encoder_length=16, decoder_length=8, start_id=0)


@settings(deadline=None)
@given(st.integers(1, 5000), st.text(max_size=8))
def test_permutation_is_a_bijection(size: int, key: str) -> None:
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


def test_permutation_differs_by_key_and_mixes() -> None:
    size = 100_003
    first, second = (permute(np.arange(size), size, key) for key in ("0/0", "0/1"))
    assert (first == second).mean() < 0.001
    assert abs(np.corrcoef(np.arange(size), first)[0, 1]) < 0.02
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.02


def test_permutation_computes_single_indices_of_a_huge_epoch() -> None:
    size = 10**12 + 39
    indices = np.array([0, 1, size - 1, size // 2])
    together = permute(indices, size, "k")
    assert len(set(together.tolist())) == 4
    assert all(0 <= value < size for value in together)
    assert permute(indices[2:3], size, "k")[0] == together[2]


def test_permutation_refuses_indices_out_of_range() -> None:
    with pytest.raises(ValueError, match="outside"):
        permute(np.array([5]), 5, "k")


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([(1, 1), (2, 2), (4, 1), (1, 4), (2, 4), (8, 1)]), st.integers(1, 60))
def test_global_batch_is_the_same_on_every_mesh(dataset: Path, shape: tuple[int, int], step: int) -> None:
    """The union of all replicas' micro-batches is the global batch, and its weights add up to one mean."""
    micro_batch_size, data_parallel = shape
    rows = Rows(dataset, "train", 24)
    expected = Counter(
        map(tuple, rows.read(TrainingBatches(rows, OBJECTIVE, DataShard(8), 8, seed=5).sample_rows(step))[0].tolist())
    )
    found: Counter[tuple[int, ...]] = Counter()
    total_weight = 0.0
    for rank in range(data_parallel):
        batches = TrainingBatches(rows, OBJECTIVE, DataShard(micro_batch_size, data_parallel, rank), 8, seed=5)
        micro_batches, num_targets = batches.step(step)
        for (encoder_ids, _, _), (targets, weights) in micro_batches:
            assert encoder_ids.shape == (micro_batch_size, 16)
            found.update(map(tuple, torch.cat([encoder_ids, targets], dim=1).tolist()))
            # the engine divides by micro-batches and replicas
            total_weight += float(weights.double().sum()) / (len(micro_batches) * data_parallel)
    assert found == expected
    assert total_weight == pytest.approx(1.0 if num_targets else 0.0, rel=1e-5)


def test_each_epoch_visits_every_token_once_in_a_new_order(dataset: Path) -> None:
    rows = Rows(dataset, "train", 24)
    batches = TrainingBatches(rows, OBJECTIVE, DataShard(1), len(rows), seed=0)
    epochs = [batches.sample_rows(step).tolist() for step in (1, 2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(len(rows)))
    assert epochs[0] != epochs[1]
    ids, lengths = rows.read(np.array(epochs[0]))
    seen = np.concatenate([row[:length] for row, length in zip(ids, lengths, strict=True)])
    tokens = np.asarray(TokenFile(dataset / "train").tokens)
    assert np.array_equal(np.bincount(seen, minlength=600), np.bincount(tokens, minlength=600))


def test_a_batch_may_span_two_epochs(dataset: Path) -> None:
    rows = Rows(dataset, "train", 24)
    whole = TrainingBatches(rows, OBJECTIVE, DataShard(1), len(rows), seed=0)
    straddling = TrainingBatches(rows, OBJECTIVE, DataShard(2), 2 * len(rows) - 1, seed=0)
    expected = np.concatenate([whole.sample_rows(1), whole.sample_rows(2)])[:-1]
    assert np.array_equal(straddling.sample_rows(1), expected)


def test_prefix_lm_matches_rows_computed_by_hand() -> None:
    objective = PrefixLM(encoder_length=4, decoder_length=3, start_id=9)
    rows = np.array([[11, 12, 13, 14, 15, 16, 17], [21, 22, 23, 24, 25, 26, 99], [31, 32, 99, 99, 99, 99, 99]])
    lengths = np.array([7, 6, 2])
    batch = objective(rows, lengths, np.arange(3))
    assert batch.encoder_ids.tolist() == [[11, 12, 13, 14], [21, 22, 23, 24], [31, 32, 0, 0]]
    assert batch.encoder_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.decoder_ids.tolist() == [[9, 15, 16], [9, 25, 26], [9, 0, 0]]
    assert batch.targets.tolist() == [[15, 16, 17], [25, 26, 0], [0, 0, 0]]
    assert batch.target_mask.tolist() == [[1, 1, 1], [1, 1, 0], [0, 0, 0]]
    assert objective.num_targets(lengths, np.arange(3)).tolist() == [3, 2, 0]


@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (2, 3), (5, 2)])
def test_validation_covers_the_first_rows_exactly_once(dataset: Path, shape: tuple[int, int]) -> None:
    micro_batch_size, data_parallel = shape
    rows = Rows(dataset, "val", 24)
    expected_ids, expected_lengths = rows.read(np.arange(13))
    found: Counter[tuple[int, ...]] = Counter()
    for rank in range(data_parallel):
        batches, num_targets = validation_batches(rows, OBJECTIVE, DataShard(micro_batch_size, data_parallel, rank), 13)
        assert num_targets == int(OBJECTIVE.num_targets(expected_lengths, np.arange(13)).sum())
        for (encoder_ids, _, _), (targets, _) in batches:
            assert len(encoder_ids) == micro_batch_size
            found.update(row for row in map(tuple, torch.cat([encoder_ids, targets], dim=1).tolist()) if any(row))
    assert found == Counter(map(tuple, expected_ids.tolist()))


def test_missing_rows_error_lists_the_available_lengths(dataset: Path) -> None:
    with pytest.raises(ValueError, match=r"has 24.*data pack .* 640"):
        Rows(dataset, "train", 640)
    with pytest.raises(ValueError, match="no test split"):
        Rows(dataset, "test", 24)
    with pytest.raises(ValueError, match="fnet-t5 prepare"):
        Rows(dataset / "nowhere", "train", 24)
