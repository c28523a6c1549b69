"""The runs that follow from a recipe: their models, steps, tokens and costs.

A sweep run tries learning rates. A main run is one plateau of a warm-up, plateau, decay schedule, with one end for each budget:
the largest is the run itself, the others are branches with a decay of their own (Hägele et al. 2024, arXiv:2405.18392). A check
tries twice and half the rate of a main run at its largest budget. Names and folders follow from the recipe alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from models.architectures.pieces import forward_flops, needed_flops
from models.config import ModelConfig
from models.cost.parameters import num_parameters
from models.layers.factory import TorchLayers
from pipeline.objectives.catalogue import AnyObjective
from pipeline.objectives.causal_lm import CausalLMConfig
from pipeline.objectives.vocabulary import Vocabulary
from pipeline.scaling.ladder.arm_models import DECODER_ONLY_ARMS, arm_model
from pipeline.scaling.ladder.recipe import FEWEST_SWEPT, LadderRecipe, SizeConfig

Phase = Literal["sweep", "check", "main"]
CHECK_FACTORS = (0.5, 2.0)
"""What a check multiplies the rate of the power law by."""
FEWEST_STEPS, FEWEST_TOKENS, FEWEST_WARMUP = 1000, 3.0, 200
"""With fewer steps, tokens a parameter or steps of warm-up a run is too short to compare arms: see schedule.allow_short."""
_SHOWN = 3
"""Short ends in an error."""


@dataclass(frozen=True, kw_only=True)
class End:
    """The end of one budget, with its own run folder."""

    label: str
    budget: float
    steps: int
    decay_begin: int
    flops: float
    """Training FLOPs of whole steps."""
    tokens: float


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A sweep, a check, or a main run with an end for each budget."""

    name: str
    phase: Phase
    objective: int
    """Index into the recipe's objectives."""
    arm: str
    size: str
    seed: int
    rates: tuple[float, ...]
    """The learning rates of a sweep; those of other runs follow from the sweeps."""
    model: dict[str, Any]
    num_parameters: int
    flops_per_row: float
    """Training FLOPs of a row, as executed: 3 x forward."""
    rows: int
    """Rows of one step."""
    warmup_steps: int
    ends: tuple[End, ...]
    """By ascending budget."""
    needed_flops_per_row: float | None = field(default=None, compare=False)
    """Training FLOPs of a row that its loss needs: the head where there is a loss, causal attention without its masked half.
    None in plans of earlier versions."""

    def folders(self) -> Iterator[tuple[End, str]]:
        """Each end of a main run with the name of its run folder."""
        for end in self.ends:
            yield end, f"{self.name}-{end.label}"

    @property
    def flops(self) -> float:
        """Training FLOPs of all its ends; the shared plateau counts once."""
        if self.phase != "main":
            return (len(self.rates) or len(CHECK_FACTORS)) * self.ends[0].flops
        step = self.rows * self.flops_per_row
        return self.ends[-1].flops + sum(step * (end.steps - end.decay_begin) for end in self.ends[:-1])


@dataclass(frozen=True, kw_only=True)
class ShortEnd:
    """An end, or the tries of a sweep, that is too short to compare arms."""

    run: PlannedRun
    end: End
    tokens_per_parameter: float

    @property
    def reason(self) -> str:
        """In words: `t5-d96-seed0 at 2e+12 FLOPs: 182 steps (18 of warm-up), 0.51 tokens a parameter`."""
        return (
            f"{self.run.name} at {self.end.budget:.3g} FLOPs: {self.end.steps:,} steps ({self.run.warmup_steps:,} of warm-up), "
            f"{self.tokens_per_parameter:.2f} tokens a parameter"
        )


def short_ends(runs: Sequence[PlannedRun]) -> list[ShortEnd]:
    """The ends with under 1,000 steps, 3 tokens a parameter or 200 steps of warm-up. Sweeps need the steps and the warm-up."""
    found = []
    for run in runs:
        for end in run.ends:
            tokens = end.tokens / run.num_parameters
            is_short = end.steps < FEWEST_STEPS or run.warmup_steps < FEWEST_WARMUP
            if is_short or (run.phase != "sweep" and tokens < FEWEST_TOKENS):
                found.append(ShortEnd(run=run, end=end, tokens_per_parameter=tokens))
    return found


