"""Shared by the parity tests and their workers: plans with their tolerances, the config of a plan, and its batches.

Batches are random integers from a fixed generator: the same on every mesh and for any number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from models.config import expand_size
from pipeline.config import RunConfig
from pipeline.data.batches import DataShard, PipelineBatch, as_tensors
from pipeline.objectives.catalogue import build_objective
from pipeline.objectives.interface import AnyBatch, Objective
from pipeline.objectives.prefix_lm import PrefixLM
from pipeline.objectives.vocabulary import Vocabulary

STEPS, VOCABULARY, GLOBAL_BATCH, MICRO_BATCH = 10, 250, 8, 2
LENGTHS = (16, 8)
VOCABULARY_OF_TESTS = Vocabulary(
    start=0,
    end=1,
    sentinels=tuple(range(200, 220)),
    named={"[CLS]": 220, "[SEP]": 221, "[MASK]": 222, "[NLU]": 223, "[NLG]": 224, "[S2S]": 225},
    ordinary=np.arange(2, 200),
    ends_sentence=np.zeros(VOCABULARY, dtype=bool),
    ends_line=np.zeros(VOCABULARY, dtype=bool),
)


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Largest relative differences that count as equal. Parameters are compared in the 2-norm."""

    losses: float
    norms: float
    validation: float
    parameters: float


FP32 = Tolerance(losses=1e-4, norms=1e-4, validation=1e-4, parameters=1e-4)
# bf16 rounds partial sums differently on every mesh; a wrongly read weight changes losses by far more
BF16 = Tolerance(losses=1e-2, norms=0.1, validation=1e-2, parameters=0.1)
# The pooler's bias starts at 0, and its gradients from the segment order of eight rows nearly cancel: 0.006 was seen.
ORDER = Tolerance(losses=1e-4, norms=1e-4, validation=1e-4, parameters=2e-2)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained and on which mesh. The other processes are data parallel. The sections are sections of a recipe."""

    tensor: int = 1
    pipeline: int = 1
    model: dict[str, Any] = field(default_factory=dict)
    objective: str = "prefix_lm"
    lengths: tuple[int, int] = LENGTHS
    micro_batch: int = MICRO_BATCH
    precision: str = "fp32"
    recompute: bool = False
    zero_stage: int = 1
    optimizer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plan(Training):
    """One run of the parity tests. `reference` names the run that it must equal within `tolerance`, if any. `bug` names the bug
    that `parity_worker.plant` plants."""

    name: str
    data: int
    tolerance: Tolerance = FP32
    reference: str | None = None
    bug: str | None = None

    @property
    def num_processes(self) -> int:
        return self.tensor * self.pipeline * self.data


def run_config(training: Training) -> RunConfig:
    """The resolved config of a training of ten steps."""
    return RunConfig.model_validate(
        {
            "model": expand_size({"size": "nano", "vocab_size": VOCABULARY, **training.model}),
            "data": {
                "path": "unused",
                "encoder_length": training.lengths[0],
                "decoder_length": training.lengths[1],
                "objective": training.objective,
            },
            "mesh": {"tensor_parallel": training.tensor, "pipeline_parallel": training.pipeline},
            "train": {
                "steps": STEPS,
                "global_batch_size": GLOBAL_BATCH,
                "micro_batch_size": training.micro_batch,
                "precision": training.precision,
                "seed": 3,
                "recompute": training.recompute,
                "zero_stage": training.zero_stage,
            },
            # no warm-up, a rate that changes the loss, and a clip norm that always clips
            "optimizer": {
                "learning_rate": 0.004,
                "schedule": "constant",
                "warmup_steps": 0,
                "clip": 0.5,
                **training.optimizer,
            },
        }
    )


def objective_of(training: Training) -> Objective:
    """The objective of a training, in the layout of its architecture."""
    config = run_config(training)
    return build_objective(
        config.data.objective,
        architecture=config.model.architecture,
        encoder_length=config.data.encoder_length,
        decoder_length=config.data.decoder_length,
        vocabulary=VOCABULARY_OF_TESTS,
        seed="parity",
    )


PREFIX_LM = PrefixLM(encoder_length=LENGTHS[0], decoder_length=LENGTHS[1], start_id=0)


def global_batch(step: int, objective: Objective = PREFIX_LM) -> tuple[AnyBatch, tuple[int, ...]]:
    """Rows of uneven lengths from a skewed vocabulary, and their target counts, which differ between micro-batches."""
    rng = np.random.default_rng(step)
    longest = objective.row_length
    lengths = rng.integers(longest // 2, longest + 1, size=GLOBAL_BATCH)
    lengths[0] = longest
    rows = (VOCABULARY * rng.random((GLOBAL_BATCH, longest)) ** 8).astype(np.int64)
    samples = np.arange(GLOBAL_BATCH) + step * GLOBAL_BATCH
    return objective(rows, lengths, samples), objective.loss_counts(lengths, samples)


def micro_batches(step: int, share: DataShard, objective: Objective = PREFIX_LM) -> list[PipelineBatch]:
    """One replica's part of the step's global batch, with the weights that make the loss a mean over all targets."""
    batch, counts = global_batch(step, objective)
    weights = [GLOBAL_BATCH // share.micro_batch_size / max(1, count) for count in counts]
    result = []
    for rows in share.micro_batches(np.arange(GLOBAL_BATCH)):
        portion = type(batch)(**{name: getattr(batch, name)[rows] for name in batch.__dataclass_fields__})
        result.append(as_tensors(portion, *weights))
    return result


def share_groups() -> None:
    """Reuse one process group for equal ranks: creating groups again for each mesh would leak threads and sockets."""
    make, made = torch.distributed.new_group, {}

    def new_group(ranks: Any = None, *arguments: Any, **options: Any) -> Any:
        key = tuple(range(torch.distributed.get_world_size()) if ranks is None else ranks)
        if key not in made:
            made[key] = make(list(key), *arguments, **options)
        return made[key]

    torch.distributed.new_group = new_group
    torch.distributed.destroy_process_group = lambda group=None: None  # Megatron destroys some of its groups
