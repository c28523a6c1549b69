"""The recipe of a ladder, `configs/scaling/*.yaml`: read and validated before anything is planned."""

from __future__ import annotations

from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from models.cost.flops import Lengths
from pipeline.config import DataConfig, MeshConfig, Section, TrackingConfig
from pipeline.objectives.catalogue import AnyObjective, ObjectiveField
from pipeline.planner.hardware import GPUS
from pipeline.scaling.ladder.arm_models import ARM_MODELS

FEWEST_SWEPT = 3
"""Sizes at which learning rates are swept, at least, where there are as many: two leave no residual of the power law."""


class SizeConfig(Section):
    """One size of the ladder: the T5 from which all its arms are made."""

    model: dict[str, Any]
    """Keys of a training recipe's `model` section: the T5 from which the arms of this size are made."""
    mesh: MeshConfig = MeshConfig()
    """How a model of this size is divided among processes."""
    num_processes: PositiveInt = 1
    """Processes that train one run of this size."""
    micro_batch_size: PositiveInt = 8
    """Rows that one replica computes at a time."""


class ArmConfig(Section):
    """One arm of the comparison."""

    sizes: tuple[str, ...] = ()
    """Sizes at which this arm is trained, at least four for its best size at a budget. Default: all."""


class SeedsConfig(Section):
    """One size at which arms are trained with several seeds, to measure the noise."""

    size: str
    """The size at which arms are trained with several seeds."""
    count: int = Field(default=3, ge=2)
    """Number of seeds, at least 2."""
    arms: tuple[str, ...] = ()
    """Arms that are trained with several seeds. Default: all arms of this size."""
    budgets: PositiveInt = 1
    """Number of budgets with several seeds, from the smallest on."""


class SweepConfig(Section):
    """Learning-rate sweeps of every arm. Its runs take the power law through the optima, by least squares."""

    values: tuple[PositiveFloat, ...] = Field(min_length=3)
    """Learning rates to try, at least 3."""
    sizes: tuple[str, ...] = Field(min_length=1)
    """The sizes at which arms are swept: at least 3, or all of a ladder with fewer. An arm that is trained at one or two sizes
    is swept at these instead."""
    budget: PositiveFloat
    """Training FLOPs of each try: enough for 1,000 steps."""
    factor: float = Field(default=2.0, gt=1)
    """Ratio of the next value to the first or last one, if the best value is at that edge."""
    most: PositiveInt = 7
    """Most tries of one arm at one size. If the best value is still at an edge then, the search fails."""
    check_size: str = ""
    """Size at which an arm also tries twice and half the rate of its power law, at the largest budget. Default: the middle one
    of `sizes`, or the middle one of the arm's sizes if it is not trained there."""
    check_arms: tuple[str, ...] | None = None
    """Arms whose rates are checked so; []: none. Default: all."""


class BatchConfig(Section):
    """Tokens of a step: `tokens` x (parameters / `at_parameters`)^`exponent`, in whole micro-batches (OLMo-core's ladder)."""

    tokens: PositiveInt
    """Raw tokens of one step for a T5 with `at_parameters` parameters."""
    at_parameters: PositiveFloat = 108e6
    """Number of parameters for which `tokens` holds."""
    exponent: float = Field(default=2 / 3, ge=0)
    """Exponent of the power law by which the batch grows with the parameters; 0: constant."""


