"""What a ladder is made from: `configs/scaling/*.yaml`, read and checked before anything is planned."""

from __future__ import annotations

from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from models.cost.flops import Lengths
from pipeline.config import DataConfig, MeshConfig, Section, TrackingConfig
from pipeline.objectives.catalogue import AnyObjective, ObjectiveField
from pipeline.planner.hardware import GPUS
from pipeline.scaling.ladder.arm_models import ARM_MODELS


class SizeConfig(Section):
    """One rung: the T5 that all arms of this size are made from."""

    model: dict[str, Any]
    """Keys of a recipe's `model` section, of the t5 arm."""
    mesh: MeshConfig = MeshConfig()
    num_processes: PositiveInt = 1
    micro_batch_size: PositiveInt = 8


class ArmConfig(Section):
    sizes: tuple[str, ...] = ()
    """Where this arm is trained. Default: at every size."""


class SeedsConfig(Section):
    """One place of the ladder where arms are trained several times, so that the noise is known."""

    size: str
    count: int = Field(default=3, ge=2)
    arms: tuple[str, ...] = ()
    """Default: all that are trained at this size."""
    budgets: PositiveInt = 1
    """How many of the budgets, from the smallest on."""


class SweepConfig(Section):
    """Learning rates, tried for every arm at two sizes; the others lie on the power law through the two optima."""

    values: tuple[PositiveFloat, ...] = Field(min_length=3)
    sizes: tuple[str, ...] = Field(min_length=2, max_length=2)
    budget: PositiveFloat
    """Training FLOPs of each try."""
    factor: float = Field(default=2.0, gt=1)
    """The next value where the best is the first or last one."""
    most: PositiveInt = 7
    """Tries of one arm at one size after which an optimum that still lies at the edge ends the search as failed."""


class BatchConfig(Section):
    """Tokens of a step: `tokens` x (parameters / `at_parameters`)^`exponent`, in whole micro-batches (OLMo-core's ladder)."""

    tokens: PositiveInt
    at_parameters: PositiveFloat = 108e6
    exponent: float = Field(default=2 / 3, ge=0)


class ScheduleConfig(Section):
    """Warm-up, plateau, decay (wsd): one plateau serves all budgets, each of which is a branch with a decay of its own."""

    warmup: float = Field(default=0.1, gt=0, lt=1)
    """Share of the smallest budget's steps."""
    decay: float = Field(default=0.2, gt=0, lt=1)
    """Share of each budget's steps."""


class SuffixBPBConfig(Section):
    """Evaluation of suffix bits per byte on held-out text, the measure that all arms share."""

    rows_per_source: PositiveInt = 256
    """Rows of each source of the validation split that are scored."""


class AssumedConfig(Section):
    """What the power of the design is computed from before any run: a loss surface and a noise, from a pilot or a paper."""

    A: PositiveFloat
    B: PositiveFloat
    E: PositiveFloat
    alpha: PositiveFloat
    beta: PositiveFloat
    deviation: PositiveFloat
    """Standard deviation of log loss between seeds."""
    source: str


class DeviceConfig(Section):
    """What costs are estimated with."""

    gpu: str | None = None
    """A name of pipeline/planner/hardware.py: hours then follow from `mfu`."""
    mfu: float = Field(default=0.3, gt=0, le=1)
    flops_per_second: PositiveFloat | None = None
    """Of one process, where there is no GPU: measured on a machine like the one at hand."""
    count: PositiveInt = 1
    """Devices that work at the same time."""

    @model_validator(mode="after")
    def _one_of_two(self) -> DeviceConfig:
        if (self.gpu is None) == (self.flops_per_second is None):
            raise ValueError("give device.gpu (with device.mfu), or device.flops_per_second")
        if self.gpu is not None and self.gpu not in GPUS:
            raise ValueError(f"device.gpu {self.gpu!r} is unknown: choose one of {', '.join(GPUS)}")
        return self

    @property
    def speed(self) -> float:
        """FLOPs per second of one device."""
        if self.flops_per_second is not None:
            return self.flops_per_second
        assert self.gpu is not None
        return GPUS[self.gpu].peak_flops * self.mfu


