"""A ladder: every run of a comparison, stored and hashed before the first of them is started.

    ladder.json     the recipe, the runs, the pairs that will be compared, the smallest difference that the design can detect,
                    the rules by which runs are excluded, the data's fingerprint, and the SHA-256 over all of it

A sweep run tries learning rates. A main run is one plateau of a warm-up, plateau, decay schedule, with one end for each budget:
the largest is the run itself, the others are branches with a decay of their own (Hägele et al. 2024, arXiv:2405.18392). Names
and folders follow from the recipe alone, so any process can find its work in the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from data_prep.dataset.manifest import MANIFEST_FILE, load_manifest
from data_prep.files import atomic_write, canonical_json, sha256_bytes, sha256_file
from data_prep.tokenization.tokenizer import TOKENIZER_FILE, load_tokenizer, num_ids
from models.architectures.pieces import forward_flops
from models.config import ModelConfig
from models.cost.parameters import num_parameters
from models.layers.factory import TorchLayers
from pipeline.objectives.catalogue import AnyObjective
from pipeline.objectives.causal_lm import CausalLMConfig
from pipeline.scaling.ladder.arm_models import DECODER_ONLY_ARMS, arm_model
from pipeline.scaling.ladder.power import detectable
from pipeline.scaling.ladder.recipe import LadderRecipe, SizeConfig

LADDER_FILE = "ladder.json"
SCHEMA = 1
EQUAL_PARAMETERS = 0.03
"""Largest relative difference of "equal" parameters. Feed-forward widths are multiples of 64, so small models differ."""

EXCLUSION_RULES = (
    "a run that is missing a file, not finished, or without a validation loss at its last step",
    "a run that diverged: no finite last loss, or 5 % above its own lowest validation loss",
    "a run that repeats its data more than 4 times",
    "a copy of another run",
    "all runs, if tokenizers, training data or measures of loss are mixed, or if two results claim one place",
    "nothing is left out for its loss being high, low or unexpected",
)


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
    """A sweep, or a main run with an end for each budget."""

    name: str
    phase: Literal["sweep", "main"]
    objective: int
    """Index into the recipe's objectives."""
    arm: str
    size: str
    seed: int
    rates: tuple[float, ...]
    """The learning rates of a sweep; a main run's follows from the sweeps."""
    model: dict[str, Any]
    num_parameters: int
    flops_per_row: float
    """Training FLOPs of a row: 3 x forward."""
    rows: int
    """Rows of one step."""
    warmup_steps: int
    ends: tuple[End, ...]
    """By ascending budget."""

    def folders(self) -> Iterator[tuple[End, str]]:
        """Each end of a main run with the name of its run folder."""
        for end in self.ends:
            yield end, f"{self.name}-{end.label}"

    @property
    def flops(self) -> float:
        """Training FLOPs of all its ends; the shared plateau counts once."""
        if self.phase == "sweep":
            return len(self.rates) * self.ends[0].flops
        step = self.rows * self.flops_per_row
        return self.ends[-1].flops + sum(step * (end.steps - end.decay_begin) for end in self.ends[:-1])


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two results that will be compared, as decided before the runs."""

    objective: int
    arm: str
    size: str
    budget: float
    seed: int
    equal_parameters: bool
    """Whether the two have equal numbers of parameters, within 3 %."""


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """A planned comparison."""

    recipe: LadderRecipe
    vocab_size: int
    data_sha256: str | None
    """Of the data folder's manifest; None if it did not exist yet."""
    tokenizer_sha256: str | None
    train_tokens: float | None
    runs: tuple[PlannedRun, ...]
    pairs: tuple[Pair, ...]
    detectable: float | None
    """The smallest advantage, as a compute multiplier below 1, that the first objective's ladder shows with a power of 80 %."""

    def run(self, name: str) -> PlannedRun:
        """The run of a name. Raises ValueError, with similar names, if it is not in the plan."""
        from difflib import get_close_matches

        for run in self.runs:
            if run.name == name:
                return run
        near = get_close_matches(name, [run.name for run in self.runs], 3, 0)
        raise ValueError(f"the ladder has no run {name!r}; there are {', '.join(near)} and others: see `scaling status`")

    def sweeps_of(self, run: PlannedRun) -> list[PlannedRun]:
        """The sweeps from which a main run takes its learning rate."""
        return [one for one in self.runs if (one.phase, one.objective, one.arm) == ("sweep", run.objective, run.arm)]

    def objective_of(self, run: PlannedRun) -> AnyObjective:
        return objective_for(self.recipe, run.objective, run.model["architecture"])

    @property
    def content(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "recipe": self.recipe.model_dump(mode="json"),
            "vocab_size": self.vocab_size,
            "data_sha256": self.data_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "train_tokens": self.train_tokens,
            "exclusion_rules": list(EXCLUSION_RULES),
            "detectable_multiplier": self.detectable,
            "runs": [asdict(run) for run in self.runs],
            "pairs": [asdict(pair) for pair in self.pairs],
        }

    @property
    def sha256(self) -> str:
        return sha256_bytes(canonical_json(json.loads(json.dumps(self.content))))


