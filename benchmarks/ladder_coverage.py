"""How often the 95 % interval of a compute multiplier contains the true one, on simulated ladders of our own designs.

    python benchmarks/ladder_coverage.py [--ladders 100] [--estimators chosen separate …] [--designs cpu-smoke …]

Without --estimators all are measured on the first design and noise, and those of `_EVERYWHERE` on the others.

Each ladder has the runs of a recipe in configs/scaling/ (arms t5 and fnet_t5), a loss surface on which fnet_t5 needs 0.7 times
the compute of t5 at every size and budget, and noise with the parts measured on docs/reports/cpu-smoke: seeds, and lack of fit.
Several estimators read the same ladders. A ladder without an interval counts as a miss. No model is trained.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launch.config import load_config
from pipeline.scaling.fit.bootstrap import draw_pair, fit_columns
from pipeline.scaling.fit.intervals import percentile
from pipeline.scaling.fit.joint.by_compute import Frontiers, covered, multiplier_estimate
from pipeline.scaling.fit.joint.sharing import choose_sharing
from pipeline.scaling.fit.joint.simulated import (
    MEASURED,
    LadderNoise,
    PlannedResult,
    draw_ladder_noise,
    expected_losses,
    simulated_places,
)
from pipeline.scaling.fit.joint.surfaces import JointFit, Places, fit_jointly
from pipeline.scaling.fit.multiplier import compute_multiplier
from pipeline.scaling.fit.points import Columns, Floats
from pipeline.scaling.ladder.ladder import make_ladder
from pipeline.scaling.ladder.power import planned_results
from pipeline.scaling.ladder.recipe import LadderRecipe

TRUE, ARMS, DRAWS = 0.7, ("t5", "fnet_t5"), 200
RECIPES = Path(__file__).parents[1] / "configs/scaling"
SURFACES = {
    "assumed": np.array([*np.log([69, 240, 1.0]), 0.35, 0.37]),
    "fitted": np.array([8.649, 7.416, 0.714, 0.834, 0.543]),
}
"""That of the recipes' `assumed`, and t5's of the joint fit to docs/reports/cpu-smoke."""
DESIGNS = {
    "cpu-smoke": ("cpu-smoke", ["vocab_size=1024"], "assumed"),
    "cpu-smoke, fitted surface": ("cpu-smoke", ["vocab_size=1024"], "fitted"),
    "h200-hour": ("h200-hour", [], "assumed"),
    "pile-small": ("pile-small", [], "assumed"),
}
NOISE = {"measured": MEASURED, "seeds": MEASURED.seeds_alone()}
Bounds = tuple[float, float]


@dataclass(frozen=True)
class Drawn:
    """One ladder: its runs and their log losses (R,)."""

    results: Sequence[PlannedResult]
    log_losses: Floats
    generator: np.random.Generator

    @property
    def places(self) -> Places:
        return simulated_places(self.results, self.log_losses)

    def of_runs(self) -> Places:
        """Each run an observation, plateaus as clusters."""
        results = self.results
        names = [f"{one.size}, seed {one.seed}" for one in results]
        n, d, c = (np.array([getattr(one, name) for one in results]) for name in ("num_parameters", "tokens", "flops"))
        return Places(
            arms=ARMS,
            runs=Columns(num_parameters=n, tokens=d, flops=c, loss=np.exp(self.log_losses)),
            arm=np.array([ARMS.index(one.arm) for one in results]),
            sizes=tuple(names),
            seeds=tuple((name,) for name in names),
        )


def robust(fit: JointFit) -> Bounds:
    """Cluster-robust errors with Student's t, at the largest compute that both arms cover."""
    log_c, _ = covered(fit, (0, 1))
    found = multiplier_estimate(fit, (0, 1), log_c[-1:])
    width = float(found.half_width()[0])
    return float(found.value[0]) - width, float(found.value[0]) + width


def chosen(drawn: Drawn) -> Bounds:
    return robust(choose_sharing(drawn.places).fit)


