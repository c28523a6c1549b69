"""The configuration of a training run: the typed sections of a recipe, and every check that needs more than one of them.

`launch/` reads YAML and overrides into a `RunConfig`; everything else reads the resolved `config.json` of a run folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from data_prep.tokenization.tokenizer import TOKENIZER_FILE, load_tokenizer, num_ids
from models.config import ModelConfig, expand_size
from models.cost.flops import Lengths
from pipeline.objectives.catalogue import AnyObjective, ObjectiveField, check_form, named
from pipeline.objectives.masked_lm import MaskedLMConfig
from pipeline.objectives.prefix_lm import PrefixLMConfig


class Section(BaseModel):
    """A section of a recipe: an unknown key is an error, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BlendPart(Section):
    """One folder of a blend."""

    path: Path
    """Dataset folder made by `fnet-t5 prepare`, with the tokenizer of `data.path`."""
    weight: PositiveFloat
    """Share of samples, relative to the other parts'."""


class DataConfig(Section):
    """What a run trains on."""

    path: Path
    """Dataset folder made by `fnet-t5 prepare`: its tokenizer and validation split are used, and its training text unless
    `blend` is given."""
    blend: tuple[BlendPart, ...] = ()
    """Folders whose training text is mixed by weight; `path` is read only if it is in the list. Empty: the text of `path`
    alone."""
    objective: AnyObjective = PrefixLMConfig()
    """The training objective: its name, or a mapping of `name` and its settings."""
    encoder_length: PositiveInt = 512
    """Tokens that the encoder reads. It is constant in a run, because the Fourier basis depends on it."""
    decoder_length: PositiveInt = 128
    """Tokens that the decoder writes. Default: what the objective makes of encoder_length; 128 for prefix_lm."""
    layout: Literal["packed", "stream"] = "packed"
    """packed: rows as `fnet-t5 prepare` packed them; stream: the token stream cut at every row length, which needs no
    packing."""
    skip_ranges: tuple[tuple[int, int], ...] = ()
    """Ranges [first, end) of global samples that training skips, `end` not included."""
    validation_rows: PositiveInt = 512
    """Rows of the validation split that each validation reads, always the first ones."""
    validation_rows_per_source: int = Field(default=32, ge=0)
    """Further rows of each source that each validation reads if the split has several sources; 0: none."""
    prefetch_steps: int = Field(default=2, ge=0)
    """Steps whose batches are made ahead in the background; 0: each batch is made when it is needed."""
    loader_workers: PositiveInt = 1
    """Threads that make batches."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = {**values, "objective": named(values.get("objective", "prefix_lm"))}
        if values.get("decoder_length") is None:
            values.pop("decoder_length", None)
            length = values.get("encoder_length", 512)
            if isinstance(length, int) and length > 0:
                with suppress(ValidationError):  # reported where the field itself is read
                    objective = ObjectiveField.model_validate({"objective": values["objective"]}).objective
                    values["decoder_length"] = objective.default_decoder_length(length)
        return values

    @model_validator(mode="after")
    def _check_lengths(self) -> DataConfig:
        self.objective.row_length(self.encoder_length, self.decoder_length)
        return self

    @property
    def row_length(self) -> int:
        """Raw tokens of one row: the most that always fit."""
        return self.objective.row_length(self.encoder_length, self.decoder_length)

    @property
    def lengths(self) -> Lengths:
        """The shapes of a row that the model computes."""
        return self.objective.lengths(self.encoder_length, self.decoder_length)


class MeshConfig(Section):
    """How a model is divided. Data parallelism is the rest: processes / (tensor_parallel * pipeline_parallel)."""

    tensor_parallel: PositiveInt = 1
    """Ranks that share the matrices of each layer. It must divide model.num_heads, model.d_ff and the padded vocabulary."""
    pipeline_parallel: PositiveInt = 1
    """Pipeline stages, at most the number of layers."""
    stage_memory_gb: PositiveFloat | None = None
    """Largest memory of a pipeline stage in GB (1e9 bytes): weights, gradients, optimizer state and activations, as `fnet-t5
    plan` counts them. The partition is then the one with the fewest FLOPs in its busiest stage among those that fit. Default:
    no limit."""

    def data_parallel(self, num_processes: int) -> int:
        """Number of replicas. Raises ValueError if the processes do not divide into whole replicas of the model."""
        model_parallel = self.tensor_parallel * self.pipeline_parallel
        if num_processes % model_parallel:
            raise ValueError(
                f"{num_processes} processes cannot hold replicas of {model_parallel} (mesh.tensor_parallel "
                f"{self.tensor_parallel} x mesh.pipeline_parallel {self.pipeline_parallel}): start a multiple of that"
            )
        return num_processes // model_parallel


class TrainConfig(Section):
    """Length, batch sizes, checkpoints and checks of a run."""

    steps: int = Field(default=0, ge=0)
    """Optimizer steps of the whole run. Give `steps`, `tokens` or `epochs`; the config.json of a run has the steps that follow
    from the other two."""
    tokens: PositiveInt | None = None
    """Length of the run in tokens of the corpus, in place of steps: as many steps as read at least these on average."""
    epochs: PositiveFloat | None = None
    """Length of the run in passes over the training rows, in place of steps; with a blend, over as many rows as all its folders
    have together."""
    global_batch_size: PositiveInt = 128
    """Rows of one optimizer step, over all replicas."""
    micro_batch_size: PositiveInt = 8
    """Rows that one replica computes at a time."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Number format of weights and activations: bf16 or fp32. Logits, softmax, norms, FFT and reductions are always fp32."""
    seed: int = 0
    """Seed of the initial weights, the order of the data, the objective's random choices and dropout."""
    checkpoint_every: PositiveInt = 1000
    """Steps between two checkpoints."""
    checkpoint_steps: tuple[PositiveInt, ...] = ()
    """Further steps to save after. These checkpoints are never removed: other runs may branch off them."""
    validate_every: PositiveInt = 500
    """Steps between two validations."""
    input_use_rows: int = Field(default=64, ge=0)
    """First rows of the validation split on which each validation of an encoder-decoder also measures whether the order of the
    encoder's input is used: `text_loss` and `shuffled_text_loss` in metrics.jsonl. Two more forward passes a row; 0: off."""
    log_every: PositiveInt = 10
    """Steps between two rows of metrics.jsonl."""
    samples: int = Field(default=0, ge=0)
    """Texts that the model writes at every validation, into RUN/samples; 0: none. Together they cost sample_tokens forward
    passes."""
    sample_tokens: PositiveInt = 32
    """Length of each of these texts in tokens."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """ZeRO stage of DeepSpeed. 1 shares the optimizer state among replicas. One process in fp32 has none to share and runs
    without ZeRO."""
    initial_weights: Path | None = None
    """Folder with the initial weights: one made by `fnet-t5 import`, or a checkpoint of a run. Default: random weights from
    `seed`."""
    initial_moments: bool = False
    """Also take the moments of the optimizer and the number of their updates from `initial_weights`, which is then a checkpoint
    of a run. The data, the steps, the schedule and the seed begin anew."""
    recompute: bool = False
    """Keep only the state between layers and compute the rest again in the backward pass: a third more compute, less memory."""
    checkpoint_minutes: PositiveFloat | None = None
    """Also save when this many minutes have passed since the last checkpoint. Default: off."""
    keep_last: PositiveInt | None = None
    """Number of newest checkpoints to keep; older ones are removed. Default: all are kept."""
    keep_every: PositiveInt | None = None
    """Checkpoints at multiples of this step are never removed. Default: none is protected."""
    spike_sigma: float = Field(default=6.0, ge=0)
    """Skip a step whose loss or gradient norm exceeds the mean of the last steps by this many standard deviations; 0: never
    skip."""
    spike_window: int = Field(default=128, ge=4)
    """Steps that this mean and standard deviation are taken over."""
    max_skips: PositiveInt = 20
    """Consecutive skipped steps after which the run fails; steps in skip_steps do not count."""
    skip_steps: tuple[PositiveInt, ...] = ()
    """Steps to go through without an update: data that was found to be harmful."""
    consistency_check_every: PositiveInt = 100
    """Steps between two checks that copies of weights and the order of the data are equal across ranks.

    Its old name `agreement_every` is still read.
    """
    hang_minutes: PositiveFloat = 20.0
    """Minutes without progress of any rank after which all print their stacks and end the run."""
    stop_minutes: PositiveFloat | None = None
    """Minutes without progress after which `fnet-t5 train` kills local ranks that were asked to stop. A save that reports
    progress has no limit. Default: hang_minutes."""

    @property
    def length_key(self) -> str:
        """The key that gives the length of the run: steps, tokens or epochs."""
        return "steps" if self.tokens is None and self.epochs is None else "epochs" if self.tokens is None else "tokens"

    @property
    def length(self) -> str:
        """The length of the run as it was given, for messages."""
        key = self.length_key
        return f"train.{key} {getattr(self, key)}" + (
            f" ({self.steps} step{'s' * (self.steps != 1)})" if key != "steps" else ""
        )

    @property
    def stop_grace(self) -> float:
        """stop_minutes, or its default."""
        return self.hang_minutes if self.stop_minutes is None else self.stop_minutes

    @model_validator(mode="before")
    @classmethod
    def _read_old_key(cls, values: Any) -> Any:
        """`agreement_every` in recipes and run folders of earlier versions is now consistency_check_every."""
        if not isinstance(values, dict) or "agreement_every" not in values:
            return values
        if "consistency_check_every" in values:
            raise ValueError("train.agreement_every is the old name of train.consistency_check_every: give only the new one")
        return {("consistency_check_every" if key == "agreement_every" else key): value for key, value in values.items()}

    @model_validator(mode="before")
    @classmethod
    def _refuse_fp16(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("precision") == "fp16":
            raise ValueError(
                "precision fp16 is refused: every fp16 pretraining run of T5 that we know of diverged; use bf16 or fp32"
            )
        return values

    @model_validator(mode="after")
    def _check_moments(self) -> TrainConfig:
        if self.initial_moments and self.initial_weights is None:
            raise ValueError(
                "train.initial_moments true takes the moments from a checkpoint: give it as train.initial_weights, or leave "
                "train.initial_moments out"
            )
        return self

    @model_validator(mode="after")
    def _check_length(self) -> TrainConfig:
        if self.tokens is not None and self.epochs is not None:
            raise ValueError(
                f"train.tokens {self.tokens} and train.epochs {self.epochs} both give the length of the run: keep one of them"
            )
        if not (self.steps or self.tokens or self.epochs):
            raise ValueError("the run has no length: give train.steps, train.tokens or train.epochs")
        return self

    def accumulation_steps(self, data_parallel: int) -> int:
        """Micro-batches of one replica in one step. Raises ValueError if the batch does not divide."""
        rows = self.micro_batch_size * data_parallel
        if self.global_batch_size % rows:
            raise ValueError(
                f"train.global_batch_size {self.global_batch_size} is not a multiple of train.micro_batch_size "
                f"{self.micro_batch_size} x {data_parallel} data-parallel replicas: change one of them"
            )
        return self.global_batch_size // rows


class OptimizerConfig(Section):
    """Optimizer and learning-rate schedule."""

    name: Literal["adamw", "adamw_rms"] = "adamw"
    """adamw; adamw_rms also scales each tensor's update by its root mean square, for learning rates near 0.02 (nanoT5) instead
    of 0.001."""
    learning_rate: PositiveFloat = 1e-3
    """Largest learning rate, reached after the warm-up."""
    schedule: Literal["cosine", "linear", "inverse_sqrt", "wsd", "constant"] = "cosine"
    """How the learning rate falls after the warm-up: cosine, linear, inverse_sqrt (T5's), wsd (constant, then a decay),
    constant."""
    warmup_steps: int = Field(default=1000, ge=0)
    """Steps in which the learning rate rises linearly from 0."""
    decay_steps: PositiveInt | None = None
    """Step at which the schedule ends. Default: train.steps. Give it if the run will be made longer later, so that its learning
    rates stay the same."""
    decay_begin: PositiveInt | None = None
    """The last step at learning_rate, for wsd only. Default: four fifths of the way to the end."""
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end of cosine, linear and wsd, as a share of learning_rate."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay. It applies to matrices only: not to norms, embeddings or bias tables."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    eps: PositiveFloat = 1e-8
    """AdamW's term in the denominator against division by 0."""
    clip: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; larger gradients are scaled down to it. 0: no clipping."""

    @model_validator(mode="after")
    def _check_schedule(self) -> OptimizerConfig:
        if self.schedule == "inverse_sqrt" and self.warmup_steps == 0:
            raise ValueError("optimizer.schedule inverse_sqrt falls from the end of the warm-up: give optimizer.warmup_steps")
        if self.decay_begin is not None and self.schedule != "wsd":
            raise ValueError(f"optimizer.decay_begin {self.decay_begin} is read by schedule wsd alone, not by {self.schedule}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas {list(self.betas)}: each must be at least 0 and less than 1")
        return self


class TrackingConfig(Section):
    """What is logged to MLflow."""

    experiment: str = "fnet-t5"
    """Name of the MLflow experiment. The server is MLFLOW_TRACKING_URI, by default sqlite:///mlflow.db."""
    parent_run: str | None = None
    """Id of the MLflow run under which this run is shown, as in a sweep. Default: none."""
    enabled: bool = True
    """Whether the run is logged to MLflow. metrics.jsonl is always written."""


class RunConfig(Section):
    """A training recipe."""

    model: ModelConfig
    """Dimensions and choices of the model."""
    data: DataConfig
    """Text, objective and row lengths."""
    mesh: MeshConfig = MeshConfig()
    """How the model is divided among processes."""
    train: TrainConfig
    """Steps, batch sizes, checkpoints and checks."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer and learning rate."""
    tracking: TrackingConfig = TrackingConfig()
    """MLflow."""

    @model_validator(mode="before")
    @classmethod
    def _expand_size(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("model"), dict):
            return {**values, "model": expand_size(values["model"])}
        return values

    @model_validator(mode="after")
    def _check_objective(self) -> RunConfig:
        check_form(self.data.objective, self.model.architecture)
        if isinstance(self.data.objective, MaskedLMConfig):
            trained = {"mlm", "order"} if self.data.objective.sentence_order else {"mlm"}
            if set(self.model.heads) != trained:
                raise ValueError(
                    f"model.heads {list(self.model.heads)} are not those that masked_lm trains: give {sorted(trained)}, or "
                    "change data.objective.sentence_order"
                )
        return self

    @model_validator(mode="after")
    def _check_model(self) -> RunConfig:
        model, data = self.model, self.data
        if model.fourier_backend == "auto":
            raise ValueError(
                "model.fourier_backend auto is measured by each process, and ranks that choose differently would round "
                "differently: name fft, folded or matmul (`python benchmarks/mixing_backends.py` shows which is fastest here)"
            )
        needs_length = model.mixing in ("linear", "random", "causal_fourier") or "learned" in (
            model.encoder_block_config.position,
            model.decoder_block_config.position,
        )
        longest = max(data.encoder_length, data.decoder_length)
        if model.is_decoder_only:
            longest = data.encoder_length + data.decoder_length
        if model.is_encoder_only:
            longest = data.encoder_length
        if (needs_length or model.decoder_mixing == "causal_fourier") and model.max_length < longest:
            raise ValueError(
                f"model.max_length {model.max_length} is less than the {longest} tokens that one stack reads of "
                f"data.encoder_length {data.encoder_length} and data.decoder_length {data.decoder_length}: raise it"
            )
        if model.encoder_block_config.adds_positions and model.max_length < data.encoder_length:
            raise ValueError(
                f"model.max_length {model.max_length} is less than data.encoder_length {data.encoder_length}, and "
                f"model.encoder_positions {model.encoder_positions} has a vector for each of max_length positions: raise "
                "model.max_length"
            )
        return self

    @model_validator(mode="after")
    def _check_mesh(self) -> RunConfig:
        model, tp, pp = self.model, self.mesh.tensor_parallel, self.mesh.pipeline_parallel
        for name in ("num_heads", "d_ff", "encoder_d_ff"):
            if getattr(model, name) % tp:
                raise ValueError(f"mesh.tensor_parallel {tp} does not divide model.{name} {getattr(model, name)}")
        if model.padded_vocab_size % tp:
            raise ValueError(f"mesh.tensor_parallel {tp} does not divide the padded vocabulary {model.padded_vocab_size}")
        num_layers = model.num_encoder_layers + model.num_decoder_layers
        if pp > num_layers:
            raise ValueError(f"mesh.pipeline_parallel {pp} exceeds the model's {num_layers} layers")
        return self

    def zero_stage(self, data_parallel: int) -> int:
        """The ZeRO stage that is used. One process in fp32 has nothing to partition: ZeRO-1 would only copy its tensors."""
        is_alone = self.mesh.tensor_parallel * self.mesh.pipeline_parallel * data_parallel == 1
        if is_alone and self.train.precision == "fp32" and self.train.zero_stage == 1:
            return 0
        return self.train.zero_stage

    def resolved(self) -> RunConfig:
        """The same run with the data's absolute paths, and model.vocab_size taken from the data's tokenizer.

        Raises ValueError if the recipe gives a smaller vocabulary than the tokenizer has.
        """
        num_tokens = num_ids(load_tokenizer(self.data.path / TOKENIZER_FILE))
        if self.model.vocab_size and self.model.vocab_size < num_tokens:
            raise ValueError(
                f"model.vocab_size {self.model.vocab_size} is smaller than the {num_tokens} ids of "
                f"{self.data.path / TOKENIZER_FILE}: leave it out, or set it to 0"
            )
        vocab_size = self.model.vocab_size or num_tokens
        blend = tuple(part.model_copy(update={"path": part.path.resolve()}) for part in self.data.blend)
        data = self.data.model_copy(update={"path": self.data.path.resolve(), "blend": blend})
        given = self.train.initial_weights
        train = self.train.model_copy(update={"initial_weights": given and given.resolve()})
        return self.model_copy(update={"model": replace(self.model, vocab_size=vocab_size), "data": data, "train": train})

    @classmethod
    def load(cls, run: Path) -> RunConfig:
        """The resolved configuration of a run folder. Raises ValueError if it is missing or invalid."""
        path = run / "config.json"
        if not path.is_file():
            raise ValueError(f"{run} is no run folder: it holds no config.json. Give the --output of a `fnet-t5 train`")
        config = cls.model_validate_json(path.read_bytes())
        if not config.train.steps:
            raise ValueError(f"{path} has no train.steps: start the run by `fnet-t5 train`, which computes them from its data")
        return config


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    result: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, Mapping):
            result.update(flatten(value, f"{prefix}{name}."))
        else:
            result[prefix + name] = value
    return result
