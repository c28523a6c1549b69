"""The tasks: every row against a plain solver of its task, chance levels by enumeration and by counting, and purity."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import combinations, product
from statistics import median

import numpy as np
import pytest

from pipeline.scaling.battery.tasks import periodic, recall, sequences, task_rows
from pipeline.scaling.battery.tasks.by_name import TASKS
from pipeline.scaling.battery.tasks.nested_lists import CLOSE, DIGITS, NestedLists
from pipeline.scaling.battery.tasks.task_rows import FIRST_SYMBOL, GAP, START, TaskRows

LENGTHS = (16, 24, 64)


def solve_recall(read: list[int], asked: list[int]) -> list[int]:
    bound = dict(zip(read[::2], read[1::2], strict=True))
    assert len(bound) == len(asked) == len(set(asked))
    return [bound[key] for key in asked]


def solve_periodic_gap(read: list[int], asked: list[int]) -> list[int]:
    """Try every period; all that fit must give the same answer."""
    gap, missing = read.index(GAP), len(asked)
    known = {place + (missing - 1 if place > gap else 0): token for place, token in enumerate(read) if token != GAP}
    answers = set()
    for period in range(missing + 1, len(read) // 4 + 1):
        pattern: dict[int, int] = {}
        if all(pattern.setdefault(place % period, token) == token for place, token in known.items()):
            answers.add(tuple(pattern[place % period] for place in range(gap, gap + missing)))
    assert len(answers) == 1
    return list(answers.pop())


def solve_nested_lists(read: list[int], asked: list[int]) -> list[int]:
    """A recursive parser of brackets."""
    tokens = iter(read)

    def value(token: int) -> int:
        if token < FIRST_SYMBOL + DIGITS:
            return token - FIRST_SYMBOL
        arguments = [value(argument) for argument in iter(lambda: next(tokens), CLOSE)]
        assert len(arguments) == 3
        return int((max, min, median, lambda three: sum(three) % 10)[token - FIRST_SYMBOL - DIGITS](arguments))

    answer = value(next(tokens))
    assert next(tokens, None) is None
    return [answer + FIRST_SYMBOL]


SOLVERS = {
    "recall": solve_recall,
    "copy": lambda read, asked: read,
    "reverse": lambda read, asked: read[::-1],
    "sort": lambda read, asked: sorted(read),
    "periodic_gap": solve_periodic_gap,
    "nested_lists": solve_nested_lists,
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", TASKS)
def test_the_targets_are_those_of_a_plain_solver(name: str, length: int) -> None:
    task = TASKS[name](length)
    rows = task.rows("0", np.arange(200))
    assert rows.encoder_ids.shape == (200, task.lengths.encoder)
    assert rows.decoder_ids.shape == rows.targets.shape == (200, task.lengths.decoder)
    for read, asked, written in zip(*(part.tolist() for part in rows), strict=True):
        assert SOLVERS[name](read, asked) == written
        assert max(*read, *written, *asked) < task.vocab_size
        if name != "recall":
            assert asked == [START, *written[:-1]]


@pytest.mark.parametrize("name", TASKS)
def test_a_row_depends_on_seed_and_number_alone(name: str) -> None:
    task = TASKS[name](16)
    rows = task.rows("0", np.arange(50))
    again = task.rows("0", np.array([7, 49, 7]))
    for part, some in zip(rows, again, strict=True):
        assert part.dtype == np.int64
        np.testing.assert_array_equal(part[[7, 49, 7]], some)
    assert (task.rows("1", np.arange(50)).encoder_ids != rows.encoder_ids).any()
    assert len({tuple(row) for row in rows.encoder_ids.tolist()}) == 50


def best_guess(rows: TaskRows) -> tuple[float, float]:
    """Accuracy, on these rows, of the best guess that knows the decoder's inputs: of tokens by all inputs so far, of rows by
    those that are not targets."""
    asked, written = rows.decoder_ids.tolist(), rows.targets.tolist()
    tokens: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for inputs, targets in zip(asked, written, strict=True):
        for place, target in enumerate(targets):
            tokens[tuple(inputs[: place + 1])][target] += 1
    right = sum(max(counts.values()) for counts in tokens.values())
    answers: defaultdict[tuple[int, ...], Counter[tuple[int, ...]]] = defaultdict(Counter)
    for inputs, targets in zip(asked, written, strict=True):
        is_query = inputs[0] != START
        answers[tuple(inputs) if is_query else ()][tuple(targets)] += 1
    return right / rows.targets.size, sum(max(counts.values()) for counts in answers.values()) / len(written)


@pytest.mark.parametrize(("name", "length"), [("recall", 4), ("copy", 4), ("reverse", 4), ("sort", 3), ("periodic_gap", 16)])
def test_chance_is_what_the_best_guess_reaches_on_many_rows(name: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With three symbols, so that every case occurs often. The guess is fitted to the rows themselves: a little better."""
    for module in (task_rows, periodic, recall, sequences):
        monkeypatch.setattr(module, "NUM_SYMBOLS", 3)
    task = TASKS[name](length)
    token, row = best_guess(task.rows("chance", np.arange(60_000)))
    chance = task.chance()
    assert chance.token <= token < chance.token + 0.02
    assert chance.row <= row < chance.row + 0.02


