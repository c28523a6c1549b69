"""A ladder: every run of a comparison, stored and hashed before the first of them is started.

    ladder.json     the recipe, the runs, the pairs that will be compared, the smallest difference that the design can detect,
                    the rules by which runs are excluded, the data's fingerprint, and the SHA-256 over all of it
    data_path.txt   where the data are on this machine, which is no part of the plan

Names and folders of runs follow from the recipe alone, so any process can find its work in the file. A ladder can be extended:
ladder.json then holds the extensions after the plan, each with its time and the SHA-256 of what it extends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from data_prep.dataset.manifest import MANIFEST_FILE, load_manifest
from data_prep.files import atomic_write, canonical_json, sha256_bytes, sha256_file
from data_prep.tokenization.tokenizer import TOKENIZER_FILE, load_tokenizer, num_ids
from pipeline.objectives.catalogue import AnyObjective
from pipeline.scaling.ladder.planned_runs import End, PlannedRun, objective_for, plan_runs
from pipeline.scaling.ladder.power import detectable
from pipeline.scaling.ladder.recipe import LadderRecipe

__all__ = ["End", "Extension", "Ladder", "Pair", "PlannedRun", "make_ladder", "read_ladder", "write_ladder"]

LADDER_FILE, DATA_PATH_FILE = "ladder.json", "data_path.txt"
SCHEMA = 1
_UNHASHED = ("sha256", "planned_at", "archived_sha256")
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
class Extension:
    """What was added to a plan later."""

    added_at: str
    """ISO 8601 in UTC."""
    previous_sha256: str
    """Of the plan before."""
    recipe: LadderRecipe
    """The recipe of the whole ladder, from then on."""
    runs: tuple[PlannedRun, ...]
    pairs: tuple[Pair, ...]

    @property
    def content(self) -> dict[str, Any]:
        return {
            "added_at": self.added_at,
            "previous_sha256": self.previous_sha256,
            "recipe": self.recipe.model_dump(mode="json"),
            "runs": [asdict(run) for run in self.runs],
            "pairs": [asdict(pair) for pair in self.pairs],
        }


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """A planned comparison."""

    planned: LadderRecipe
    """The recipe as it was first planned."""
    vocab_size: int
    data_sha256: str | None
    """Of the data folder's manifest; None if it did not exist yet."""
    tokenizer_sha256: str | None
    train_tokens: float | None
    planned_runs: tuple[PlannedRun, ...]
    planned_pairs: tuple[Pair, ...]
    detectable: float | None
    """The smallest advantage, as a compute multiplier below 1, that the first objective's ladder shows with a power of 80 %."""
    extensions: tuple[Extension, ...] = ()
    data_fingerprint: str | None = field(default=None, compare=False)
    """Of all that training reads in the data folder; None in plans of earlier versions, and without data."""
    data_folder: Path | None = field(default=None, compare=False)
    """Where the data are on this machine, from data_path.txt."""
    stored: str | None = field(default=None, compare=False)
    """The SHA-256 in ladder.json. It covers the file as it was written, perhaps by an earlier version."""

    @property
    def recipe(self) -> LadderRecipe:
        """The recipe with all extensions."""
        return self.extensions[-1].recipe if self.extensions else self.planned

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """All runs, those of extensions last."""
        return (*self.planned_runs, *(run for extension in self.extensions for run in extension.runs))

    @property
    def pairs(self) -> tuple[Pair, ...]:
        return (*self.planned_pairs, *(pair for extension in self.extensions for pair in extension.pairs))

    @property
    def data_path(self) -> Path:
        """Where the data are: as planned, or where they were moved to."""
        return self.data_folder or self.planned.data.path

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
        extensions = [one.content for one in self.extensions]
        return {
            "schema": SCHEMA,
            "recipe": self.planned.model_dump(mode="json"),
            "vocab_size": self.vocab_size,
            "data_sha256": self.data_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            **({"data_fingerprint": self.data_fingerprint} if self.data_fingerprint else {}),
            "train_tokens": self.train_tokens,
            "exclusion_rules": list(EXCLUSION_RULES),
            "detectable_multiplier": self.detectable,
            "runs": [asdict(run) for run in self.planned_runs],
            "pairs": [asdict(pair) for pair in self.planned_pairs],
            **({"extensions": extensions} if extensions else {}),
        }

    @property
    def sha256(self) -> str:
        """The SHA-256 of the plan."""
        return self.stored or sha256_bytes(canonical_json(json.loads(json.dumps(self.content))))