def all_shared(drawn: Drawn) -> Bounds:
    return robust(fit_jointly(drawn.places))


def none_shared(drawn: Drawn) -> Bounds:
    return robust(fit_jointly(drawn.places, ()))


def without_kappa(drawn: Drawn) -> Bounds:
    return robust(fit_jointly(drawn.places, with_kappa=False))


def plateau_clusters(drawn: Drawn) -> Bounds:
    return robust(fit_jointly(drawn.of_runs()))


def separate(drawn: Drawn, delta: float = 1e-3) -> Bounds:
    """A surface of each arm, noise drawn independently for each run."""
    log_losses, fitted = drawn.log_losses, []
    for arm in ARMS:
        own = [number for number, one in enumerate(drawn.results) if one.arm == arm]
        here = [drawn.results[number] for number in own]
        n, d, c = (np.array([getattr(one, name) for one in here]) for name in ("num_parameters", "tokens", "flops"))
        runs = Columns(num_parameters=n, tokens=d, flops=c, loss=np.exp(log_losses[own]))
        fitted.append(fit_columns(arm, runs, tuple((one.size, one.budget, one.seed) for one in here), delta))
    first, second = fitted
    found = compute_multiplier(first, second, draw_pair(first, second, drawn.generator, DRAWS), float(first.runs.flops.max()))
    return float(np.log(found.low)), float(np.log(found.high))


def separate_least_squares(drawn: Drawn) -> Bounds:
    return separate(drawn, np.inf)


def refitted(fit: JointFit, log_losses: Floats, delta: float = np.inf) -> Bounds:
    """Percentiles of the multipliers of other log losses (B, R) at the places of a fit."""
    log_c, _ = covered(fit, (0, 1))
    found = fit.model.minimise(log_losses, np.repeat(fit.coefficients[None], len(log_losses), axis=0), delta)
    values = Frontiers(fit.model).log_multiplier(found.coefficients, (0, 1), log_c[-1:])[:, 0]
    interval = percentile(0.0, values[fit.model.is_sound(found)])
    return interval.low, interval.high


def wild_bootstrap(drawn: Drawn, delta: float = np.inf) -> Bounds:
    """One random sign for the residuals of each arm and size, scaled for the coefficients."""
    fit = fit_jointly(drawn.places)
    if np.isfinite(delta):
        fit = huber_fit(fit, delta)
    cluster = fit.model.places.cluster
    signs = drawn.generator.choice([-1.0, 1.0], size=(DRAWS, int(cluster.max()) + 1))[:, cluster]
    fitted = fit.model.places.log_loss - fit.residuals
    return refitted(fit, fitted + signs * fit.residuals * np.sqrt(len(fit.residuals) / fit.dof), delta)


def huber_wild_bootstrap(drawn: Drawn) -> Bounds:
    return wild_bootstrap(drawn, 1e-3)


def huber_fit(fit: JointFit, delta: float) -> JointFit:
    log_loss = fit.model.places.log_loss
    found = fit.model.minimise(log_loss, fit.coefficients[None], delta)
    values, slopes = fit.model.values_and_slopes(found.coefficients)
    return JointFit(model=fit.model, coefficients=found.coefficients[0], residuals=log_loss - values[0], slopes=slopes[0])


def stratified_bootstrap(drawn: Drawn) -> Bounds:
    """Runs with their ends drawn with replacement within arm and size. Where a size has one run there is nothing to draw."""
    fit, groups = fit_jointly(drawn.places), {}
    for number, one in enumerate(drawn.results):
        groups.setdefault((one.arm, one.size), {}).setdefault(one.seed, {})[one.budget] = drawn.log_losses[number]
    places = [(ARMS[arm], size) for arm, size in zip(fit.model.places.arm, fit.model.places.sizes, strict=True)]
    budgets = list(dict.fromkeys((one.arm, one.size, one.budget) for one in drawn.results))
    losses = np.empty((DRAWS, len(places)))
    for draw in range(DRAWS):
        taken = {key: drawn.generator.choice(list(seeds), len(seeds)) for key, seeds in groups.items()}
        for column, (arm, size, budget) in enumerate(budgets):
            of_seeds = groups[arm, size]
            there = [of_seeds[seed][budget] for seed in taken[arm, size] if budget in of_seeds[seed]]
            losses[draw, column] = np.mean(there or [loss[budget] for loss in of_seeds.values() if budget in loss])
    return refitted(fit, losses)


