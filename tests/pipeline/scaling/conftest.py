"""Simulated ladders from known loss surfaces: 4 sizes x 3 budgets, with 3 seeds at an anchor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.scaling.fit.frontier import CostLaw
from pipeline.scaling.fit.points import Floats, Point
from tests.helpers.ladders import write_made_up_ladder

SIZES = (1.0e6, 2.7e6, 7.3e6, 20e6)
BUDGETS = (5e14, 1.75e15, 6e15)


@dataclass(frozen=True)
class Truth:
    """The true surface of an arm: L = E + A / N^alpha + B / D^beta, and k N^q FLOPs per token."""

    a: float
    b: float
    e: float
    alpha: float
    beta: float
    k: float
    q: float

    def loss(self, num_parameters: Floats, tokens: Floats) -> Floats:
        return self.e + self.a * num_parameters**-self.alpha + self.b * tokens**-self.beta

    def tokens(self, num_parameters: Floats, flops: float) -> Floats:
        return flops / (self.k * num_parameters**self.q)

    def best(self, flops: float) -> tuple[float, float]:
        """Best size at a budget and its loss, by grid search over a million sizes instead of the closed form."""
        sizes = np.geomspace(1e4, 1e9, 1_000_001)
        losses = self.loss(sizes, self.tokens(sizes, flops))
        return float(sizes[losses.argmin()]), float(losses.min())

    @property
    def cost(self) -> CostLaw:
        return CostLaw(float(np.log(self.k)), self.q)

    def ladder(
        self, arm: str, noise: Floats | None = None, sizes: tuple[float, ...] = SIZES, budgets: tuple[float, ...] = BUDGETS
    ) -> list[Point]:
        """A run for each size and budget, and two more seeds at the second size and middle budget; noise (R,) in log loss."""
        places = [(size, budget, 0) for budget in budgets for size in sizes]
        places += [(sizes[1], budgets[len(budgets) // 2], seed) for seed in (1, 2)]
        points = []
        for number, (size, budget, seed) in enumerate(places):
            tokens = float(self.tokens(np.array(size), budget))
            loss = float(self.loss(np.array(size), np.array(tokens))) * np.exp(0.0 if noise is None else noise[number])
            points.append(
                Point(
                    run=f"{arm}/{number}",
                    arm=arm,
                    size=f"{size:.2g}",
                    budget=budget,
                    seed=seed,
                    num_parameters=int(size),
                    tokens=tokens,
                    flops=budget,
                    loss=loss,
                    seconds=1.0 + number,
                    measure="nats",
                    data="one",
                    tokenizer="one",
                    epochs=1.0,
                )
            )
        return points


@pytest.fixture(scope="session")
def attention() -> Truth:
    return Truth(300, 900, 1.6, 0.33, 0.35, 6.6, 1.0)


@pytest.fixture(scope="session")
def fourier() -> Truth:
    """Fewer FLOPs per token, and a slightly higher loss at each size."""
    return Truth(310, 900, 1.6, 0.33, 0.35, 5.1, 1.01)


@pytest.fixture(scope="session")
def ladder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished ladder with made-up results. Copy it before you change it."""
    return write_made_up_ladder(tmp_path_factory.mktemp("made-up"))