def make_ladder(recipe: LadderRecipe) -> Ladder:
    """Plan every run of a recipe. Raises ValueError if an arm, a size or a budget is impossible, or if runs are too short."""
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
    runs = plan_runs(recipe, vocab_size)
    return Ladder(
        planned=recipe,
        vocab_size=vocab_size,
        data_sha256=sha256_file(data / MANIFEST_FILE) if is_there else None,
        tokenizer_sha256=sha256_file(data / TOKENIZER_FILE) if is_there else None,
        train_tokens=float(manifest.splits["train"].total.tokens) if manifest else recipe.train_tokens,
        planned_runs=runs,
        planned_pairs=tuple(make_pairs(recipe, runs)),
        detectable=_detectable(recipe, runs),
        data_fingerprint=manifest.fingerprint() if manifest else None,
        data_folder=data.resolve() if is_there else None,
    )


def make_pairs(recipe: LadderRecipe, runs: Sequence[PlannedRun]) -> Iterator[Pair]:
    """Each end of another arm with the baseline's at the same size, budget and seed, where there is one."""
    ends = [(run, end) for run in runs if run.phase == "main" for end in run.ends]
    baselines = {(run.objective, run.size, run.seed, end.budget): run for run, end in ends if run.arm == recipe.baseline}
    for run, end in ends:
        other = baselines.get((run.objective, run.size, run.seed, end.budget))
        if run.arm != recipe.baseline and other is not None:
            yield Pair(
                objective=run.objective,
                arm=run.arm,
                size=run.size,
                budget=end.budget,
                seed=run.seed,
                equal_parameters=abs(run.num_parameters / other.num_parameters - 1) <= EQUAL_PARAMETERS,
            )


def write_ladder(ladder: Ladder, folder: Path) -> Path:
    """Write ladder.json once; the same ladder is not written again. Raises ValueError if the folder has another one."""
    path = folder / LADDER_FILE
    if path.is_file():
        if replace(read_ladder(folder), extensions=()) != ladder:
            raise ValueError(
                f"{folder} holds another ladder, and a plan cannot be changed: give another --output, or extend it with "
                "`fnet-t5 scaling add`"
            )
        return path
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files and no ladder: give another --output")
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, ladder, now())
    if ladder.data_folder is not None:
        write_data_path(folder, ladder.data_folder)
    return path


def write_extension(folder: Path, ladder: Ladder) -> None:
    """Replace ladder.json by the one of an extended ladder. The plan before stays in it as it was."""
    values = dict(json.loads((folder / LADDER_FILE).read_bytes()))
    stored = {key: value for key, value in values.items() if key not in _UNHASHED}
    stored["extensions"] = [*stored.get("extensions", []), json.loads(json.dumps(ladder.extensions[-1].content))]
    sha256 = sha256_bytes(canonical_json(stored))
    archived = {"archived_sha256": [*values["archived_sha256"], sha256]} if "archived_sha256" in values else {}
    _write_values(folder, {**stored, "planned_at": values["planned_at"], "sha256": sha256, **archived})


def write_data_path(folder: Path, data: Path) -> None:
    """Note where the data are on this machine."""
    with atomic_write(folder / DATA_PATH_FILE) as file:
        file.write(f"{data.resolve()}\n".encode())


