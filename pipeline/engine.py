"""The model on its mesh with its optimizer, run by DeepSpeed's pipeline engine: one step in, one loss out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import deepspeed
from deepspeed.runtime.pipe.schedule import ReduceTiedGrads
from megatron.core import parallel_state
from torch import Tensor

from models.flops import Lengths
from pipeline.batches import PipelineBatch, Share
from pipeline.config import RunConfig
from pipeline.deepspeed_config import deepspeed_config
from pipeline.fragments import fragments, mean_squares
from pipeline.gradients import sum_partial_gradients
from pipeline.mesh import Mesh
from pipeline.optimizer import RMSScaledAdamW, build_optimizer
from pipeline.stages import Stages, initialize
from pipeline.tensor_parallel import MegatronLayers


class Engine:
    """The model on its mesh with its optimizer: one step in, one loss out."""

    def __init__(self, config: RunConfig, mesh: Mesh) -> None:
        self.config, self.mesh = config, mesh
        self.accumulation_steps = config.train.accumulation_steps(mesh.data_parallel)
        self.share = Share(config.train.micro_batch_size, mesh.data_parallel, mesh.data_rank)
        settings = deepspeed_config(config, mesh.data_parallel)
        lengths = Lengths(config.data.encoder_length, config.data.decoder_length)
        with redirect_stdout(StringIO()):  # DeepSpeed prints its plans there
            self.stages = Stages(config.model, lengths, mesh, weighted_loss(MegatronLayers()), config.train.micro_batch_size)
            initialize(self.stages, mesh, config.train.seed)
            optimizer = build_optimizer(self.stages.canonical_parameters(), config.optimizer)
            self.deepspeed, *_ = deepspeed.initialize(model=self.stages, optimizer=optimizer, config=settings)
        self.fragments = fragments(self.deepspeed, self.stages)
        if isinstance(optimizer, RMSScaledAdamW):
            optimizer.bind(self.fragments, *mean_squares(self.deepspeed, self.stages, self.fragments))
        self.partial_gradients = self.stages.partial_gradient_parameters()
        self._before_reducing_gradients()

    def train_step(self, batches: list[PipelineBatch], rate: float) -> tuple[float, float]:
        """One update: its loss (nats per target token over the global batch) and the gradient norm before clipping."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = rate
        loss = self.deepspeed.train_batch(iter(self._on_device(batches)))
        return float(loss), float(self.deepspeed.get_global_grad_norm())

    def _before_reducing_gradients(self) -> None:
        """Have the schedule sum partial gradients over the tensor group before it reduces any over stages and replicas."""
        group = parallel_state.get_tensor_model_parallel_group()
        reduce_tied = self.deepspeed._INSTRUCTION_MAP[ReduceTiedGrads]

        def reduce(engine: Any) -> None:
            sum_partial_gradients(self.partial_gradients, group)
            reduce_tied(engine)

        # the engine's own copy: the map is shared by all engines of the process
        self.deepspeed._INSTRUCTION_MAP = {**self.deepspeed._INSTRUCTION_MAP, ReduceTiedGrads: reduce}

    def evaluate(self, batches: list[PipelineBatch]) -> float:
        """Loss in nats per target token over micro-batches of the training shape."""
        return float(self.deepspeed.eval_batch(iter(self._on_device(batches)), num_micro_batches=len(batches)))

    def _on_device(self, batches: list[PipelineBatch]) -> list[PipelineBatch]:
        def move(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(tensor.to(self.mesh.device, non_blocking=True) for tensor in tensors)

        return [(move(inputs), move(labels)) for inputs, labels in batches]


def weighted_loss(factory: MegatronLayers) -> Callable[[Tensor, tuple[Tensor, Tensor]], Tensor]:
    """The pipeline's loss: logits (B, M, V / t) and (targets, weights) of shape (B, M) → scalar, fp32."""

    def loss(logits: Tensor, labels: tuple[Tensor, Tensor]) -> Tensor:
        targets, weights = labels
        return (factory.cross_entropy(logits, targets) * weights).sum()

    return loss
