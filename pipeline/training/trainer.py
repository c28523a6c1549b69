"""Training a run folder: what every process of the mesh executes, from joining to the last checkpoint."""

from __future__ import annotations

import math
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from data_prep.dataset.manifest import MANIFEST_FILE
from data_prep.files import only_writer
from data_prep.tokenization.tokenizer import TOKENIZER_FILE, load_tokenizer
from models.architectures.pieces import forward_flops
from models.layers.factory import TorchLayers
from pipeline.checkpoint import checkpoint as checkpoints
from pipeline.checkpoint.checkpoint import Position
from pipeline.config import RunConfig, flatten
from pipeline.data.batches import PipelineBatch, TrainingBatches, objective_of, training_rows
from pipeline.data.prefetch import Prefetch
from pipeline.distributed.consistency import check_agreement
from pipeline.distributed.mesh import Mesh, join, leave
from pipeline.distributed.rng import seed_dropout
from pipeline.distributed.watchdog import Watchdog
from pipeline.eval.evaluation_sets import ALL
from pipeline.eval.samples import write_samples
from pipeline.eval.validation import first_rows, validation_sets
from pipeline.optim.lr_schedule import learning_rate
from pipeline.optim.skip_step import ASKED, REASONS, StepResult
from pipeline.run_folder import METRICS, latest, step_name, write_status
from pipeline.tracking.metrics import Counters, MetricsFile
from pipeline.tracking.mlflow_tracker import MlflowTracker, NoTracker
from pipeline.tracking.progress import NoProgress, TrainingProgress
from pipeline.tracking.provenance import PROVENANCE, write_provenance
from pipeline.tracking.throughput import Meter
from pipeline.training.engine import Engine


def train(*runs: Path) -> str:
    """Train run folders one after another, each to its last step from its latest checkpoint; returns the last status written.

    Called by every process. SIGTERM, SIGINT or SIGUSR1 ends a run at the next step with a checkpoint, as `preempted`; the
    runs after it are then left.
    """
    stop = StopSignal()
    for run in runs:
        status = _train(run, stop)
        if status != "finished":
            break
    leave()
    return status


def _train(run: Path, stop: StopSignal) -> str:
    config = RunConfig.load(run)
    mesh = join(config.mesh)
    watchdog = Watchdog(mesh.rank, mesh.world_size, 60 * config.train.hang_minutes)
    watchdog.start()
    with only_writer(run) if mesh.is_main else nullcontext():
        try:
            trainer = Trainer(run, config, mesh, watchdog)
            # Not earlier: until all ranks are ready for the first step, a signal should just end them.
            stop.install()
            status = trainer.run(stop)
        except BaseException as error:
            watchdog.fail(f"{type(error).__name__}: {error}")
            if mesh.is_main:
                write_status(run, "failed")
            first = watchdog.first_failure()
            if first is not None and not first.startswith(f"rank {mesh.rank}:"):
                raise RuntimeError(f"ended with {first}") from error
            raise
    watchdog.stop()
    return status


class StopSignal:
    """Remembers that the process was asked to stop; the loop looks at it between two steps."""

    def __init__(self) -> None:
        self.received = False

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True


