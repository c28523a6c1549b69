"""Order, coverage and resume on random meshes with random restarts: the union of all ranks' reads is one sequence."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.batches import DataShard, Rows, TrainingBatches
from pipeline.data.order import SampleOrder, Skipping
from pipeline.data.prefetch import Prefetch
from pipeline.data.rows import RowSource, StreamRows
from pipeline.objectives.causal_lm import CausalLM
from pipeline.objectives.interface import Objective
from pipeline.objectives.prefix_lm import PrefixLM
from pipeline.objectives.span_corruption import SpanCorruptionConfig
from pipeline.objectives.vocabulary import Vocabulary
from tests.helpers.datasets import numbered_documents, write_dataset

ROW_LENGTH = 12
GLOBAL_BATCH = 12
SHAPES = [(data, micro) for data in (1, 2, 3, 4, 6) for micro in (1, 2, 3, 4, 6, 12) if GLOBAL_BATCH % (data * micro) == 0]


@dataclass(frozen=True)
class Segment:
    """A part of a run between two starts: its mesh, its loader settings, and its number of steps."""

    shape: tuple[int, int]
    ahead: int
    workers: int
    steps: int


SEGMENTS = st.lists(
    st.builds(Segment, st.sampled_from(SHAPES), st.integers(0, 3), st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=4
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("order")
    return [
        write_dataset(
            base / str(number), numbered_documents(count, 40, first=1000 + 10_000 * number, seed=number), (ROW_LENGTH,)
        )
        for number, count in enumerate((23, 11))
    ]


def open_sources(folders: list[Path], layout: str, blended: bool) -> tuple[list[RowSource], list[float]]:
    kind = StreamRows if layout == "stream" else Rows
    chosen = folders if blended else folders[:1]
    return [kind(folder, "train", ROW_LENGTH) for folder in chosen], [3.0, 1.0][: len(chosen)]


def objectives() -> dict[str, Objective]:
    vocabulary = Vocabulary(start=0, end=1, sentinels=tuple(range(900, 800, -1)))
    config = SpanCorruptionConfig(noise_density=0.4, mean_span_length=2)  # several spans even in a row this short
    return {
        "prefix_lm": PrefixLM(encoder_length=8, decoder_length=4, start_id=0),
        "span_corruption": config.build(ROW_LENGTH, *config.needs(ROW_LENGTH), vocabulary, "5"),
        "causal_lm": CausalLM(ROW_LENGTH, start_id=0),
    }


def run(
    sources: list[RowSource], weights: list[float], objective: Objective, segments: list[Segment], skip: list[tuple[int, int]]
) -> list[bytes]:
    """Every sample's tensors in global order, assembled from the batches of each rank of each segment's mesh."""
    step, position, samples = 0, 0, []
    for segment in segments:
        data_parallel, micro = segment.shape
        ranks = []
        for rank in range(data_parallel):
            batches = TrainingBatches(
                sources, objective, DataShard(micro, data_parallel, rank), GLOBAL_BATCH, 5, weights, skip_ranges=skip
            )
            batches.continue_at(step, position)
            ranks.append((batches, Prefetch(batches.step, step + segment.steps, segment.ahead, segment.workers)))
        for number in range(step + 1, step + segment.steps + 1):
            made = [prefetch(number) for _, prefetch in ranks]
            assert len({num_targets for _, num_targets in made}) == 1
            for portion in itertools.zip_longest(*(micro_batches for micro_batches, _ in made)):
                for inputs, labels in portion:
                    # loss weights depend only on the number of micro-batches, which the parity tests cover
                    arrays = [tensor.numpy() for tensor in (*inputs, labels[0], labels[1] > 0)]
                    samples += [b"".join(array[row].tobytes() for array in arrays) for row in range(micro)]
        step += segment.steps
        position = ranks[0][0].position_after(step)
        for _, prefetch in ranks:
            prefetch.close()
    return samples


@pytest.mark.parametrize("objective", ["prefix_lm", "span_corruption", "causal_lm"])
@pytest.mark.parametrize(("layout", "blended"), [("packed", False), ("stream", False), ("packed", True), ("stream", True)])
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SEGMENTS)
def test_batches_are_independent_of_meshes_loaders_and_restarts(
    folders: list[Path], layout: str, blended: bool, objective: str, segments: list[Segment]
) -> None:
    sources, weights = open_sources(folders, layout, blended)
    skip = [(5, 9), (30, 31)]
    total = sum(segment.steps for segment in segments)
    straight = run(sources, weights, objectives()[objective], [Segment((1, GLOBAL_BATCH), 0, 1, total)], skip)
    assert run(sources, weights, objectives()[objective], segments, skip) == straight


@pytest.mark.parametrize(("layout", "blended"), [("packed", False), ("stream", False), ("packed", True), ("stream", True)])
def test_every_token_of_the_corpus_is_read_once_per_epoch(folders: list[Path], layout: str, blended: bool) -> None:
    """Tokens are numbered: over whole epochs, the samples of a source contain each token exactly once."""
    sources, weights = open_sources(folders, layout, blended)
    order = SampleOrder([len(source) for source in sources], weights, seed=1)
    samples = np.arange(3 * order.blend.period * sum(len(source) for source in sources), dtype=np.int64)
    drawn, numbers = order.blend(samples)
    rows = order.rows(samples)
    for index, (source, folder) in enumerate(zip(sources, folders, strict=False)):
        corpus = np.fromfile(folder / "train.bin", dtype="<i4").tolist()
        mine = rows[drawn == index] - order.first_row[index]
        assert np.array_equal(numbers[drawn == index], np.arange(len(mine)))
        num_epochs = len(mine) // len(source)
        assert num_epochs >= 1
        orders = set()
        for epoch in range(num_epochs):
            visited = mine[epoch * len(source) : (epoch + 1) * len(source)]
            tokens, lengths = source.read(visited)
            seen = tokens[np.arange(ROW_LENGTH) < lengths[:, None]]
            assert sorted(seen.tolist()) == corpus
            orders.add(visited.tobytes())
        assert len(orders) == num_epochs


def test_causal_lm_predicts_every_token_once_per_epoch(folders: list[Path]) -> None:
    """In batch tensors, one epoch of causal LM has every token of the corpus as a target exactly once, packed and streamed."""
    corpus = np.fromfile(folders[0] / "train.bin", dtype="<i4").tolist()
    for kind in (Rows, StreamRows):
        rows = kind(folders[0], "train", ROW_LENGTH)
        batches = TrainingBatches(rows, CausalLM(ROW_LENGTH, 0), DataShard(1), len(rows), seed=3)
        written = [targets[weights > 0] for _, (targets, weights) in batches.step(1)[0]]
        assert sorted(np.concatenate(written).tolist()) == corpus


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 15)), max_size=4),
    st.integers(0, 50),
    st.integers(0, 30),
    st.integers(1, 20),
)
def test_skipped_ranges_are_removed_from_the_sequence(
    ranges: list[tuple[int, int]], position: int, offset: int, count: int
) -> None:
    skip = [(first, first + size) for first, size in ranges]
    left = [i for i in range(position, 500) if not any(first <= i < end for first, end in skip)]
    assert Skipping(skip).take(position, offset, count).tolist() == left[offset : offset + count]


def test_a_range_skipped_later_does_not_change_earlier_steps(folders: list[Path]) -> None:
    rows = Rows(folders[0], "train", ROW_LENGTH)

    def batches(skip: list[tuple[int, int]], batch: int = 4) -> TrainingBatches:
        return TrainingBatches(
            rows, PrefixLM(encoder_length=8, decoder_length=4, start_id=0), DataShard(1), batch, 0, skip_ranges=skip
        )

    before = batches([])
    after = batches([(2, 6), (9, 14)])
    after.continue_at(2, before.position_after(2))
    assert after.samples(3).tolist() == [8, 14, 15, 16]
    larger = batches([], batch=6)
    larger.continue_at(2, before.position_after(2))
    assert larger.samples(3).tolist() == list(range(8, 14))
    with pytest.raises(ValueError, match="step 2 lies before step 2"):
        larger.samples(2)
    with pytest.raises(ValueError, match="first below end"):
        batches([(4, 4)])


def test_adding_a_folder_does_not_reshuffle_the_first(folders: list[Path]) -> None:
    alone = SampleOrder([50], [1], seed=9)
    both = SampleOrder([50, 30], [1, 1], seed=9)
    samples = np.arange(100)
    drawn, _ = both.blend(samples)
    assert both.rows(samples)[drawn == 0].tolist() == alone.rows(np.arange(50)).tolist()
    assert sorted(alone.rows(np.arange(50))) == list(range(50))  # one epoch of a source reads each of its rows once
    assert sorted(both.rows(samples)[drawn == 1][:30]) == list(range(50, 80))


def test_seed_epoch_and_source_each_change_the_order() -> None:
    """Of every source, also of the second: with equal numbers of rows, no two orders are the same."""
    samples = np.arange(200)
    orders: dict[tuple[int, int, int], tuple[int, ...]] = {}
    for seed in (1, 2):
        order = SampleOrder([50, 50], [1, 1], seed)
        drawn, _ = order.blend(samples)
        for source in (0, 1):
            rows = order.rows(samples)[drawn == source] - 50 * source
            for epoch in (0, 1):
                mine = rows[50 * epoch : 50 * (epoch + 1)]
                assert sorted(mine) == list(range(50))
                orders[seed, source, epoch] = tuple(mine.tolist())
    assert len(set(orders.values())) == 8


def test_prefetch_raises_at_the_requested_step_and_allows_jumps() -> None:
    made: Counter[int] = Counter()

    def make(step: int) -> int:
        made[step] += 1
        if step == 4:
            raise ValueError("step 4 is broken")
        return 10 * step

    prefetch = Prefetch(make, last=9, ahead=2, workers=2)
    assert [prefetch(step) for step in (1, 2, 3)] == [10, 20, 30]
    with pytest.raises(ValueError, match="step 4 is broken"):
        prefetch(4)
    assert prefetch(7) == 70
    assert prefetch(5) == 50
    assert [prefetch(step) for step in (8, 9)] == [80, 90]
    prefetch.close()
    assert max(made) == 9
    with pytest.raises(ValueError, match="0 or more steps"):
        Prefetch(make, 3, ahead=-1)
