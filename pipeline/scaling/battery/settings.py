"""The recipe of the battery, `configs/battery/*.yaml`, and the runs that follow from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from data_prep.files import canonical_json, sha256_bytes
from models.config import ModelConfig
from pipeline.config import Section
from pipeline.scaling.battery.tasks.by_name import TASKS
from pipeline.scaling.battery.tasks.task_rows import Task
from pipeline.scaling.ladder.arm_models import ARM_MODELS, DECODER_ONLY_ARMS, arm_model


class BatterySize(Section):
    """One size: the T5 from which all its arms are made."""

    model: dict[str, Any]
    """Keys of a training recipe's `model` section: the T5 from which the arms of this size are made."""


class BatteryTraining(Section):
    """How each run of the battery is trained and tested; the same for all runs."""

    steps: PositiveInt
    """Most steps of a run. A run that has solved its task stops earlier."""
    rows: PositiveInt
    """Rows of one step, at least. No row is used twice."""
    targets: PositiveInt
    """Targets of one step, at least: tasks with few targets a row have more rows."""
    most_rows: PositiveInt
    """Rows of one step, at most; it limits `targets`."""
    warmup_steps: PositiveInt
    """Steps in which the learning rate rises from 0."""
    decay: float = Field(default=0.2, gt=0, lt=1)
    """Share of the steps, at the end, in which the learning rate falls linearly to 0."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates of the two moments. There is no weight decay."""
    clip: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    validate_every: PositiveInt
    """Steps between two validations."""
    validation_rows: PositiveInt = 256
    """Held-out rows of each validation."""
    test_rows: PositiveInt = 1024
    """Further held-out rows on which a run is tested once, at its end."""
    solved: float = Field(default=0.999, gt=0, le=1)
    """Share of solved validation rows from which a run stops."""

    def rows_of(self, task: Task) -> int:
        """Rows of one step of a task."""
        return min(self.most_rows, max(self.rows, -(-self.targets // task.lengths.decoder)))


class BatteryRecipe(Section):
    """The recipe of the battery."""

    tasks: tuple[str, ...] = Field(min_length=1)
    """Tasks by name: recall, copy, reverse, sort, periodic_gap, nested_lists."""
    lengths: tuple[int, ...] = Field(min_length=1)
    """Encoder tokens of a row: multiples of 8, at least 16."""
    arms: tuple[str, ...] = Field(min_length=1)
    """Arms by name, as in a ladder's recipe, without decoder-only models."""
    sizes: dict[str, BatterySize] = Field(min_length=1)
    """The sizes by name."""
    seeds: PositiveInt = 3
    """Seeds of each combination. A seed decides the initial weights and the training rows, which all arms share."""
    training: BatteryTraining
    """How each run is trained and tested."""
    learning_rate: PositiveFloat
    """The largest learning rate of a run."""
    learning_rates: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Learning rates of arms that have one of their own, by name."""

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known("task", names, TASKS)

    @field_validator("arms")
    @classmethod
    def _known_arms(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known("arm", names, [arm for arm in ARM_MODELS if arm not in DECODER_ONLY_ARMS])

    @field_validator("lengths")
    @classmethod
    def _possible_lengths(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        wrong = [length for length in lengths if length < 16 or length % 8]
        if wrong:
            raise ValueError(f"{wrong[0]} is no length of the battery: give multiples of 8, at least 16")
        return lengths

    @field_validator("learning_rates")
    @classmethod
    def _rates_of_known_arms(cls, rates: dict[str, float]) -> dict[str, float]:
        _known("arm", tuple(rates), ARM_MODELS)
        return rates

    def runs(self) -> Iterator[BatteryRun]:
        """All runs in the order in which they are made: every length with the first seed, then the next seed."""
        for seed in range(self.seeds):
            for length in self.lengths:
                for size, config in self.sizes.items():
                    for task in self.tasks:
                        for arm in self.arms:
                            yield BatteryRun(
                                task=task,
                                arm=arm,
                                size=size,
                                length=length,
                                seed=seed,
                                learning_rate=self.learning_rates.get(arm, self.learning_rate),
                                section=config.model,
                                rows=self.training.rows_of(TASKS[task](length)),
                                training=self.training,
                            )


@dataclass(frozen=True, kw_only=True)
class BatteryRun:
    """One training of one arm on one task."""

    task: str
    arm: str
    size: str
    length: int
    seed: int
    learning_rate: float
    section: dict[str, Any]
    """The `model` section of the size's T5."""
    rows: int
    """Rows of one step."""
    training: BatteryTraining

    @property
    def name(self) -> str:
        return run_name(self.task, self.length, self.arm, self.size, self.seed)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the numbers of the run, as JSON gives it back."""
        own = {key: getattr(self, key) for key in ("task", "arm", "size", "length", "seed", "learning_rate", "rows")}
        values = {
            **self.training.model_dump(mode="json", exclude={"rows", "targets", "most_rows"}),
            **own,
            "model": self.section,
        }
        return dict(json.loads(json.dumps(values)))

    @property
    def settings_sha256(self) -> str:
        return sha256_bytes(canonical_json(self.settings))

    def make_task(self) -> Task:
        return TASKS[self.task](self.length)

    def model(self) -> ModelConfig:
        """Raises ValueError if the arm cannot be made at this size."""
        task = self.make_task()
        return arm_model(self.arm, self.section, task.vocab_size, task.lengths)


def run_name(task: str, length: int, arm: str, size: str, seed: int) -> str:
    return f"{task}-n{length}-{arm}-{size}-seed{seed}"


def _known(kind: str, names: tuple[str, ...], known: Any) -> tuple[str, ...]:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no {kind} of the battery: choose from {', '.join(known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{list(names)} names one {kind} twice: name each once")
    return names
