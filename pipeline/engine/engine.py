"""The model on its mesh with its optimizer. DeepSpeed's pipeline engine runs the steps."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import deepspeed
from deepspeed.runtime.pipe.schedule import OptimizerStep, ReduceGrads, ReduceTiedGrads
from deepspeed.utils.timer import NoopTimer
from megatron.core import parallel_state
from torch import Tensor

from pipeline.config import RunConfig
from pipeline.data.batches import DataShard, PipelineBatch
from pipeline.distributed.batch_parallel_encoder import sum_partial_gradients
from pipeline.distributed.mesh import Mesh, set_timeouts
from pipeline.distributed.pipeline_stages import Stages, initialize
from pipeline.distributed.tensor_parallel import MegatronLayers
from pipeline.engine.deepspeed_config import deepspeed_config
from pipeline.objectives.loss import token_logits, weighted_loss
from pipeline.optim.optimizer import RMSScaledAdamW, build_optimizer
from pipeline.optim.skip_step import SkipStepGuard, SpikeDetector, StepResult
from pipeline.optim.zero_fragments import fragments, mean_squares
from pipeline.planner.partition import stage_bounds
from pipeline.run_folder import Report, load_weights, no_report


class Engine:
    """Trains and evaluates micro-batches. Every method is a collective."""

    def __init__(self, config: RunConfig, mesh: Mesh, *, will_load: bool = False, report: Report = no_report) -> None:
        """`will_load`: a checkpoint is loaded next, so no initial weights are drawn or read."""
        self.config, self.mesh = config, mesh
        self.accumulation_steps = config.train.accumulation_steps(mesh.data_parallel)
        self.shard = DataShard(config.train.micro_batch_size, mesh.data_parallel, mesh.data_rank)
        settings = deepspeed_config(config, mesh.data_parallel)
        with redirect_stdout(StringIO()):  # DeepSpeed prints its stages and settings there
            loss = weighted_loss(MegatronLayers())
            bounds = stage_bounds(config, mesh.data_parallel)
            train = config.train
            self.stages = Stages(
                config.model,
                config.data.lengths,
                mesh,
                loss,
                train.micro_batch_size,
                recompute=train.recompute,
                bounds=bounds,
            )
            if not will_load:
                report("reading the initial weights")
                given_weights = None if train.initial_weights is None else load_weights(train.initial_weights, report)
                initialize(self.stages, mesh, train.seed, given_weights, report)
                del given_weights
            report("building the optimizer")
            optimizer = build_optimizer(self.stages.canonical_parameters(), config.optimizer)
            self.deepspeed, *_ = deepspeed.initialize(model=self.stages, optimizer=optimizer, config=settings)
        # DeepSpeed times every step, reads the times only for steps_per_print, and otherwise keeps two CUDA events of each
        self.deepspeed.timers = NoopTimer()
        set_timeouts()
        self.fragments = fragments(self.deepspeed, self.stages)
        if isinstance(optimizer, RMSScaledAdamW):
            optimizer.bind(self.fragments, *mean_squares(self.deepspeed, self.stages, self.fragments))
        self.partial_gradients = self.stages.partial_gradient_parameters()
        self._extend_schedule()

    def train_step(self, batches: list[PipelineBatch], rate: float, skip: bool = False) -> StepResult:
        """One update at learning rate `rate`; no update if `skip`, or if the skip-step guard decides so."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = rate
        self.skip_step.asked = skip
        self.deepspeed.train_batch(iter(self._on_device(batches)))
        return self.skip_step.result

    def _extend_schedule(self) -> None:
        """Sum partial gradients over the tensor group before any are reduced; put the skip-step guard before the optimizer."""
        instructions = self.deepspeed._INSTRUCTION_MAP
        group = parallel_state.get_tensor_model_parallel_group()

        def reduce(engine: Any) -> None:
            sum_partial_gradients(self.partial_gradients, group)
            instructions[ReduceTiedGrads](engine)

        train = self.config.train
        spikes = SpikeDetector(train.spike_sigma, train.spike_window)
        clip = self.config.optimizer.clip
        self.skip_step = SkipStepGuard(
            self.deepspeed, self.stages, self.mesh, spikes=spikes, clip=clip, step=instructions[OptimizerStep]
        )
        # a map of this engine alone: all engines of the process share that of the class
        self.deepspeed._INSTRUCTION_MAP = {
            **instructions,
            ReduceTiedGrads: reduce,
            OptimizerStep: lambda engine: self.skip_step(engine),
        }
        if self.mesh.data_parallel == 1 and not self.deepspeed.zero_optimization():
            # no replica to reduce with: DeepSpeed would flatten all gradients, send them to itself and copy them back
            self.deepspeed._INSTRUCTION_MAP[ReduceGrads] = lambda engine: None

    def evaluate(self, batches: list[PipelineBatch]) -> float:
        """Loss in nats per target token over micro-batches of the training shape."""
        return float(self.deepspeed.eval_batch(iter(self._on_device(batches)), num_micro_batches=len(batches)))

    def logits(self, batch: PipelineBatch) -> Tensor | None:
        """Logits (B, M, V / t) of one micro-batch of the training shape: on the last stage's ranks, None on others."""
        batches = iter(self._on_device([batch]))
        _, outputs = self.deepspeed.eval_batch(batches, return_logits=True, num_micro_batches=1)
        return None if outputs is None else token_logits(outputs)

    def _on_device(self, batches: list[PipelineBatch]) -> list[PipelineBatch]:
        def move(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(tensor.to(self.mesh.device, non_blocking=True) for tensor in tensors)

        return [(move(inputs), move(labels)) for inputs, labels in batches]
