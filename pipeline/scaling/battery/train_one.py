"""One run of the battery: a plain training loop in one process, and its test.

The models are so small that a start of the distributed trainer (about ten seconds) would cost as much as their training.

Rows solved are rows in which the likeliest token is right at every target, while the decoder reads the right earlier targets.
That is the share of rows that greedy generation writes without an error: at the first target both read the same, and as long as
all tokens were right, generation has read the right ones. So one is without an error exactly if the other is.

Shapes: B rows, N encoder tokens, M decoder tokens, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures.build import build_model
from models.architectures.pieces import forward_flops
from models.architectures.single_process import SingleProcessModel
from models.cost.parameters import num_parameters
from models.layers.factory import TorchLayers
from models.layers.initialization import initialize
from pipeline.objectives.counter_rng import CounterRNG
from pipeline.scaling.battery.outcomes import BatteryOutcome, CurvePoint, rows_sha256
from pipeline.scaling.battery.settings import BatteryRun, BatteryTraining
from pipeline.scaling.battery.tasks.task_rows import Task, TaskRows

_STEPS_MADE_AT_ONCE = 32
_TEST_BATCH = 256


@dataclass(frozen=True)
class Scores:
    """Of some rows."""

    tokens: float
    """Share of targets that are right."""
    solved: float
    """Share of rows in which all are."""


def train_one(run: BatteryRun, should_stop: Callable[[], bool]) -> BatteryOutcome | None:
    """Train and test one run; None if `should_stop` said so before its end. Raises ValueError for an impossible model."""
    torch.set_flush_denormal(True)  # numbers below 1e-38 would make steps slower and change nothing else
    task, config, training = run.make_task(), run.model(), run.training
    model = build_model(config)
    initialize(model, run.seed)
    begin = time.process_time()
    trained = _train(model, task, run, should_stop)
    if trained is None:
        return None
    curve, diverged = trained
    test = task.rows("test", np.arange(training.test_rows))
    scores, shuffled = evaluate(model, test), evaluate(model, shuffle_inputs(test))
    step_flops = 3 * forward_flops(config, TorchLayers(), task.lengths) * run.rows
    return BatteryOutcome(
        settings=run.settings,
        settings_sha256=run.settings_sha256,
        rows_sha256=rows_sha256(test),
        steps=curve[-1].step,
        diverged=diverged,
        tokens=scores.tokens,
        solved=scores.solved,
        shuffled_tokens=shuffled.tokens,
        shuffled_solved=shuffled.solved,
        num_parameters=num_parameters(config),
        flops=curve[-1].step * step_flops,
        seconds=time.process_time() - begin,
        curve=tuple(curve),
    )


def learning_rate_share(step: int, training: BatteryTraining) -> float:
    """Of the largest rate, at the `step`-th update (counted from 1): warm-up, plateau, a line to 0 after the last one."""
    left = (training.steps + 1 - step) / max(1.0, training.decay * training.steps)
    return min(1.0, step / training.warmup_steps, left)


@torch.no_grad()
def evaluate(model: SingleProcessModel, rows: TaskRows) -> Scores:
    """Accuracy of the likeliest tokens."""
    model.eval()
    right = []
    for first in range(0, len(rows.targets), _TEST_BATCH):
        encoder_ids, decoder_ids, targets = (torch.from_numpy(part[first : first + _TEST_BATCH]) for part in rows)
        right.append(_logits(model, encoder_ids, decoder_ids).argmax(-1) == targets)
    model.train()
    all_right = torch.cat(right)  # (B, M)
    return Scores(all_right.double().mean().item(), all_right.all(1).double().mean().item())


def shuffle_inputs(rows: TaskRows) -> TaskRows:
    """The same rows with the encoder's tokens of each in a random order."""
    keys = CounterRNG("shuffle", "battery/shuffle", np.arange(len(rows.encoder_ids))).keys(rows.encoder_ids.shape[1])
    return rows._replace(encoder_ids=np.take_along_axis(rows.encoder_ids, np.argsort(keys, axis=1, kind="stable"), axis=1))


def _train(
    model: SingleProcessModel, task: Task, run: BatteryRun, should_stop: Callable[[], bool]
) -> tuple[list[CurvePoint], bool] | None:
    """The validations, and whether a loss was not finite; None if stopped."""
    training = run.training
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=run.learning_rate, betas=training.betas, weight_decay=0.0, fused=parameters[0].device.type == "cpu"
    )
    held_out = task.rows("validation", np.arange(training.validation_rows))
    curve: list[CurvePoint] = []
    losses = torch.zeros(training.validate_every)
    for step, (encoder_ids, decoder_ids, targets) in enumerate(_batches(task, run), start=1):
        if should_stop():
            return None
        optimizer.param_groups[0]["lr"] = run.learning_rate * learning_rate_share(step, training)
        loss = F.cross_entropy(_logits(model, encoder_ids, decoder_ids).flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, training.clip, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses[(step - 1) % training.validate_every] = loss.detach()
        if step % training.validate_every == 0 or step == training.steps:
            mean = losses[: (step - 1) % training.validate_every + 1].mean().item()
            scores = evaluate(model, held_out)
            curve.append(CurvePoint(step=step, loss=mean, tokens=scores.tokens, solved=scores.solved))
            if not math.isfinite(mean):
                return curve, True
            if scores.solved >= training.solved:
                return curve, False
    return curve, False


def _batches(task: Task, run: BatteryRun) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Encoder ids (B, N), decoder ids and targets (B, M) of each step; several steps are made at once, for speed."""
    steps, rows = run.training.steps, run.rows
    for first in range(0, steps, _STEPS_MADE_AT_ONCE):
        last = min(steps, first + _STEPS_MADE_AT_ONCE)
        made = task.rows(f"train/{run.seed}", np.arange(first * rows, last * rows))
        parts = [torch.from_numpy(part).split(rows) for part in made]
        yield from zip(*parts, strict=True)


def _logits(model: SingleProcessModel, encoder_ids: Tensor, decoder_ids: Tensor) -> Tensor:
    """(B, M, V)"""
    logits: Tensor = model(model.inputs((encoder_ids, torch.ones_like(encoder_ids), decoder_ids)))
    return logits