def plan_runs(recipe: LadderRecipe, vocab_size: int) -> tuple[PlannedRun, ...]:
    """Every run of a recipe. Raises ValueError if an arm, a size or a budget is impossible, or if runs are too short."""
    _check_sweeps(recipe)
    runs = tuple(all_runs(recipe, vocab_size))
    check_length(recipe, runs)
    return runs


def check_length(recipe: LadderRecipe, runs: Sequence[PlannedRun]) -> None:
    """Raise ValueError if runs are too short, unless the recipe allows them."""
    short = [] if recipe.schedule.allow_short else short_ends(runs)
    if short:
        more = f"; and {len(short) - _SHOWN} more" if len(short) > _SHOWN else ""
        raise ValueError(
            f"{'; '.join(one.reason for one in short[:_SHOWN])}{more}. Comparing arms needs at least {FEWEST_STEPS:,} steps, "
            f"{FEWEST_TOKENS:.0f} tokens a parameter and {FEWEST_WARMUP} steps of warm-up (sweeps: steps and warm-up): raise "
            "the budget (learning_rate.budget for sweeps), lower batch.tokens, leave out the size, or set "
            "schedule.allow_short=true, which the report will say"
        )


def objective_for(recipe: LadderRecipe, number: int, architecture: str) -> AnyObjective:
    """The objective of an arm under the recipe's objective `number`: gpt2 and causal read prefix_lm's text as causal_lm."""
    objective = recipe.objectives[number]
    return CausalLMConfig() if architecture == "gpt2" and objective.name == "prefix_lm" else objective


def _check_sweeps(recipe: LadderRecipe) -> None:
    search = recipe.learning_rate
    if search is not None and len(search.sizes) < (needed := min(FEWEST_SWEPT, len(recipe.sizes))):
        raise ValueError(
            f"learning_rate.sizes names {len(search.sizes)} of {len(recipe.sizes)} sizes: name at least {needed}, small and "
            "large ones, so that the power law of the rates has a residual"
        )


def all_runs(recipe: LadderRecipe, vocab_size: int) -> Iterator[PlannedRun]:
    """Every run of a recipe, however short."""
    for phase in ("sweep", "main", "check"):
        for number, objective in enumerate(recipe.objectives):
            for arm in recipe.arms:
                if objective.name != "prefix_lm" and arm in DECODER_ONLY_ARMS:
                    continue  # other objectives compare encoder-decoders only
                for size in _sizes(recipe, phase, arm):
                    for seed in _seeds(recipe, arm, size) if phase == "main" else range(1):
                        yield _Planning(recipe, vocab_size, number, arm, size).run(phase, seed)


def _sizes(recipe: LadderRecipe, phase: str, arm: str) -> tuple[str, ...]:
    if phase == "main":
        return recipe.sizes_of(arm)
    checked = recipe.checked_size(arm)
    return recipe.swept_sizes(arm) if phase == "sweep" else (checked,) if checked else ()


def _seeds(recipe: LadderRecipe, arm: str, size: str) -> range:
    seeds = recipe.seeds
    is_anchor = seeds is not None and size == seeds.size and (not seeds.arms or arm in seeds.arms)
    return range(seeds.count) if seeds is not None and is_anchor else range(1)


