"""The skip-step guard: a step whose loss or gradient norm is not finite, or far above recent ones, makes no update.

The guard decides after gradients are reduced and before any weight or optimizer state changes. All ranks take the same
decision: the worst verdict of any rank. A skipped step uses up its samples and its place in the learning-rate schedule; weights
and optimizer state keep every bit.

A spike is a loss or gradient norm more than 6 standard deviations above the mean of the last 128 steps (the rule of
OLMo-core's `SkipStepOptimizer`). A spike counts among these as the largest value that is none: so a lasting new level is
accepted after some steps, and one huge value does not hide the next.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.utils import get_global_norm_of_tensors
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from pipeline.distributed.mesh import Mesh
from pipeline.distributed.pipeline_stages import Stages
from pipeline.optim.zero_fragments import inner_optimizer

# The larger code wins where ranks disagree.
TAKEN, ASKED, SPIKE, NOT_FINITE = range(4)
REASONS = {ASKED: "train.skip_steps", SPIKE: "spike", NOT_FINITE: "not finite"}


@dataclass(frozen=True)
class StepResult:
    """One step: its loss (nats per target token over the global batch) and the gradient norm before clipping."""

    loss: float
    grad_norm: float
    skipped: str | None = None
    """Why no update was made; None where it was."""


class SpikeDetector:
    """Compares a step with the last ones. `state()` and `restore()` carry it over a restart."""

    def __init__(self, sigma: float = 6.0, window: int = 128) -> None:
        self.sigma, self.window = sigma, window
        self._losses: deque[float] = deque(maxlen=window)
        self._norms: deque[float] = deque(maxlen=window)

    def is_spike(self, loss: float, norm: float) -> bool:
        """Whether either value lies more than `sigma` deviations above its mean.

        Always False while fewer than half a window of steps are recorded, and where sigma is 0.
        """
        return loss > self._limit(self._losses) or norm > self._limit(self._norms)

    def record(self, loss: float, norm: float) -> None:
        """Add a step to the window, a spike as the largest value that is none."""
        self._losses.append(min(loss, self._limit(self._losses)))
        self._norms.append(min(norm, self._limit(self._norms)))

    def state(self) -> dict[str, list[float]]:
        return {"losses": list(self._losses), "norms": list(self._norms)}

    def restore(self, state: dict[str, list[float]]) -> None:
        self._losses.extend(state.get("losses", []))
        self._norms.extend(state.get("norms", []))

    def _limit(self, history: deque[float]) -> float:
        """The largest value that is no spike."""
        if self.sigma == 0 or len(history) < max(2, self.window // 2):
            return math.inf
        mean = sum(history) / len(history)
        deviation = math.sqrt(sum((entry - mean) ** 2 for entry in history) / (len(history) - 1))
        return mean + self.sigma * deviation


class SkipStepGuard:
    """Replaces DeepSpeed's optimizer instruction: takes the step, or drops the gradients."""

    def __init__(
        self, engine: Any, stages: Stages, mesh: Mesh, *, spikes: SpikeDetector, clip: float, step: Callable[[Any], None]
    ) -> None:
        """`step` is the instruction that is replaced; `clip` the largest gradient norm, 0 for none."""
        self.engine, self.stages, self.mesh, self.spikes, self.clip = engine, stages, mesh, spikes, clip
        self._step = step
        self.asked = False
        """Whether the next step is skipped in any case."""
        self.result = StepResult(math.nan, math.nan)

    def __call__(self, engine: Any) -> None:
        loss, norm = self._loss(), self._norm()
        verdict = self._verdict(loss, norm)
        self.result = StepResult(loss, norm, REASONS.get(verdict))
        if verdict in (TAKEN, SPIKE):
            self.spikes.record(loss, norm)
        if verdict == TAKEN:
            self._take(engine, norm)
        else:
            # DeepSpeed's own step clears its gradient buffers, so it runs, but around an optimizer that does nothing.
            with _disabled(inner_optimizer(engine)):
                self._step(engine)

    def _take(self, engine: Any, norm: float) -> None:
        if isinstance(engine.optimizer, DeepSpeedZeroOptimizer):
            with _known_norm(engine.optimizer, norm):
                self._step(engine)
        else:
            if not isinstance(engine.optimizer, BF16_Optimizer):
                self._clip(norm)
            self._step(engine)

    def _verdict(self, loss: float, norm: float) -> int:
        verdict = ASKED if self.asked else TAKEN
        if self.spikes.is_spike(loss, norm):
            verdict = SPIKE
        if not (math.isfinite(loss) and math.isfinite(norm)):
            verdict = NOT_FINITE
        worst = torch.tensor([verdict], device=self.mesh.device)
        torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
        return int(worst)

    def _loss(self) -> float:
        mesh, engine = self.mesh, self.engine
        share = torch.zeros(1, dtype=torch.float64, device=mesh.device)
        if mesh.pipeline_rank == mesh.pipeline_parallel - 1 and mesh.tensor_rank == 0:
            share += engine.total_loss.double() / (engine.micro_batches * mesh.data_parallel)
        torch.distributed.all_reduce(share)
        return float(share)

    def _norm(self) -> float:
        """Global norm of the reduced gradients, the same on every rank; not finite where one gradient is not."""
        optimizer = self.engine.optimizer
        if isinstance(optimizer, BF16_Optimizer):
            gradients, _ = optimizer.get_grads_for_norm()
            norm = float(get_global_norm_of_tensors(gradients, mpu=optimizer.mpu, norm_type=2))
        elif hasattr(optimizer, "scaled_global_norm"):
            norm = float(optimizer.scaled_global_norm())
        else:
            norm = self._plain_norm()
        return norm if norm >= 0 else math.nan  # DeepSpeed returns -1 for a norm that is not finite

    def _plain_norm(self) -> float:
        """Without ZeRO: each parameter is counted once over stages and tensor ranks."""
        gradients = [
            entry.parameter.grad
            for entry in self.stages.canonical_parameters()
            if not entry.is_copy
            and (entry.shard_dim is not None or self.mesh.tensor_rank == 0)
            and entry.parameter.grad is not None
        ]
        total = torch.zeros(1, dtype=torch.float64, device=self.mesh.device)
        if gradients:
            total += torch.stack(torch._foreach_norm(gradients)).double().square().sum()
        torch.distributed.all_reduce(total)
        return math.sqrt(float(total) / self.mesh.data_parallel) if math.isfinite(float(total)) else math.nan

    def _clip(self, norm: float) -> None:
        """Without ZeRO: as torch's `clip_grad_norm_`, with the norm already computed."""
        if 0 < self.clip < norm:
            gradients = [weight.grad for weight in self.stages.parameters() if weight.grad is not None]
            torch._foreach_mul_(gradients, self.clip / (norm + 1e-6))


@contextmanager
def _known_norm(optimizer: Any, norm: float) -> Any:
    """ZeRO's step would compute the norm of all gradients again; within the block it uses `norm`."""
    optimizer.scaled_global_norm = lambda *arguments, **options: torch.tensor(norm)
    try:
        yield
    finally:
        del optimizer.scaled_global_norm


@contextmanager
def _disabled(optimizer: torch.optim.Optimizer) -> Any:
    optimizer.__dict__["step"] = lambda *arguments, **options: None
    try:
        yield
    finally:
        del optimizer.__dict__["step"]