def make_ladder(recipe: LadderRecipe) -> Ladder:
    """Plan every run of a recipe. Raises ValueError if an arm, a size or a budget is impossible."""
    data = recipe.data.path
    is_there = (data / MANIFEST_FILE).is_file()
    if not is_there and not recipe.vocab_size:
        raise ValueError(
            f"data.path {data} is no dataset folder: make it with `fnet-t5 prepare --output {data}`, or give vocab_size (and "
            "train_tokens) to plan before it exists"
        )
    manifest = load_manifest(data) if is_there else None
    vocab_size = num_ids(load_tokenizer(data / TOKENIZER_FILE)) if is_there else recipe.vocab_size
    if recipe.vocab_size and recipe.vocab_size != vocab_size:
        raise ValueError(f"vocab_size is {recipe.vocab_size}, {data / TOKENIZER_FILE} has {vocab_size} ids: leave it out")
    runs = tuple(_runs(recipe, vocab_size))
    return Ladder(
        recipe=recipe,
        vocab_size=vocab_size,
        data_sha256=sha256_file(data / MANIFEST_FILE) if is_there else None,
        tokenizer_sha256=sha256_file(data / TOKENIZER_FILE) if is_there else None,
        train_tokens=float(manifest.splits["train"].total.tokens) if manifest else recipe.train_tokens,
        runs=runs,
        pairs=tuple(_pairs(recipe, runs)),
        detectable=_detectable(recipe, runs),
    )


def write_ladder(ladder: Ladder, folder: Path) -> Path:
    """Write ladder.json once; the same ladder is not written again. Raises ValueError if the folder has another one."""
    path = folder / LADDER_FILE
    if path.is_file():
        if read_ladder(folder).sha256 != ladder.sha256:
            raise ValueError(f"{folder} holds another ladder, and a plan cannot be changed: give another --output")
        return path
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files and no ladder: give another --output")
    folder.mkdir(parents=True, exist_ok=True)
    planned = datetime.now(timezone.utc).isoformat(timespec="seconds")
    values = {**ladder.content, "planned_at": planned, "sha256": ladder.sha256}
    with atomic_write(path) as file:
        file.write(json.dumps(values, indent=1).encode() + b"\n")
    return path


def read_ladder(folder: Path) -> Ladder:
    """The ladder of a folder. Raises ValueError if there is none, or if it was changed after planning."""
    path = folder / LADDER_FILE
    if not path.is_file():
        raise ValueError(f"{folder} is no ladder: it holds no {LADDER_FILE}. Make one with `fnet-t5 scaling plan RECIPE`")
    try:
        values = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or plan again into another folder") from error
    if values.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {values.get('schema')}, this version reads {SCHEMA}: plan again")
    stored = {key: value for key, value in values.items() if key not in ("sha256", "planned_at")}
    if sha256_bytes(canonical_json(stored)) != values["sha256"]:
        raise ValueError(f"{path} was changed after it was planned: restore it, or plan again into another folder")
    runs = tuple(
        PlannedRun(**{**run, "rates": tuple(run["rates"]), "ends": tuple(End(**end) for end in run["ends"])})
        for run in values["runs"]
    )
    return Ladder(
        recipe=LadderRecipe.model_validate(values["recipe"]),
        vocab_size=values["vocab_size"],
        data_sha256=values["data_sha256"],
        tokenizer_sha256=values["tokenizer_sha256"],
        train_tokens=values["train_tokens"],
        runs=runs,
        pairs=tuple(Pair(**pair) for pair in values["pairs"]),
        detectable=values["detectable_multiplier"],
    )


def planned_at(folder: Path) -> str:
    """The time of planning, ISO 8601 in UTC."""
    return str(json.loads((folder / LADDER_FILE).read_bytes())["planned_at"])


def stored_sha256(folder: Path) -> str:
    """The hash in the plan's file, over the plan as it was written. A plan of an earlier version may hash differently now."""
    return str(json.loads((folder / LADDER_FILE).read_bytes())["sha256"])


def objective_for(recipe: LadderRecipe, number: int, architecture: str) -> AnyObjective:
    """The objective of an arm under the recipe's objective `number`: gpt2 and causal read prefix_lm's text as causal_lm."""
    objective = recipe.objectives[number]
    return CausalLMConfig() if architecture == "gpt2" and objective.name == "prefix_lm" else objective


def _runs(recipe: LadderRecipe, vocab_size: int) -> Iterator[PlannedRun]:
    sweep = recipe.learning_rate
    for phase in ("sweep", "main") if sweep else ("main",):
        for number, objective in enumerate(recipe.objectives):
            for arm in recipe.arms:
                if objective.name != "prefix_lm" and arm in DECODER_ONLY_ARMS:
                    continue  # other objectives compare encoder-decoders only
                sizes = sweep.sizes if sweep and phase == "sweep" else recipe.sizes_of(arm)
                for size in sizes:
                    for seed in [0] if phase == "sweep" else _seeds(recipe, arm, size):
                        yield _run(recipe, vocab_size, phase, number, arm, size, seed)