def test_chance_of_sort_by_enumeration() -> None:
    for length in (2, 3, 5):
        every = np.array(list(combinations(range(2, 2 + 2 * length), length)))
        found = best_guess(TaskRows(every, task_rows.after_start(every), every))
        chance = TASKS["sort"](length).chance()
        assert found == pytest.approx((chance.token, chance.row), rel=1e-12)


def expressions(lists: int) -> Iterator[list[int]]:
    """Every shape with so many lists in bracket notation, with 0 for a digit and 1 for an operator with its bracket."""
    if lists == 0:
        yield [0]
    for first, second in product(range(lists), repeat=2):
        if first + second < lists:
            parts = (expressions(number) for number in (first, second, lists - 1 - first - second))
            for arguments in product(*parts):
                yield [1, *(token for argument in arguments for token in argument), CLOSE]


def test_the_values_of_nested_lists_are_uniform_by_enumeration() -> None:
    """All expressions with one list and with two."""
    operators = (max, min, median, lambda three: sum(three) % 10)
    one = Counter(int(operator(three)) for operator in operators for three in product(range(10), repeat=3))
    assert set(one.values()) == {400}
    two: Counter[int] = Counter()
    for place, operator, inner in product(range(3), operators, operators):
        inner_values = Counter(int(inner(three)) for three in product(range(10), repeat=3))
        for digits in product(range(10), repeat=2):
            for value, count in inner_values.items():
                two[int(operator([*digits[:place], value, *digits[place:]]))] += count
    assert set(two.values()) == {3 * 16 * 10**5 // 10}
    assert NestedLists(16).chance() == task_rows.Chance(0.1, 0.1)


def test_all_shapes_of_nested_lists_are_equally_likely() -> None:
    every = {tuple(shape) for shape in expressions(3)}
    assert len(every) == 12
    rows = NestedLists(16).rows("shapes", np.arange(12_000)).encoder_ids
    shapes = np.where(rows == CLOSE, CLOSE, (rows >= FIRST_SYMBOL + DIGITS).astype(int))
    counts = Counter(map(tuple, shapes.tolist()))
    assert set(counts) == every
    chi_squared = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert chi_squared < 31.3  # the 99.9 % quantile for 11 degrees of freedom
    operators = np.bincount(rows[(rows >= FIRST_SYMBOL + DIGITS) & (rows != CLOSE)] - FIRST_SYMBOL - DIGITS)
    assert (abs(operators - 9000) < 4 * np.sqrt(36_000 * 0.25 * 0.75)).all()


def test_every_place_and_period_of_a_gap_occurs() -> None:
    rows = TASKS["periodic_gap"](16).rows("places", np.arange(4000))
    places = np.bincount(np.argmax(rows.encoder_ids == GAP, axis=1), minlength=16)
    assert places.min() > 180
    assert places.max() < 320