class ScheduleConfig(Section):
    """Warm-up, plateau, decay (wsd). All budgets share one plateau; each is a branch with a decay of its own."""

    warmup_steps: PositiveInt = 200
    """Steps of the warm-up, of sweeps too. At least 200, unless `allow_short` is true."""
    warmup: float | None = Field(default=None, gt=0, lt=1)
    """Length of the warm-up as a share of the smallest budget's steps, in the place of `warmup_steps`: the rule of earlier
    versions. Short runs then have short warm-ups, which cost some arms more than others."""
    decay: float = Field(default=0.2, gt=0, lt=1)
    """Length of the decay as a share of each budget's steps."""
    allow_short: bool = False
    """Allow runs too short to compare arms: under 1,000 steps, 3 tokens a parameter, or 200 steps of warm-up. Reports name
    them."""

    @model_validator(mode="before")
    @classmethod
    def _one_warmup(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("warmup") is not None and "warmup_steps" in values:
            default = cls.model_fields["warmup_steps"].default
            if values["warmup_steps"] != default:  # the file of a plan holds every key
                raise ValueError("schedule.warmup_steps and schedule.warmup are both given: leave warmup out")
        return values


class SuffixBPBConfig(Section):
    """Evaluation of suffix bits per byte on held-out text, the measure that all arms share."""

    rows_per_source: PositiveInt = 256
    """Rows of each source of the validation split that are scored."""


class AssumedConfig(Section):
    """Assumed loss surface and noise, from a pilot or a paper, to compute the power of the design before any run."""

    A: PositiveFloat
    """A of the assumed loss E + A / N^alpha + B / D^beta."""
    B: PositiveFloat
    """B of the assumed loss."""
    E: PositiveFloat
    """E of the assumed loss: what remains with endless size and data."""
    alpha: PositiveFloat
    """Exponent of the parameters N in the assumed loss."""
    beta: PositiveFloat
    """Exponent of the raw tokens D in the assumed loss."""
    deviation: PositiveFloat
    """Standard deviation of log loss between seeds."""
    source: str
    """Where these numbers come from, in words. The report quotes it."""


class DeviceConfig(Section):
    """The devices that hours are estimated for."""

    gpu: str | None = None
    """GPU whose peak the hours are estimated from, with `mfu`: a100, a100-40g, h100 or h200. Give it or `flops_per_second`."""
    mfu: float = Field(default=0.3, gt=0, le=1)
    """Assumed share of the GPU's dense bf16 peak."""
    flops_per_second: PositiveFloat | None = None
    """FLOPs per second of one process without a GPU, measured on a similar machine."""
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
    """The recipe of a ladder."""

    name: str
    """Name of the ladder, in its report and in MLflow."""
    data: DataConfig
    """A training recipe's `data` section; its `objective` is set by `objectives`."""
    vocab_size: int = Field(default=0, ge=0)
    """Number of token ids; 0: those of data.path's tokenizer. Give it to plan before the data is prepared."""
    train_tokens: PositiveFloat | None = None
    """Tokens of the training text, to plan before the data is prepared. Default: those of data.path."""
    objectives: tuple[AnyObjective, ...] = Field(min_length=1)
    """Objectives, each with a ladder of its own; the first is the main one. Decoder-only arms take causal_lm in the place of
    prefix_lm."""
    sizes: dict[str, SizeConfig]
    """The sizes by name, each given by its T5."""
    arms: dict[str, ArmConfig]
    """The arms by name: t5, fnet_t5, fnet_t5_equal_parameters, fnet_t5_equal_flops, fnet_t5_top2, ff_only, gpt2,
    prefix_decoder, causal, fnet_t5_positions, fnet_t5_top2_positions, fnet_t5_top2_learned_only, ff_only_positions,
    t5_positions, t5_learned_only, t5_no_positions, t5_deep_encoder, fnet_t5_deep_encoder or fnet_t5_deep_encoder_positions."""
    baseline: str = "t5"
    """The arm that the others are compared with."""
    budgets: tuple[PositiveFloat, ...] = Field(min_length=1)
    """Training FLOPs of one run, in ascending order."""
    learning_rate: SweepConfig | None = None
    """The learning-rate sweeps. Give them or `fixed_learning_rate`."""
    equivalence_margin: PositiveFloat | None = None
    """Relative difference of the loss up to which two arms count as equivalent: 0.005 for half a percent. Reports test it by
    two one-sided tests. Default: equivalence is not tested."""
    fixed_learning_rate: PositiveFloat | None = None
    """One learning rate for all runs, in place of sweeps: for a first look, not for a comparison of arms."""
    seeds: SeedsConfig | None = None
    """Where arms are trained with several seeds, to measure the noise. Default: nowhere."""
    batch: BatchConfig
    """How many tokens a step has, by size."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Warm-up and decay of every run."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Keys of a training recipe's `train` section, for all runs."""
    optimizer: dict[str, Any] = Field(default_factory=dict)
    """Keys of a training recipe's `optimizer` section, for all runs."""
    suffix_bpb: SuffixBPBConfig = SuffixBPBConfig()
    """How suffix bits per byte are evaluated."""
    tracking: TrackingConfig = TrackingConfig()
    """MLflow."""
    hypotheses: tuple[str, ...] = ()
    """What the ladder is to test, in words. The plan and the report hold it."""
    assumed: AssumedConfig | None = None
    """Assumed loss surface and noise, from which the power of the design is computed before any run. Default: not computed."""
    device: DeviceConfig
    """What hours are estimated from."""

    @model_validator(mode="before")
    @classmethod
    def _earlier_key(cls, values: Any) -> Any:
        """Read `yardstick`, the earlier name of `suffix_bpb`, from old recipes and ladder files."""
        if not isinstance(values, dict) or "yardstick" not in values:
            return values
        if "suffix_bpb" in values:
            raise ValueError("yardstick is the earlier name of suffix_bpb, and both are given: leave yardstick out")
        return {("suffix_bpb" if key == "yardstick" else key): value for key, value in values.items()}

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `fixed_learning_rate` where it is not given: plans made before the key existed keep their hash."""
        values: dict[str, Any] = dump(self)
        return {key: value for key, value in values.items() if key != "fixed_learning_rate" or value is not None}

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
            **({"learning_rate.sizes": self.learning_rate.sizes} if self.learning_rate else {}),
            **({"learning_rate.check_size": _given(self.learning_rate.check_size)} if self.learning_rate else {}),
            **{f"arms.{name}.sizes": arm.sizes for name, arm in self.arms.items()},
            **({"seeds.size": (seeds.size,)} if seeds else {}),
        }
        for key, named in places.items():
            for size in named:
                if size not in self.sizes:
                    raise ValueError(f"{key} names {size!r}, which is none of the sizes: {', '.join(self.sizes)}")
        checked = (self.learning_rate.check_arms if self.learning_rate else None) or ()
        for key, arms in (("seeds.arms", seeds.arms if seeds else ()), ("learning_rate.check_arms", checked)):
            if not set(arms) <= set(self.arms):
                raise ValueError(f"{key} {list(arms)} are not all among the arms: {', '.join(self.arms)}")
        if list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError(f"budgets {list(self.budgets)} are not in ascending order: sort them")
        lengths = [f"train.{key}" for key in ("steps", "tokens", "epochs") if key in self.train]
        if lengths:
            raise ValueError(f"{' and '.join(lengths)}: the length of a run of a ladder follows from budgets; leave it out")
        if (self.learning_rate is None) == (self.fixed_learning_rate is None):
            raise ValueError("give learning_rate, the sweeps of every arm, or fixed_learning_rate")
        if self.learning_rate and len(set(self.learning_rate.sizes)) < len(self.learning_rate.sizes):
            raise ValueError("learning_rate.sizes has one size twice: the rates of the others need different sizes")
        return self

    def sizes_of(self, arm: str) -> tuple[str, ...]:
        return self.arms[arm].sizes or tuple(self.sizes)

    def swept_sizes(self, arm: str) -> tuple[str, ...]:
        """Where an arm's learning rate is swept: at one or two sizes of its own, else at `learning_rate.sizes`."""
        if self.learning_rate is None:
            return ()
        own = self.sizes_of(arm)
        return own if len(own) < FEWEST_SWEPT else self.learning_rate.sizes

    def checked_size(self, arm: str) -> str | None:
        """Where the rate of an arm's power law is checked at the largest budget; None if it is not."""
        search = self.learning_rate
        if search is None or (search.check_arms is not None and arm not in search.check_arms):
            return None
        own = self.sizes_of(arm)
        wanted = search.check_size or search.sizes[len(search.sizes) // 2]
        return wanted if wanted in own else own[len(own) // 2]

    def lengths(self, objective: AnyObjective) -> Lengths:
        return objective.lengths(self.data.encoder_length, self.data.decoder_length)


def _given(name: str) -> tuple[str, ...]:
    return (name,) if name else ()