def _run(recipe: LadderRecipe, vocab_size: int, phase: str, number: int, arm: str, size: str, seed: int) -> PlannedRun:
    section = recipe.sizes[size].model
    lengths = recipe.lengths(recipe.objectives[number])
    try:
        model = arm_model(arm, section, vocab_size, lengths)
        baseline = arm_model("t5", section, vocab_size, lengths)
    except (TypeError, ValueError) as error:
        raise ValueError(f"sizes.{size}: {error}") from error
    objective = objective_for(recipe, number, model.architecture)
    own = recipe.lengths(objective)
    flops_per_row = 3 * forward_flops(model, TorchLayers(), own)
    row_length = objective.row_length(recipe.data.encoder_length, recipe.data.decoder_length)
    rows = _rows(recipe, recipe.sizes[size], num_parameters(baseline), row_length)
    sweep = recipe.learning_rate if phase == "sweep" else None
    budgets = [sweep.budget] if sweep else list(recipe.budgets)
    if phase == "main" and seed and recipe.seeds:
        budgets = budgets[: recipe.seeds.budgets]
    ends = tuple(_end(recipe, label, budget, rows, flops_per_row, row_length) for label, budget in enumerate(budgets, start=1))
    if ends[0].steps < 10:
        raise ValueError(
            f"arm {arm} at size {size} makes {ends[0].steps} steps of {rows} rows within {budgets[0]:.3g} FLOPs: raise the "
            "budget, or lower batch.tokens"
        )
    prefix = "" if number == 0 else f"{objective.name}-"
    name = f"{prefix}sweep-{arm}-{size}" if phase == "sweep" else f"{prefix}{arm}-{size}-seed{seed}"
    return PlannedRun(
        name=name,
        phase=phase,  # type: ignore[arg-type]
        objective=number,
        arm=arm,
        size=size,
        seed=seed,
        rates=sweep.values if sweep else (),
        model=_section(model),
        num_parameters=num_parameters(model),
        flops_per_row=flops_per_row,
        rows=rows,
        warmup_steps=max(1, round(recipe.schedule.warmup * ends[0].steps)),
        ends=ends,
    )


def _section(model: ModelConfig) -> dict[str, Any]:
    """The `model` section of a run, as JSON gives it back. A key that came after the first plans is left out at its default:
    otherwise the checksum of a plan would change with the version."""
    section: dict[str, Any] = json.loads(json.dumps(asdict(model)))
    if model.encoder_positions == "default":
        del section["encoder_positions"]
    return section


def _end(recipe: LadderRecipe, label: int, budget: float, rows: int, flops_per_row: float, row_length: int) -> End:
    steps = round(budget / (rows * flops_per_row))
    decay = max(1, round(recipe.schedule.decay * steps))
    return End(
        label=f"b{label}",
        budget=budget,
        steps=steps,
        decay_begin=steps - decay,
        flops=steps * rows * flops_per_row,
        tokens=float(steps * rows * row_length),
    )


def _rows(recipe: LadderRecipe, size: SizeConfig, parameters: int, row_length: int) -> int:
    batch = recipe.batch
    tokens = batch.tokens * (parameters / batch.at_parameters) ** batch.exponent
    together = size.micro_batch_size * size.mesh.data_parallel(size.num_processes)
    return max(1, round(tokens / row_length / together)) * together


def _seeds(recipe: LadderRecipe, arm: str, size: str) -> range:
    seeds = recipe.seeds
    is_anchor = seeds is not None and size == seeds.size and (not seeds.arms or arm in seeds.arms)
    return range(seeds.count) if seeds is not None and is_anchor else range(1)


def _pairs(recipe: LadderRecipe, runs: tuple[PlannedRun, ...]) -> Iterator[Pair]:
    main = [run for run in runs if run.phase == "main"]
    baselines = {(run.objective, run.size, run.seed): run for run in main if run.arm == recipe.baseline}
    for run in main:
        other = baselines.get((run.objective, run.size, run.seed))
        if run.arm == recipe.baseline or other is None:
            continue
        is_equal = abs(run.num_parameters / other.num_parameters - 1) <= EQUAL_PARAMETERS
        for end, _ in zip(run.ends, other.ends, strict=False):
            yield Pair(
                objective=run.objective, arm=run.arm, size=run.size, budget=end.budget, seed=run.seed, equal_parameters=is_equal
            )


def _detectable(recipe: LadderRecipe, runs: tuple[PlannedRun, ...]) -> float | None:
    if recipe.assumed is None:
        return None
    chosen = [run for run in runs if run.phase == "main" and run.objective == 0 and run.arm == recipe.baseline]
    places = [(run.num_parameters, end.tokens, end.flops) for run in chosen for end in run.ends]
    return detectable(recipe.assumed, places)
