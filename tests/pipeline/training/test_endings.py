"""The status at the end of a run (all steps are done, it is stopped, a step raises), and what a rank sets up for its steps."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mlflow.entities import RunStatus

from pipeline.distributed.rng import seed_dropout
from pipeline.tracking.mlflow_tracker import MlflowTracker
from pipeline.training import trainer as trainer_module
from pipeline.training.hooks.hook import Hook, HookList
from pipeline.training.hooks.preemption import StopSignal
from pipeline.training.trainer import Trainer
from tests.helpers.recipes import nano_recipe, write_run


class Ends(Hook):
    def __init__(self) -> None:
        self.statuses: list[str] = []

    def on_end(self, trainer: Any, status: str) -> None:
        self.statuses.append(status)


def trainer_that(ends_at: int | BaseException) -> tuple[Trainer, Ends, list[str]]:
    """A trainer of ten steps whose loop ends after a step, or by an exception."""
    trainer, ends, closed = Trainer.__new__(Trainer), Ends(), []
    trainer.hooks, trainer._start_notes, trainer.has_pending_validation, trainer.step = HookList([ends]), [], False, 0
    trainer.config = SimpleNamespace(train=SimpleNamespace(steps=10))  # type: ignore[assignment]
    trainer._prefetch = SimpleNamespace(close=lambda: closed.append("prefetch"))  # type: ignore[assignment]

    def loop() -> None:
        if isinstance(ends_at, BaseException):
            trainer.step = 4
            raise ends_at
        trainer.step = ends_at

    trainer._loop = loop  # type: ignore[method-assign]
    return trainer, ends, closed


@pytest.mark.parametrize(("step", "status"), [(10, "finished"), (4, "preempted")])
def test_a_run_is_finished_at_its_last_step_alone(step: int, status: str) -> None:
    trainer, ends, closed = trainer_that(step)
    assert trainer.run() == status
    assert ends.statuses == [status]
    assert closed == ["prefetch"]


def test_a_run_with_an_interrupted_validation_is_not_finished() -> None:
    trainer, ends, _ = trainer_that(10)
    trainer.has_pending_validation, trainer.step = True, 10
    assert trainer.run() == "preempted"
    assert ends.statuses == ["preempted"]


@pytest.mark.parametrize("error", [ValueError("diverged"), KeyboardInterrupt()])
def test_a_run_whose_step_raises_has_failed(error: BaseException) -> None:
    trainer, ends, closed = trainer_that(error)
    with pytest.raises(type(error)):
        trainer.run()
    assert ends.statuses == ["failed"]
    assert closed == ["prefetch"]


@pytest.mark.parametrize(("status", "state"), [("finished", "FINISHED"), ("preempted", "KILLED"), ("failed", "FAILED")])
def test_mlflow_gets_the_state_of_the_end(status: str, state: str) -> None:
    tracker = MlflowTracker.__new__(MlflowTracker)
    tracker._wake, tracker._artifacts = threading.Condition(), deque()
    tracker._thread = SimpleNamespace(join=lambda timeout: None, is_alive=lambda: False)  # type: ignore[assignment]
    tracker.close(status)
    assert tracker._end == state
    assert RunStatus.is_terminated(RunStatus.from_string(state))


def test_the_watchdog_counts_minutes(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", nano_recipe(dataset, train={"steps": 1, "hang_minutes": 2.5}))
    made: list[Any] = []

    def watchdog(*arguments: Any) -> Any:
        made.append(arguments)
        raise InterruptedError

    monkeypatch.setattr(trainer_module, "join", lambda mesh: SimpleNamespace(rank=3, world_size=8))
    monkeypatch.setattr(trainer_module, "Watchdog", watchdog)
    with pytest.raises(InterruptedError):
        trainer_module._train(run, StopSignal(), [])
    assert made == [(3, 8, 150.0)]


def test_dropout_differs_by_seed_step_stage_and_replica_and_is_equal_in_a_tensor_group() -> None:
    def draw(seed: int = 0, step: int = 1, stage: int = 0, replica: int = 0, tensor: int = 0) -> tuple[float, ...]:
        mesh: Any = SimpleNamespace(pipeline_rank=stage, data_rank=replica, tensor_rank=tensor)
        seed_dropout(seed, step, mesh)
        return tuple(torch.rand(4).tolist())

    draws = [draw(), draw(seed=1), draw(step=2), draw(stage=1), draw(replica=1), draw(stage=1, replica=1)]
    assert len(set(draws)) == len(draws)
    assert draw(tensor=1) == draw() == draws[0]
