"""Nested lists in the manner of ListOps (Nangia & Bowman 2018, arXiv:1804.06028; long-range arena, Tay et al. 2020,
arXiv:2011.04006): the decoder writes the value of

    [MAX 2 9 [MIN 4 7 0 ] ]   →   9

A list is an operator (MAX, MIN, MED, SUM modulo 10) and three arguments: digits or lists. All shapes with the same number of
lists are equally likely: a random word of operators and digits has exactly one rotation that is an expression in Polish
notation (the cycle lemma, Dvoretzky & Motzkin 1947). Operators are equally likely, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.cost.flops import Lengths
from pipeline.objectives.counter_rng import CounterRNG
from pipeline.scaling.battery.tasks.task_rows import FIRST_SYMBOL, Chance, Ints, TaskRows, after_start, symbols

MAX, MIN, MED, SUM = OPERATORS = range(4)
DIGITS = 10
CLOSE = FIRST_SYMBOL + DIGITS + len(OPERATORS)
"""Token ids: the digits, the four operators with their opening bracket, the closing bracket."""


def apply_operator(operator: Ints, a: Ints, b: Ints, c: Ints) -> Ints:
    """The value of lists of three; the arguments are broadcast."""
    largest, smallest, total = np.maximum(np.maximum(a, b), c), np.minimum(np.minimum(a, b), c), a + b + c
    return np.choose(operator, [largest, smallest, total - largest - smallest, total % DIGITS])


@dataclass(frozen=True)
class NestedLists:
    """As many lists as fit into `length`: each adds four tokens to the first digit. The encoder is as long, without padding."""

    length: int

    @property
    def num_lists(self) -> int:
        return (self.length - 1) // 4

    @property
    def lengths(self) -> Lengths:
        return Lengths(4 * self.num_lists + 1, 1)

    @property
    def vocab_size(self) -> int:
        return CLOSE + 1

    def rows(self, seed: str, samples: Ints) -> TaskRows:
        rng = CounterRNG(seed, "battery/nested_lists", samples)
        width = 3 * self.num_lists + 1
        is_list = _as_expression(rng.subset(self.num_lists, width))
        operators = symbols(rng.uniform(width), len(OPERATORS))
        digits = symbols(rng.uniform(width), DIGITS)
        values, closing = _evaluate(is_list, operators, digits)
        read = np.full((len(samples), 4 * self.num_lists + 1), CLOSE)
        places = np.arange(width)[None] + np.cumsum(closing, axis=1) - closing
        np.put_along_axis(read, places, FIRST_SYMBOL + np.where(is_list, DIGITS + operators, digits), axis=1)
        written = values[:, None] + FIRST_SYMBOL
        return TaskRows(read, after_start(written), written)

    def chance(self) -> Chance:
        """All ten values are equally likely. The largest, the smallest and the median of three digits are the three digits: one
        of them at random is one of the digits at random, uniform if they are. A sum with a uniform digit is uniform modulo 10.
        So a list of digits is a uniform digit again, and by induction any nesting of lists is."""
        return Chance(1 / DIGITS, 1 / DIGITS)


def _as_expression(is_list: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rotate each word so that it is an expression: it begins after the first place where most arguments are missing."""
    height = np.cumsum(np.where(is_list, 2, -1), axis=1)
    begin = np.argmin(height, axis=1) + 1
    width = is_list.shape[1]
    return np.take_along_axis(is_list, (begin[:, None] + np.arange(width)[None]) % width, axis=1)


def _evaluate(is_list: NDArray[np.bool_], operators: Ints, digits: Ints) -> tuple[Ints, Ints]:
    """Values (B,) of expressions in Polish notation, and how many lists close behind each of their tokens (B, W).

    From right to left with a stack of values, and of the places where they end.
    """
    num_rows, width = is_list.shape
    rows = np.arange(num_rows)
    values, ends = np.zeros((2, num_rows, width + 1), np.int64)
    closing = np.zeros((num_rows, width), np.int64)
    top = np.full(num_rows, -1)
    for place in range(width - 1, -1, -1):
        lists = is_list[:, place]
        some, depth = rows[lists], top[lists]
        a, b, c = (values[some, depth - down] for down in range(3))
        end = ends[some, depth - 2]
        closing[some, end] += 1
        top += np.where(lists, -2, 1)
        values[rows, top] = digits[:, place]
        ends[rows, top] = place
        values[some, top[lists]] = apply_operator(operators[lists, place], a, b, c)
        ends[some, top[lists]] = end
    return values[:, 0], closing