class LadderRecipe(Section):
    name: str
    data: DataConfig
    """`objective` is set by `objectives`."""
    vocab_size: int = Field(default=0, ge=0)
    """0: the tokenizer's of data.path. Give it to plan before the data is prepared."""
    train_tokens: PositiveFloat | None = None
    """Tokens of the training text, to plan before it is prepared. Default: the manifest's."""
    objectives: tuple[AnyObjective, ...] = Field(min_length=1)
    """One ladder each. The first is the headline; arms of one stack take causal_lm in the place of prefix_lm."""
    sizes: dict[str, SizeConfig]
    arms: dict[str, ArmConfig]
    baseline: str = "t5"
    budgets: tuple[PositiveFloat, ...] = Field(min_length=1)
    """Training FLOPs of one run, ascending."""
    learning_rate: SweepConfig
    seeds: SeedsConfig | None = None
    batch: BatchConfig
    schedule: ScheduleConfig = ScheduleConfig()
    train: dict[str, Any] = Field(default_factory=dict)
    """Keys of a recipe's `train` section that all runs share."""
    optimizer: dict[str, Any] = Field(default_factory=dict)
    suffix_bpb: SuffixBPBConfig = SuffixBPBConfig()
    """How suffix bits per byte are evaluated."""
    tracking: TrackingConfig = TrackingConfig()
    hypotheses: tuple[str, ...] = ()
    assumed: AssumedConfig | None = None
    device: DeviceConfig

    @model_validator(mode="before")
    @classmethod
    def _earlier_key(cls, values: Any) -> Any:
        """Read `yardstick`, the earlier name of `suffix_bpb`, from old recipes and ladder files."""
        if not isinstance(values, dict) or "yardstick" not in values:
            return values
        if "suffix_bpb" in values:
            raise ValueError("yardstick is the earlier name of suffix_bpb, and both are given: leave yardstick out")
        return {("suffix_bpb" if key == "yardstick" else key): value for key, value in values.items()}

    @model_validator(mode="before")
    @classmethod
    def _short_objectives(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("objectives"), (list, tuple)):
            return values
        read = [ObjectiveField.model_validate({"objective": value}).objective for value in values["objectives"]]
        return {**values, "objectives": tuple(read)}

    @model_validator(mode="after")
    def _check_names(self) -> LadderRecipe:
        unknown = sorted(set(self.arms) - set(ARM_MODELS))
        if unknown:
            raise ValueError(f"arms {unknown} are unknown: choose from {', '.join(ARM_MODELS)}")
        if self.baseline not in self.arms:
            raise ValueError(f"baseline {self.baseline!r} is none of the arms: {', '.join(self.arms)}")
        seeds = self.seeds
        places = {
            "learning_rate.sizes": self.learning_rate.sizes,
            **{f"arms.{name}.sizes": arm.sizes for name, arm in self.arms.items()},
            **({"seeds.size": (seeds.size,)} if seeds else {}),
        }
        for key, named in places.items():
            for size in named:
                if size not in self.sizes:
                    raise ValueError(f"{key} names {size!r}, which is none of the sizes: {', '.join(self.sizes)}")
        if seeds and not set(seeds.arms) <= set(self.arms):
            raise ValueError(f"seeds.arms {list(seeds.arms)} are not all among the arms: {', '.join(self.arms)}")
        if list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError(f"budgets {list(self.budgets)} do not ascend: sort them")
        if len(set(self.learning_rate.sizes)) < 2:
            raise ValueError("learning_rate.sizes names one size twice: the rates of the others need two")
        return self

    def sizes_of(self, arm: str) -> tuple[str, ...]:
        return self.arms[arm].sizes or tuple(self.sizes)

    def lengths(self, objective: AnyObjective) -> Lengths:
        return objective.lengths(self.data.encoder_length, self.data.decoder_length)
