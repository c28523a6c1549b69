"""Training a run folder: what every process of the mesh executes, from joining to the last checkpoint.

The loop is here; what happens around a step (validation, tracking, checkpoints, progress, guards) are hooks, listed in
`pipeline/training/hooks/default.py`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from models.architectures.pieces import forward_flops
from models.layers.factory import TorchLayers
from pipeline.checkpoint.checkpoint import NotFiniteError, Position, load_initial_state, load_state, mesh_shape, save
from pipeline.checkpoint.resume import newest_intact, validate_position
from pipeline.config import RunConfig
from pipeline.data.batches import PipelineBatch, TrainingBatches, objective_of, training_rows
from pipeline.data.prefetch import Prefetch
from pipeline.distributed.mesh import Mesh, join, leave
from pipeline.distributed.rng import seed_dropout
from pipeline.distributed.watchdog import Watchdog
from pipeline.engine.engine import Engine
from pipeline.eval.validation import validation_sets
from pipeline.optim.lr_schedule import learning_rate
from pipeline.run_folder import hold, write_status
from pipeline.tracking.metrics import Counters
from pipeline.training.hooks.default import default_hooks
from pipeline.training.hooks.hook import Hook, HookList, StepReport
from pipeline.training.hooks.preemption import BEFORE_FIRST_STEP, StopSignal

_log = logging.getLogger(__name__)


def train(*runs: Path, hooks: Sequence[Hook] = (), stop: StopSignal | None = None) -> str:
    """Train run folders one after another, each to its last step from its latest checkpoint; returns the last status written.

    Called by every process. `hooks` follow the default ones; each run gets the same objects. SIGTERM, SIGINT, SIGUSR1 or SIGHUP
    ends a run after the current step with a checkpoint, as `preempted`; the runs after it are not started. `stop` is one that
    the caller watches for signals before the first step.
    """
    stop = stop or StopSignal()
    for run in runs:
        status = _train(run, stop, hooks)
        if status != "finished":
            break
    leave()
    return status


def _train(run: Path, stop: StopSignal, hooks: Sequence[Hook]) -> str:
    config = RunConfig.load(run)
    mesh = join(config.mesh)
    watchdog = Watchdog(mesh.rank, mesh.world_size, 60 * config.train.hang_minutes)
    watchdog.start()

    trainer: Trainer | None = None

    def settle(reason: str) -> None:
        """STATUS of a run that does not end in order. A signal before the first step may have reached only some ranks."""
        is_preempted = (stop.received or reason.endswith(BEFORE_FIRST_STEP)) and not (trainer and trainer.has_begun)
        if mesh.is_main:
            write_status(run, "preempted" if is_preempted else "failed")

    def end_at_signal(reason: str) -> None:
        settle(reason)
        watchdog.fail(reason)

    with hold(run) if mesh.is_main else nullcontext():
        stop.at_start, watchdog.at_end = end_at_signal, settle
        try:
            trainer = Trainer(run, config, mesh, [*default_hooks(config, mesh, watchdog, stop), *hooks])
            stop.install()  # not earlier: until all ranks are ready for the first step, a signal should just end them
            status = trainer.run()
        except BaseException as error:
            watchdog.fail(f"{type(error).__name__}: {error}")
            first = watchdog.first_failure() or ""
            settle(first)
            if first and not first.startswith(f"rank {mesh.rank}:"):
                raise RuntimeError(f"ended with {first}") from error
            raise
    watchdog.stop()
    return status


class Trainer:
    """One run on its mesh: model, data, counters and the loop over steps.

    Hooks may read `run_folder`, `config`, `mesh`, `engine`, `batches` (the order of the training data), `validation_sets`,
    `step` (the last step begun, from 1), `counters` and `flops_per_row`. They report through `log` and the events of `hooks`.
    """

    def __init__(self, run: Path, config: RunConfig, mesh: Mesh, hooks: Sequence[Hook]) -> None:
        """Build the model and the data, and resume the newest checkpoint: a collective.

        Raises ValueError where the checkpoint is one of other data, another model or another seed.
        """
        self.run_folder, self.config, self.mesh, self.hooks = run, config, mesh, HookList(hooks)
        data, train = config.data, config.train
        self.step = 0
        self.has_begun = False
        """Whether this start has begun a step: until then, nothing is lost when it ends."""
        self.has_pending_validation = False
        """Set by a hook whose validation of the last step was interrupted: the run is then not finished."""
        self.objective = objective_of(config)
        found = newest_intact(run, mesh, self.report)
        self._start_notes = found.notes
        will_load = found.checkpoint is not None or train.initial_moments
        self.engine = Engine(config, mesh, will_load=will_load, report=self.report)
        self.report("opening the data")
        rows, weights = training_rows(data)
        self.batches = TrainingBatches(
            rows, self.objective, self.engine.shard, train.global_batch_size, train.seed, weights, data.skip_ranges
        )
        self.validation_sets = validation_sets(config, self.engine.shard)
        self.flops_per_row = 3 * forward_flops(config.model, TorchLayers(), data.lengths)
        self.counters = Counters()
        self._stop_requested = self._checkpoint_requested = False
        self._is_finite = self._is_saved = True
        self._resume(found.checkpoint)
        self._prefetch = Prefetch(self._make_step, train.steps, data.prefetch_steps, data.loader_workers)

    def run(self) -> str:
        """Train to the last step, or until a stop is requested. Returns `finished` or `preempted`."""
        status = "failed"
        try:
            self.hooks.on_start(self)
            for note in self._start_notes:
                self.hooks.on_note(self, note)
            self.hooks.on_ready(self)
            if not self.has_pending_validation:
                self._loop()
            is_done = self.step >= self.config.train.steps and not self.has_pending_validation
            status = "finished" if is_done else "preempted"
        finally:
            self.hooks.on_activity(self, "closing")
            self._prefetch.close()
            self.hooks.on_end(self, status)
        _log.info("%s after step %d", status, self.step)
        return status

    def request_stop(self) -> None:
        """End the run after this step, with a checkpoint, as `preempted`. A request of any rank stops all."""
        self._stop_requested = True

    def request_checkpoint(self) -> None:
        """Save after this step. A request of any rank is enough."""
        self._checkpoint_requested = True

    def report(self, activity: str) -> None:
        """Report that something is about to be done which may take long: progress for the watchdog."""
        self.hooks.on_activity(self, activity)

    def log(self, **values: float | str) -> None:
        """Log a row of metrics for the current step: `values`, and what the run has spent so far."""
        self.hooks.on_log(self, {"step": self.step, **values, **asdict(self.counters)})

    def _loop(self) -> None:
        num_steps, is_stopping = self.config.train.steps, False
        while self.step < num_steps and not is_stopping:
            report = self._train_step()
            self._is_finite = math.isfinite(report.loss) and math.isfinite(report.grad_norm)  # equal on all ranks
            self.hooks.after_step(self, report)
            is_stopping, is_saving = self.mesh.any(self._stop_requested, self._checkpoint_requested)
            if is_stopping or is_saving or self.step == num_steps:
                self._save()
                if not self._is_saved and self.step == num_steps:
                    raise ValueError(
                        f"step {num_steps}, the last one, is not finite: it is not saved. Lower optimizer.learning_rate, or "
                        "resume from an earlier checkpoint with train.skip_steps"
                    )

    def _train_step(self) -> StepReport:
        train = self.config.train
        started = time.perf_counter()
        self.step += 1
        self.has_begun = True
        self.hooks.on_activity(self, f"training step {self.step}")
        self.hooks.before_step(self)
        asked = time.perf_counter()
        (micro_batches, num_targets), raw_tokens = self._prefetch(self.step)
        wait_seconds = time.perf_counter() - asked
        rate = learning_rate(self.step, train.steps, self.config.optimizer)
        seed_dropout(train.seed, self.step, self.mesh)
        result = self.engine.train_step(micro_batches, rate, skip=self.step in train.skip_steps)
        seconds = time.perf_counter() - started
        self._count(raw_tokens, num_targets, seconds)
        positions = train.global_batch_size * (self.objective.cost.encoder + self.objective.cost.decoder)
        return StepReport(
            loss=result.loss,
            grad_norm=result.grad_norm,
            learning_rate=rate,
            skipped=result.skipped,
            seconds=seconds,
            wait_seconds=wait_seconds,
            tokens_per_second=positions / seconds,
        )

    def _count(self, raw_tokens: int, target_tokens: int, seconds: float) -> None:
        rows, cost, counters = self.config.train.global_batch_size, self.objective.cost, self.counters
        counters.raw_tokens += raw_tokens
        counters.encoder_tokens += rows * cost.encoder
        counters.decoder_tokens += rows * cost.decoder
        counters.target_tokens += target_tokens
        counters.flops += rows * self.flops_per_row
        counters.seconds += seconds

    def _make_step(self, step: int) -> tuple[tuple[list[PipelineBatch], int], int]:
        return self.batches.step(step), self.batches.raw_tokens(step)

    @property
    def _check_batch(self) -> PipelineBatch:
        """The micro-batch whose logits are stored with a checkpoint and compared when it is loaded."""
        return self.validation_sets[-1].batches[0]

    def _save(self) -> None:
        """Save, unless the step is not finite: then the request stands, and the first finite step after it is saved."""
        problem = "" if self._is_finite else f"loss or gradient of step {self.step} is not finite"
        try:
            if not problem:
                self._write_checkpoint()
        except NotFiniteError as error:
            problem = str(error)
        if problem and self._is_saved:
            self.hooks.on_note(self, f"{problem}: no checkpoint is saved or removed until the run is finite again")
        self._is_saved, self._checkpoint_requested = not problem, bool(problem)

    def _write_checkpoint(self) -> None:
        position = Position(
            step=self.step,
            seed=self.config.train.seed,
            dataset_fingerprint=self.batches.fingerprint,
            counters=self.counters,
            mesh=mesh_shape(self.mesh),
            next_sample=self.batches.position_after(self.step),
            guards=self.engine.skip_step.spikes.state(),
        )
        self.report(f"saving step {self.step}")
        started = time.perf_counter()
        checkpoint = save(self.run_folder, self.engine, position, self._check_batch, self.report)
        _log.info("saved %s in %.1f s", checkpoint.name, time.perf_counter() - started)
        self.hooks.on_checkpoint(self, checkpoint)

    def _resume(self, checkpoint: Path | None) -> None:
        """Load a checkpoint, if there is one: a collective."""
        if checkpoint is None:
            train = self.config.train
            if train.initial_moments:
                assert train.initial_weights is not None
                load_initial_state(train.initial_weights, self.engine, self.report)
                _log.info("starting at step 0 with the weights and moments of %s", train.initial_weights)
            else:
                _log.info("starting at step 0")
            return
        position = Position.read(checkpoint)
        validate_position(position, self.config, self.batches.fingerprint, self.run_folder)
        load_state(checkpoint, self.engine, self._check_batch, self.report)
        self.engine.skip_step.spikes.restore(position.guards)
        self.step, self.counters = position.step, position.counters
        if position.next_sample is not None:
            self.batches.continue_at(position.step, position.next_sample)
        _log.info("resuming from %s", checkpoint.name)