class _Planning:
    """One arm at one size on one objective."""

    def __init__(self, recipe: LadderRecipe, vocab_size: int, number: int, arm: str, size: str) -> None:
        self._recipe, self._number, self._arm, self._size = recipe, number, arm, size
        section, data = recipe.sizes[size].model, recipe.data
        lengths = recipe.lengths(recipe.objectives[number])
        try:
            self._model = arm_model(arm, section, vocab_size, lengths)
            baseline = arm_model("t5", section, vocab_size, lengths)
        except (TypeError, ValueError) as error:
            raise ValueError(f"sizes.{size}: {error}") from error
        objective = objective_for(recipe, number, self._model.architecture)
        own = recipe.lengths(objective)
        self._row_length = objective.row_length(data.encoder_length, data.decoder_length)
        built = objective.build(self._row_length, data.encoder_length, data.decoder_length, _AnyVocabulary(start=0, end=1), "0")
        self._flops_per_row = 3 * forward_flops(self._model, TorchLayers(), own)
        self._needed_flops_per_row = 3 * needed_flops(self._model, TorchLayers(), own, built.cost.target)
        self._rows = _rows(recipe, recipe.sizes[size], num_parameters(baseline), self._row_length)

    def run(self, phase: Phase, seed: int) -> PlannedRun:
        budgets = self._budgets(phase, seed)
        ends = tuple(self._end(label, budget) for label, budget in enumerate(budgets, start=1))
        self._check_steps(ends, budgets[0])
        prefix = "" if self._number == 0 else f"{self._recipe.objectives[self._number].name}-"
        place = f"{self._arm}-{self._size}"
        return PlannedRun(
            name=f"{prefix}{place}-seed{seed}" if phase == "main" else f"{prefix}{phase}-{place}",
            phase=phase,
            objective=self._number,
            arm=self._arm,
            size=self._size,
            seed=seed,
            rates=self._recipe.learning_rate.values if phase == "sweep" and self._recipe.learning_rate else (),
            model=_section(self._model),
            num_parameters=num_parameters(self._model),
            flops_per_row=self._flops_per_row,
            needed_flops_per_row=self._needed_flops_per_row,
            rows=self._rows,
            warmup_steps=self._warmup_steps(phase, ends),
            ends=ends,
        )

    def _budgets(self, phase: Phase, seed: int) -> list[float]:
        recipe = self._recipe
        if phase == "sweep" and recipe.learning_rate:
            return [recipe.learning_rate.budget]
        if phase == "check":
            return [recipe.budgets[-1]]
        return list(recipe.budgets[: recipe.seeds.budgets] if seed and recipe.seeds else recipe.budgets)

    def _warmup_steps(self, phase: Phase, ends: tuple[End, ...]) -> int:
        schedule = self._recipe.schedule
        if schedule.warmup is None:
            return schedule.warmup_steps
        smallest = self._end(1, self._recipe.budgets[0]) if phase == "check" else ends[0]  # as the main run that it checks
        return max(1, round(schedule.warmup * smallest.steps))

    def _check_steps(self, ends: tuple[End, ...], budget: float) -> None:
        warmup = self._recipe.schedule.warmup_steps if self._recipe.schedule.warmup is None else 9
        if ends[0].decay_begin <= warmup:
            raise ValueError(
                f"arm {self._arm} at size {self._size} makes {ends[0].steps} steps of {self._rows} rows within {budget:.3g} "
                f"FLOPs, and decays from step {ends[0].decay_begin} on, when its warm-up of {warmup} steps is not over: raise "
                "the budget, lower batch.tokens, or lower schedule.warmup_steps"
            )

    def _end(self, label: int, budget: float) -> End:
        steps = round(budget / (self._rows * self._flops_per_row))
        decay = max(1, round(self._recipe.schedule.decay * steps))
        return End(
            label=f"b{label}",
            budget=budget,
            steps=steps,
            decay_begin=steps - decay,
            flops=steps * self._rows * self._flops_per_row,
            tokens=float(steps * self._rows * self._row_length),
        )


class _AnyVocabulary(Vocabulary):
    """Has every token. How many targets a row has does not depend on their ids, and a plan may be made before the data."""

    def span_ids(self, num_spans: int, repeat: bool, objective: str) -> Any:
        import numpy as np

        return np.arange(num_spans)

    def token(self, name: str, objective: str) -> int:
        return 0


def _rows(recipe: LadderRecipe, size: SizeConfig, parameters: int, row_length: int) -> int:
    batch = recipe.batch
    tokens = batch.tokens * (parameters / batch.at_parameters) ** batch.exponent
    together = size.micro_batch_size * size.mesh.data_parallel(size.num_processes)
    return max(1, round(tokens / row_length / together)) * together


def _section(model: ModelConfig) -> dict[str, Any]:
    """The `model` section of a run, as JSON gives it back. A key that came after the first plans is left out at its default:
    otherwise the checksum of a plan would change with the version."""
    section: dict[str, Any] = json.loads(json.dumps(asdict(model)))
    if model.encoder_positions == "default":
        del section["encoder_positions"]
    return section