ESTIMATORS: dict[str, tuple[str, Callable[[Drawn], Bounds]]] = {
    "chosen": ("joint, sharing by F-test, robust errors of arm x size, t", chosen),
    "all_shared": ("the same, all constants shared", all_shared),
    "none_shared": ("the same, no constant shared", none_shared),
    "without_kappa": ("all shared, kappa 0", without_kappa),
    "plateau_clusters": ("all shared, each run counts, plateaus as clusters", plateau_clusters),
    "wild_bootstrap": ("all shared, wild bootstrap of arm x size", wild_bootstrap),
    "huber_wild_bootstrap": ("the same, Huber's loss, delta 1e-3", huber_wild_bootstrap),
    "stratified_bootstrap": ("all shared, runs drawn within arm and size", stratified_bootstrap),
    "separate": ("separate, Huber's loss, independent noise", separate),
    "separate_least_squares": ("separate, least squares, independent noise", separate_least_squares),
}


_EVERYWHERE = ("chosen",)


def design(recipe: str, overrides: list[str]) -> list[PlannedResult]:
    """The ends of the main runs of the two arms under the first objective."""
    ladder = make_ladder(load_config(LadderRecipe, str(RECIPES / f"{recipe}.yaml"), overrides, kind="scaling"))
    return planned_results(ladder.runs, ARMS)


def measure(drawn: Sequence[Drawn], estimator: Callable[[Drawn], Bounds]) -> tuple[int, int, float]:
    """Intervals with the true multiplier, ladders without an interval, and the median half-width in log compute."""
    held, refused, widths = 0, 0, []
    for one in drawn:
        try:
            low, high = estimator(one)
        except ValueError:
            refused += 1
            continue
        held += low <= np.log(TRUE) <= high
        widths.append((high - low) / 2)
    return held, refused, float(np.median(widths)) if widths else float("nan")


def ladders(name: str, noise: LadderNoise, num_ladders: int) -> list[Drawn]:
    """The same for every estimator."""
    recipe, overrides, surface = DESIGNS[name]
    results = design(recipe, overrides)
    middle = expected_losses(results, ARMS[0], SURFACES[surface], TRUE)
    drawn = draw_ladder_noise(results, noise, num_ladders, np.random.default_rng(2026))
    return [Drawn(results, middle + one, np.random.default_rng(number)) for number, one in enumerate(drawn)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ladders", type=int, default=100)
    parser.add_argument("--estimators", nargs="+", choices=list(ESTIMATORS))
    parser.add_argument("--designs", nargs="+", choices=list(DESIGNS), default=list(DESIGNS))
    parser.add_argument("--noise", nargs="+", choices=list(NOISE), default=list(NOISE))
    options = parser.parse_args()
    began = time.process_time()
    print(f"{options.ladders} ladders, true multiplier {TRUE}; {platform.machine()}, {time.strftime('%F')}")
    print("| design | noise | estimator | contains 0.7 | no interval | median half-width |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    for name in options.designs:
        for noise in options.noise:
            drawn = ladders(name, NOISE[noise], options.ladders)
            first = name == options.designs[0] and noise == options.noise[0]
            for estimator in options.estimators or (ESTIMATORS if first else _EVERYWHERE):
                label, compute = ESTIMATORS[estimator]
                held, refused, width = measure(drawn, compute)
                share = f"{100 * held / options.ladders:.1f} %"
                print(f"| {name} | {noise} | {label} | {share} | {refused} | {100 * np.expm1(width):.1f} % |", flush=True)
    print(f"\n{time.process_time() - began:.0f} s of CPU time")


if __name__ == "__main__":
    main()