def now() -> str:
    """The time, ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


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
    if _hashes(values) != values.get("archived_sha256", chain(values)):
        raise ValueError(f"{path} was changed after it was planned: restore it, or plan again into another folder")
    moved = folder / DATA_PATH_FILE
    return Ladder(
        planned=LadderRecipe.model_validate(values["recipe"]),
        vocab_size=values["vocab_size"],
        data_sha256=values["data_sha256"],
        tokenizer_sha256=values["tokenizer_sha256"],
        train_tokens=values["train_tokens"],
        planned_runs=_read_runs(values),
        planned_pairs=_read_pairs(values),
        detectable=values["detectable_multiplier"],
        extensions=tuple(
            Extension(
                added_at=one["added_at"],
                previous_sha256=one["previous_sha256"],
                recipe=LadderRecipe.model_validate(one["recipe"]),
                runs=_read_runs(one),
                pairs=_read_pairs(one),
            )
            for one in values.get("extensions", [])
        ),
        data_fingerprint=values.get("data_fingerprint"),
        data_folder=Path(moved.read_text().strip()) if moved.is_file() else None,
        stored=values["sha256"],
    )


def chain(values: Mapping[str, Any]) -> list[str]:
    """The SHA-256 of the plan in a ladder.json, then those with its first extension, its second, …, as they were stored."""
    return [*(one["previous_sha256"] for one in values.get("extensions", [])), values["sha256"]]


def without_absolute_path(values: Mapping[str, Any]) -> dict[str, Any]:
    """A ladder.json whose data's absolute path is cut to its last part, to be published.

    It keeps its hashes, and holds those of what it became as `archived_sha256`.
    """
    path = Path(values["recipe"]["data"]["path"])
    if not path.is_absolute():
        return dict(values)

    def cut(part: Mapping[str, Any]) -> dict[str, Any]:
        recipe = part["recipe"]
        return {**part, "recipe": {**recipe, "data": {**recipe["data"], "path": path.name}}}

    extensions = [cut(one) for one in values.get("extensions", [])]
    changed = {**cut(values), **({"extensions": extensions} if extensions else {})}
    return {**changed, "archived_sha256": _hashes(changed)}


def _hashes(values: Mapping[str, Any]) -> list[str]:
    """`chain`, computed."""
    content = {key: value for key, value in values.items() if key not in (*_UNHASHED, "extensions")}
    extensions = values.get("extensions", [])
    parts = [content, *({**content, "extensions": extensions[:number]} for number in range(1, len(extensions) + 1))]
    return [sha256_bytes(canonical_json(part)) for part in parts]


def planned_at(folder: Path) -> str:
    """The time of planning, ISO 8601 in UTC."""
    return str(json.loads((folder / LADDER_FILE).read_bytes())["planned_at"])


def stored_sha256(folder: Path) -> str:
    """The hash in the plan's file, over the plan as it was written. A plan of an earlier version may hash differently now."""
    return str(json.loads((folder / LADDER_FILE).read_bytes())["sha256"])


def _write(folder: Path, ladder: Ladder, time: str) -> None:
    _write_values(folder, {**ladder.content, "planned_at": time, "sha256": ladder.sha256})


def _write_values(folder: Path, values: Mapping[str, Any]) -> None:
    with atomic_write(folder / LADDER_FILE) as file:
        file.write(json.dumps(values, indent=1).encode() + b"\n")


def _read_runs(values: Mapping[str, Any]) -> tuple[PlannedRun, ...]:
    return tuple(
        PlannedRun(**{**run, "rates": tuple(run["rates"]), "ends": tuple(End(**end) for end in run["ends"])})
        for run in values["runs"]
    )


def _read_pairs(values: Mapping[str, Any]) -> tuple[Pair, ...]:
    return tuple(Pair(**pair) for pair in values["pairs"])


def _detectable(recipe: LadderRecipe, runs: Sequence[PlannedRun]) -> float | None:
    if recipe.assumed is None:
        return None
    chosen = [run for run in runs if run.phase == "main" and run.objective == 0 and run.arm == recipe.baseline]
    places = [(run.num_parameters, end.tokens, end.flops) for run in chosen for end in run.ends]
    return detectable(recipe.assumed, places)
