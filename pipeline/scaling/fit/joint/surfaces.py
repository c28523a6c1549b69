"""The loss surfaces of several arms in one fit: L = E + A / N^alpha + B r^-kappa / D^beta with A, B and kappa of each arm, and
E, alpha and beta of each arm or shared by all.

Constants that arms share are determined by the runs of all, so a multiplier, which is a difference of two surfaces, needs fewer
coefficients: 8 instead of 11 for two arms that share all three. `sharing.py` tests what may be shared.

r is the cost of a token of the arm, divided by that of the first arm at the same number of parameters. It changes with size:
over the sizes of cpu-smoke the hybrid's rises by a fifth. With kappa = 0, as for the first arm, this is Chinchilla's surface:
arms that differ in A and B alone learn alike from equal tokens at all sizes. With kappa = beta they learn alike from equal
compute. Which holds is not known, so kappa is fitted. Without it, a multiplier that is the same at every size and compute was
found 3 to 6 % too low at small budgets.

The fit is least squares on log losses, one observation a place (arm, size, budget): the mean over its seeds. Seeds of a place
share the lack of fit of its surface, which is larger than their own noise, so they do not count as further observations
(docs/scaling.md has the comparison of estimators).

Shapes: P problems, R places of all arms, K coefficients of the fit, 6 of one arm: those of `surface.py`, then kappa.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.scaling.fit.frontier import token_cost
from pipeline.scaling.fit.huber import Minimum, minimise
from pipeline.scaling.fit.points import Columns, Floats, Point
from pipeline.scaling.fit.surface import FEWEST_RUNS

CONSTANTS = ("E", "alpha", "beta")
"""The constants that arms may share."""
_NUMBER = {"E": 2, "alpha": 3, "beta": 4}
_KAPPA = 5
_EXPONENTS = (0.2, 0.35, 0.5, 0.8)
_STEEPEST = 4.0
_HOLD, _HELD_AT = 0.0015, 0.5
"""Each log E is held with this weight at this share of the lowest loss, and each kappa at 0. If the runs hardly determine E,
alpha and E may fall together without an end, while the fitted losses stay the same; and if costs per parameter are alike,
nothing determines kappa. A factor of 2 in E costs as much as an error of 0.1 % in one loss."""
_FEWEST_SIZES = 3
_ITERATIONS, _FIRST_ITERATIONS, _CONTINUED = 500, 30, 3
"""Of all starts the first iterations are made, of the best few the others."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Places:
    """The places of all arms of a joint fit, with the mean log losses of their seeds."""

    arms: tuple[str, ...]
    runs: Columns
    """Of each place: geometric means over its seeds, (R,)."""
    arm: Ints
    """Number of the arm, (R,)."""
    sizes: tuple[str, ...]
    """Name of the size, R of them."""
    seeds: tuple[tuple[str, ...], ...]
    """Names of the runs whose mean it is, R of them."""

    @cached_property
    def cluster(self) -> Ints:
        """Number of the cluster of each place, (R,): one arm and size. Errors within a cluster may depend on each other."""
        numbers: dict[tuple[int, str], int] = {}
        keys = zip(self.arm.tolist(), self.sizes, strict=True)
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)

    @cached_property
    def log_loss(self) -> Floats:
        return np.log(self.runs.loss)

    def take(self, chosen: Ints) -> Places:
        """The places with these numbers. An arm without places is left out."""
        kept = [number for number in range(len(self.arms)) if (self.arm[chosen] == number).any()]
        return Places(
            arms=tuple(self.arms[number] for number in kept),
            runs=self.runs.take(chosen),
            arm=np.array([kept.index(number) for number in self.arm[chosen].tolist()], dtype=np.int64),
            sizes=tuple(self.sizes[number] for number in chosen.tolist()),
            seeds=tuple(self.seeds[number] for number in chosen.tolist()),
        )

    def log_range(self, arm: int) -> tuple[float, float]:
        """Logarithms of the smallest and the largest compute of an arm's places."""
        log_c = np.log(self.runs.flops[self.arm == arm])
        return float(log_c.min()), float(log_c.max())


def joint_places(points: Sequence[Point]) -> Places:
    """The places of the points, arms in order of appearance."""
    arms = tuple(dict.fromkeys(point.arm for point in points))
    groups: dict[tuple[str, str, float], list[Point]] = {}
    for point in points:
        groups.setdefault((point.arm, point.size, point.budget), []).append(point)

    def means(name: str) -> Floats:
        return np.exp([np.mean(np.log([float(getattr(one, name)) for one in group])) for group in groups.values()])

    return Places(
        arms=arms,
        runs=Columns(num_parameters=means("num_parameters"), tokens=means("tokens"), flops=means("flops"), loss=means("loss")),
        arm=np.array([arms.index(arm) for arm, _, _ in groups], dtype=np.int64),
        sizes=tuple(size for _, size, _ in groups),
        seeds=tuple(tuple(one.run for one in group) for group in groups.values()),
    )