class Trainer:
    def __init__(self, run: Path, config: RunConfig, mesh: Mesh, watchdog: Watchdog) -> None:
        self.run_folder, self.config, self.mesh, self.watchdog = run, config, mesh, watchdog
        data, steps = config.data, config.train
        self.objective = objective_of(config)
        if mesh.is_main:  # so that a run folder can write text without its data
            shutil.copyfile(data.path / TOKENIZER_FILE, run / TOKENIZER_FILE)
        self.made_with = write_provenance(run) if mesh.is_main else {}
        self.engine = Engine(config, mesh)
        rows, weights = training_rows(data)
        self.training = TrainingBatches(
            rows, self.objective, self.engine.share, steps.global_batch_size, steps.seed, weights, data.skip_ranges
        )
        self.fingerprint = self.training.fingerprint
        self.validation = validation_sets(config, self.engine.share)
        self.sample_batch = first_rows(config) if steps.samples else None
        self.tokenizer = load_tokenizer(run / TOKENIZER_FILE) if steps.samples and mesh.is_main else None
        self.flops_per_row = 3 * forward_flops(config.model, TorchLayers(), data.lengths)
        self.meter = Meter(mesh, steps.global_batch_size * self.flops_per_row, self.engine.accumulation_steps)
        self.counters, self.step, self.skips_in_a_row = Counters(), 0, 0
        self._continue_latest()
        self.batches = Prefetch(self._batches_of, steps.steps, data.prefetch_steps, data.loader_workers)
        self.metrics = MetricsFile(run / METRICS, self.step) if mesh.is_main else None
        self.progress = TrainingProgress(steps.steps, self.step) if mesh.is_main else NoProgress()
        self.tracker = (
            MlflowTracker(run, config.tracking.experiment, flatten(config.model_dump(mode="json")), self._tags())
            if mesh.is_main and config.tracking.enabled
            else NoTracker()
        )

    def run(self, stop: StopSignal) -> str:
        train = self.config.train
        status = "failed"
        self._set_status("running")
        try:
            with self.progress:
                last_save = time.monotonic()
                while self.step < train.steps:
                    self._train_step()
                    finished = self.step == train.steps
                    if finished or self.step % train.validate_every == 0:
                        self._validate()
                    minutes = (time.monotonic() - last_save) / 60
                    is_due = train.checkpoint_minutes is not None and minutes >= train.checkpoint_minutes
                    stopping, is_due = self.mesh.any(stop.received, is_due and self.mesh.is_main)
                    is_planned = self.step % train.checkpoint_every == 0 or self.step in train.checkpoint_steps
                    if finished or stopping or is_due or is_planned:
                        self._save()
                        last_save = time.monotonic()
                    if stopping and not finished:
                        break
            status = "finished" if self.step >= train.steps else "preempted"
            self._set_status(status)
        finally:
            self.watchdog.beat("closing")
            self.batches.close()
            if self.metrics is not None:
                self.metrics.close()
            kept = (self.run_folder / "config.yaml", self.run_folder / PROVENANCE, self.config.data.path / MANIFEST_FILE)
            self.tracker.close(status, tuple(path for path in kept if path.is_file()))
        return status

    def _tags(self) -> dict[str, str]:
        """What MLflow shows a run by: its code, its data, the run above it."""
        tags = {"data.fingerprint": self.fingerprint}
        if "revision" in self.made_with:
            tags["mlflow.source.git.commit"] = self.made_with["revision"]
        if self.config.tracking.parent_run is not None:
            tags["mlflow.parentRunId"] = self.config.tracking.parent_run
        return tags

    def _train_step(self) -> None:
        config, counters = self.config, self.counters
        started = time.perf_counter()
        self.step += 1
        self.watchdog.beat(f"training step {self.step}")
        if self.step % config.train.agreement_every == 0:
            check_agreement(self.engine.stages, self.mesh, self.training.sample_rows(self.step))
        asked = time.perf_counter()
        (batches, num_targets), raw_tokens = self.batches(self.step)
        waited = time.perf_counter() - asked
        rate = learning_rate(self.step, config.train.steps, config.optimizer)
        seed_dropout(config.train.seed, self.step, self.mesh)
        result = self.engine.train_step(batches, rate, skip=self.step in config.train.skip_steps)
        elapsed = time.perf_counter() - started
        rows, cost = config.train.global_batch_size, self.objective.cost
        counters.raw_tokens += raw_tokens
        counters.encoder_tokens += rows * cost.encoder
        counters.decoder_tokens += rows * cost.decoder
        counters.target_tokens += num_targets
        counters.flops += rows * self.flops_per_row
        counters.seconds += elapsed
        tokens_per_second = rows * (cost.encoder + cost.decoder) / elapsed
        self.progress.step(self.step, result.loss, tokens_per_second)
        is_logged = self.step == 1 or self.step % config.train.log_every == 0 or self.step == config.train.steps
        if is_logged or result.skipped:
            values = {"loss": result.loss, "grad_norm": result.grad_norm, "learning_rate": rate, "skipped": result.skipped}
            # JSON knows no NaN, and neither do reports: a value that is not finite has no column
            known = {name: value for name, value in values.items() if value is not None and math.isfinite(_number(value))}
            self._log(**known, tokens_per_second=tokens_per_second, **self.meter.step(elapsed, waited))
        self._count_skips(result)

    def _count_skips(self, result: StepResult) -> None:
        if result.skipped is None:
            self.skips_in_a_row = 0
        elif result.skipped != REASONS[ASKED]:
            self.skips_in_a_row += 1
            samples = self.training.samples(self.step)
            self.progress.note(
                f"step {self.step} skipped ({result.skipped}): loss {result.loss:.4g}, gradient norm {result.grad_norm:.4g}, "
                f"samples {samples[0]} to {samples[-1]}"
            )
        if self.skips_in_a_row >= self.config.train.max_skips:
            raise ValueError(
                f"{self.skips_in_a_row} steps in a row were skipped ({result.skipped} at step {self.step}): the run has "
                "diverged. Lower optimizer.learning_rate, or continue from an earlier checkpoint with train.skip_steps"
            )

    def _batches_of(self, step: int) -> tuple[tuple[list[PipelineBatch], int], int]:
        return self.training.step(step), self.training.raw_tokens(step)

    def _validate(self) -> None:
        self.watchdog.beat(f"validating at step {self.step}")
        for part in self.validation:
            loss = self.engine.evaluate(part.batches)
            if part.source == ALL:
                self.progress.validated(self.step, loss)
            values: dict[str, Any] = {"validation_loss": loss, "source": part.source}
            bits = part.bits_per_byte(loss)
            # an encoder's loss holds the order of its segments too: no bits of a text
            if bits is not None and not self.config.model.is_encoder_only:
                values["bits_per_byte"] = bits
            self._log(**values, validation_target_tokens=part.target_tokens)
        if self.sample_batch is not None:
            self._sample(self.sample_batch)

    def _sample(self, batch: PipelineBatch) -> None:
        train = self.config.train
        written = write_samples(self.engine, batch, train.samples, train.sample_tokens)
        if self.tokenizer is not None and written:
            path = self.run_folder / "samples" / f"{step_name(self.step)}.txt"
            path.parent.mkdir(exist_ok=True)
            texts = [
                f"given: {self.tokenizer.decode(given)}\nwritten: {self.tokenizer.decode(new)}\n" for given, new in written
            ]
            path.write_text("\n".join(texts), encoding="utf-8")
            self.tracker.artifact(path, "samples")

    def _log(self, **values: Any) -> None:
        if self.metrics is not None:
            self.tracker.log(self.step, self.metrics.write(self.step, self.counters, **values))

    def _save(self) -> None:
        position = Position(
            step=self.step,
            seed=self.config.train.seed,
            dataset_fingerprint=self.fingerprint,
            counters=self.counters,
            mesh=checkpoints.mesh_shape(self.mesh),
            next_sample=self.training.position_after(self.step),
            guards=self.engine.guard.spikes.state(),
        )
        self.watchdog.beat(f"saving step {self.step}")
        checkpoints.save(self.run_folder, self.engine, position, self.validation[-1].batches[0])
        if self.mesh.is_main:
            train = self.config.train
            checkpoints.prune(self.run_folder, train.keep_last, train.keep_every, train.checkpoint_steps)

    def _continue_latest(self) -> None:
        checkpoint = self._newest_undamaged()
        if checkpoint is None:
            return
        position = Position.read(checkpoint)
        if position.dataset_fingerprint != self.fingerprint:
            raise ValueError(
                f"{self.config.data.path} is not the data that {self.run_folder} was trained on (fingerprint "
                f"{self.fingerprint}, the checkpoint has {position.dataset_fingerprint}): restore the data, or give another "
                "--output"
            )
        if position.seed != self.config.train.seed:
            raise ValueError(
                f"train.seed {self.config.train.seed} differs from the checkpoint's {position.seed}: the data order would "
                "change; keep the seed, or give another --output"
            )
        checkpoints.load_state(checkpoint, self.engine, self.validation[-1].batches[0])
        self.engine.guard.spikes.restore(position.guards)
        self.step, self.counters = position.step, position.counters
        if position.next_sample is not None:
            self.training.continue_at(position.step, position.next_sample)

    def _newest_undamaged(self) -> Path | None:
        """The newest checkpoint whose every byte is as it was written; a collective. Damaged ones are put aside, and told."""
        found: list[Path | None] = [None]
        problem: list[str] = [""]
        if self.mesh.is_main:
            while (checkpoint := latest(self.run_folder)) is not None:
                try:
                    checkpoints.verify(checkpoint)
                    found = [checkpoint]
                    break
                except ValueError as error:
                    aside = checkpoints.put_aside(checkpoint)
                    problem = [f"{error}; it is kept as {aside.name}"]
                    self.watchdog.beat("looking for a checkpoint")
                    print(f"A damaged checkpoint is passed over: {problem[0]}", file=sys.stderr, flush=True)
        torch.distributed.broadcast_object_list(found)
        torch.distributed.broadcast_object_list(problem)
        if found[0] is None and problem[0]:
            raise ValueError(f"no checkpoint of {self.run_folder} is whole: {problem[0]}. Give another --output to start anew")
        return found[0]

    def _set_status(self, status: str) -> None:
        if self.mesh.is_main:
            write_status(self.run_folder, status)


def _number(value: float | str) -> float:
    return value if isinstance(value, float) else 0.0