def too_few(points: Sequence[Point]) -> str | None:
    """Why one arm's points cannot be a surface of a joint fit; None if they can."""
    runs, sizes = len(points), len({point.size for point in points})
    if runs < FEWEST_RUNS or sizes < _FEWEST_SIZES:
        return f"{runs} runs of {sizes} sizes: a surface needs {FEWEST_RUNS} runs of {_FEWEST_SIZES} sizes, train more"
    return None


@dataclass(frozen=True, kw_only=True)
class JointModel:
    """Which coefficient of the fit is which constant of which arm."""

    places: Places
    shared: frozenset[str]
    with_kappa: bool = True
    """Whether arms after the first have a kappa of their own; otherwise it is 0."""

    @cached_property
    def index(self) -> Ints:
        """(arms, 6): number of the coefficient that is log A, log B, log E, alpha, beta or kappa of an arm. The number
        `num_coefficients` stands for 0."""
        count, table = itertools.count(), np.zeros((len(self.places.arms), 6), dtype=np.int64)
        shared = {_NUMBER[name] for name in self.shared}
        for constant in range(_KAPPA):
            table[:, constant] = next(count) if constant in shared else [next(count) for _ in self.places.arms]
        if self.with_kappa:
            table[1:, _KAPPA] = [next(count) for _ in self.places.arms[1:]]  # the first arm's is 0
        last = next(count)
        table[0 if self.with_kappa else slice(None), _KAPPA] = last
        return table

    @property
    def num_coefficients(self) -> int:
        return int(self.index[0, _KAPPA])

    @cached_property
    def hold(self) -> Floats:
        """Rows (H, K) that are added to the regression, one for each E and each kappa: see `_HOLD`."""
        of_kappa: list[int] = self.index[1:, _KAPPA].tolist() if self.with_kappa else []
        return _HOLD * np.eye(self.num_coefficients)[[*np.unique(self.index[:, _NUMBER["E"]]), *of_kappa]]

    def held_at(self, log_losses: Floats) -> Floats:
        """What the rows are held at, for log losses (…, R): (…, H)."""
        num_e = len(np.unique(self.index[:, _NUMBER["E"]]))
        at = np.zeros((*log_losses.shape[:-1], len(self.hold)))
        at[..., :num_e] = _HOLD * (np.log(_HELD_AT) + log_losses.min(axis=-1, keepdims=True))
        return at

    @cached_property
    def log_cost_ratio(self) -> Floats:
        """log r of each place, (R,)."""
        places, ratio = self.places, np.zeros(len(self.places.arm))
        for number in range(1, len(places.arms)):
            own = places.arm == number
            ratio[own] = self.log_cost_ratio_at(number, np.log(places.runs.num_parameters[own]))
        return ratio

    def log_cost_ratio_at(self, arm: int, log_n: Floats) -> Floats:
        """log r of an arm at sizes (S,), less its mean over the arm's sizes, which B contains: (S,)."""
        own = self.places.runs.take(self.places.arm == arm)
        first = self.places.runs.take(self.places.arm == 0)
        known = np.unique(np.log(own.num_parameters))
        mean = (token_cost(own, known) - token_cost(first, known)).mean()
        return token_cost(own, log_n) - token_cost(first, log_n) - mean

    def of_arm(self, coefficients: Floats, arm: int) -> Floats:
        """The coefficients of one arm's surface: (P, K) → (P, 6)."""
        return self._with_zero(coefficients)[:, self.index[arm]]

    def of(self, other: JointModel, coefficients: Floats) -> Floats:
        """The coefficients (K,) of this model for the surfaces of a model that shares more, or has no kappa."""
        own = np.zeros(self.num_coefficients + 1)
        own[self.index] = other._with_zero(coefficients[None])[0, other.index]
        return own[:-1]

    def values_and_slopes(self, coefficients: Floats, shift: tuple[float, float] = (0.0, 0.0)) -> tuple[Floats, Floats]:
        """(P, K) → log losses (P, R) and their derivatives (P, R, K), with log N and log D less `shift`."""
        runs = self.places.runs
        log_n, log_d = np.log(runs.num_parameters) - shift[0], np.log(runs.tokens) - shift[1]
        where = self.index[self.places.arm]  # (R, 6)
        # each (P, R)
        log_a, log_b, log_e, alpha, beta, kappa = np.moveaxis(self._with_zero(coefficients)[:, where], -1, 0)
        ratio = self.log_cost_ratio
        terms = log_a - alpha * log_n, log_b - kappa * ratio - beta * log_d, log_e
        values = np.logaddexp(np.logaddexp(terms[0], terms[1]), terms[2])
        of_n, of_d, of_e = (np.exp(term - values) for term in terms)
        slopes = np.zeros((*values.shape, self.num_coefficients + 1))
        own = np.stack([of_n, of_d, of_e, -log_n * of_n, -log_d * of_d, -ratio * of_d], axis=-1)  # (P, R, 6)
        slopes[:, np.arange(len(where))[:, None], where] = own
        return values, slopes[..., :-1]

    def minimise(self, log_losses: Floats, start: Floats, delta: float = np.inf, max_iterations: int = _ITERATIONS) -> Minimum:
        """Surfaces of P problems: log_losses (P, R) or (R,), start (P, K). Infinite delta is least squares."""
        # Centred logarithms separate A and B from alpha and beta, so the steps are well conditioned.
        runs, hold = self.places.runs, self.hold
        shift = float(np.log(runs.num_parameters).mean()), float(np.log(runs.tokens).mean())

        def model(coefficients: Floats) -> tuple[Floats, Floats]:
            values, slopes = self.values_and_slopes(coefficients, shift)
            held = np.broadcast_to(hold, (len(coefficients), *hold.shape))
            return np.concatenate([values, coefficients @ hold.T], axis=1), np.concatenate([slopes, held], axis=1)

        observed = np.concatenate([log_losses, self.held_at(log_losses)], axis=-1)
        found = minimise(model, observed, self._shifted(start, shift), delta, max_iterations=max_iterations)
        return found._replace(coefficients=self._shifted(found.coefficients, (-shift[0], -shift[1])))

    def is_sound(self, found: Minimum) -> NDArray[np.bool_]:
        """(P,): converged, finite, and all exponents positive and below any plausible value."""
        exponents = found.coefficients[:, np.unique(self.index[:, 3:_KAPPA])]
        finite = np.isfinite(found.coefficients).all(1)
        sound: NDArray[np.bool_] = found.converged & finite & (exponents > 0).all(1) & (exponents < _STEEPEST).all(1)
        return sound

    def starts(self) -> Floats:
        """A grid over alpha and beta, the other constants by linear regression: (16, K)."""
        runs, arm, index = self.places.runs, self.places.arm, self.index
        found, every = [], np.arange(len(runs))
        for alpha, beta in itertools.product(_EXPONENTS, repeat=2):
            powers = np.zeros((len(runs), self.num_coefficients))
            powers[every, index[arm, 0]] = runs.num_parameters**-alpha
            powers[every, index[arm, 1]] = runs.tokens**-beta
            powers[every, index[arm, 2]] = 1.0
            linear = np.unique(index[:, :3])
            solved = np.linalg.lstsq(powers[:, linear] / runs.loss[:, None], np.ones(len(runs)), rcond=None)[0]
            least = 1e-2 * runs.loss.min() / powers[:, linear].max(0)  # each term at least a hundredth of a loss
            start = np.zeros(self.num_coefficients)  # kappa starts at 0
            start[linear] = np.log(np.maximum(solved, least))
            start[index[:, 3]], start[index[:, 4]] = alpha, beta
            found.append(start)
        return np.array(found)

    def _with_zero(self, coefficients: Floats) -> Floats:
        return np.concatenate([coefficients, np.zeros((len(coefficients), 1))], axis=1)

    def _shifted(self, coefficients: Floats, shift: tuple[float, float]) -> Floats:
        """The same surfaces with log N and log D less `shift`."""
        moved = coefficients.copy()
        for log_a, log_b, _, alpha, beta, _ in self.index.tolist():
            moved[:, log_a] -= coefficients[:, alpha] * shift[0]
            moved[:, log_b] -= coefficients[:, beta] * shift[1]
        return moved


@dataclass(frozen=True, kw_only=True)
class JointFit:
    """A joint fit: the coefficients, and what is left."""

    model: JointModel
    coefficients: Floats
    """(K,)."""
    residuals: Floats
    """Measured minus fitted log loss, (R,)."""
    slopes: Floats
    """Derivatives of the fitted log losses, (R, K)."""

    @property
    def squares(self) -> float:
        return float((self.residuals**2).sum())

    @property
    def dof(self) -> int:
        return len(self.residuals) - self.model.num_coefficients


def fit_jointly(
    places: Places, shared: Iterable[str] = CONSTANTS, with_kappa: bool = True, start: JointFit | None = None
) -> JointFit:
    """The least-squares fit, the best of 16 starts and of `start`, a fit that shares more.

    Raises ValueError if no start leads to surfaces that fall with size and data, or if no residual is left.
    """
    model = JointModel(places=places, shared=frozenset(shared), with_kappa=with_kappa)
    if len(places.runs) <= model.num_coefficients:
        raise ValueError(
            f"{len(places.runs)} places of {', '.join(places.arms)} do not determine {model.num_coefficients} constants and "
            "their error: add sizes or budgets"
        )
    starts = model.starts()
    if start is not None:
        starts = np.concatenate([model.of(start.model, start.coefficients)[None], starts])
    begun = model.minimise(places.log_loss, starts, max_iterations=_FIRST_ITERATIONS)
    near = np.argsort(np.where(np.isfinite(begun.objective), begun.objective, np.inf))[:_CONTINUED]
    found = model.minimise(places.log_loss, begun.coefficients[near])
    sound = model.is_sound(found)
    if not sound.any():
        raise ValueError(
            f"no surfaces of {', '.join(places.arms)} fall with both size and data: the runs do not show both; widen sizes and "
            "budgets"
        )
    best = int(np.argmin(np.where(sound, found.objective, np.inf)))
    values, slopes = model.values_and_slopes(found.coefficients[best][None])
    return JointFit(model=model, coefficients=found.coefficients[best], residuals=places.log_loss - values[0], slopes=slopes[0])
