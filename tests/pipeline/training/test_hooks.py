"""Hooks: their order, the events that they receive in a real run, and the example of docs/train.md."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models.config import expand_size
from pipeline.checkpoint.checkpoint import NotFiniteError
from pipeline.config import RunConfig
from pipeline.data.order import SampleOrder
from pipeline.run_folder import latest
from pipeline.tracking.metrics import read_metrics
from pipeline.training.hooks.checkpointing import Checkpointing
from pipeline.training.hooks.consistency import ReplicaConsistency
from pipeline.training.hooks.default import default_hooks
from pipeline.training.hooks.epochs import Epochs
from pipeline.training.hooks.hook import Hook, HookList, StepReport
from pipeline.training.hooks.metrics import StepMetrics
from pipeline.training.hooks.skipped_steps import SkippedSteps
from pipeline.training.hooks.validation import Validation
from pipeline.training.trainer import Trainer
from tests.helpers.processes import start_processes

DOCS = Path(__file__).parents[3] / "docs" / "train.md"

RECORDER = """
import json, os, signal, sys
from pathlib import Path
from pipeline.training.hooks.hook import Hook
from pipeline.training.trainer import train

RUN = Path(sys.argv[1])


class Recorder(Hook):
    def __init__(self):
        self.events = []

    def on_start(self, trainer):
        if trainer.mesh.is_main:  # which has written it just before
            assert (RUN / "STATUS").read_text() == "running\\n"
        assert callable(signal.getsignal(signal.SIGTERM))  # from now on a signal waits for a save
        self.events.append(["start", trainer.step])

    def before_step(self, trainer):
        self.events.append(["before", trainer.step])

    def after_step(self, trainer, report):
        self.events.append(["after", trainer.step, report.loss])

    def on_log(self, trainer, row):
        self.events.append(["log", row["step"], row.get("loss"), row["raw_tokens"]])

    def on_validate(self, trainer, losses):
        self.events.append(["validate", trainer.step, losses])

    def on_artifact(self, trainer, path, folder):
        self.events.append(["artifact", str(path.relative_to(RUN)), folder])

    def on_checkpoint(self, trainer, checkpoint):
        assert (RUN / "checkpoints" / "latest").read_text() == checkpoint.name + "\\n"
        self.events.append(["checkpoint", checkpoint.name])

    def on_end(self, trainer, status):
        self.events.append(["end", status])
        (RUN / f"events_{os.environ['RANK']}.json").write_text(json.dumps(self.events))


train(RUN, hooks=[Recorder()])
"""


def write_run(run: Path, dataset: Path, **train: Any) -> Path:
    config = RunConfig.model_validate(
        {
            "model": expand_size({"size": "nano", "vocab_size": 600}),
            "data": {"path": str(dataset), "encoder_length": 16, "decoder_length": 8, "validation_rows": 21},
            "train": {
                **{"steps": 5, "global_batch_size": 8, "micro_batch_size": 2, "precision": "fp32"},
                **{"checkpoint_every": 3, "validate_every": 2, "log_every": 2, "samples": 1, "sample_tokens": 2},
                **train,
            },
            "optimizer": {"learning_rate": 0.003, "warmup_steps": 3},
            "tracking": {"enabled": False},
        }
    )
    run.mkdir(parents=True)
    (run / "config.json").write_text(config.model_dump_json())
    return run


def test_a_user_hook_receives_all_events_of_a_run(tmp_path: Path, dataset: Path) -> None:
    run, script = write_run(tmp_path / "run", dataset), tmp_path / "recorder.py"
    script.write_text(RECORDER)
    start_processes(2, script, run)
    events = [json.loads((run / f"events_{rank}.json").read_text()) for rank in range(2)]
    names = [[event[0] for event in of_rank] for of_rank in events]
    step, validation = ["before", "after"], ["log", "log", "log"]
    # The built-in hooks log a row in their `after_step`, before the user's hook, which is last in the list, is called.
    assert names[0] == [
        "start",
        *("before", "log", "after"),
        *("before", "log", *validation, "artifact", "validate", "after"),
        *(*step, "checkpoint"),
        *("before", "log", *validation, "artifact", "validate", "after"),
        *("before", "log", *validation, "artifact", "validate", "after", "checkpoint"),
        "end",
    ]
    assert names[1] == [name for name in names[0] if name != "artifact"]  # only the main rank writes artifacts
    assert events[0][0] == ["start", 0]
    assert events[0][-1] == ["end", "finished"]
    losses = {event[1]: event[2] for event in events[0] if event[0] == "after"}
    assert losses == {event[1]: event[2] for event in events[1] if event[0] == "after"}
    rows = read_metrics(run / "metrics.jsonl")
    assert {row["step"]: row["loss"] for row in rows if "loss" in row} == {step: losses[step] for step in (1, 2, 4, 5)}
    validated = [event for event in events[0] if event[0] == "validate"]
    assert [event[1] for event in validated] == [2, 4, 5]
    assert validated[-1][2]["all"] == rows[-1]["validation_loss"]
    assert set(validated[-1][2]) == {"Python documentation", "Python topics", "all"}
    assert [event[1] for event in events[0] if event[0] == "checkpoint"] == ["step_00000003", "step_00000005"]
    assert ["artifact", "samples/step_00000005.txt", "samples"] in events[0]


def example() -> str:
    """The example of a hook in docs/train.md, as a script."""
    (block,) = [part.split("```")[0] for part in DOCS.read_text().split("```python\n")[1:] if "(Hook)" in part.split("```")[0]]
    return block


def test_the_documented_hook_ends_a_run_early(tmp_path: Path, dataset: Path) -> None:
    run, script = write_run(tmp_path / "run", dataset, steps=8, checkpoint_every=100, samples=0), tmp_path / "example.py"
    assert sum(bool(line) for line in example().splitlines()) == 10
    script.write_text(example())
    start_processes(2, script, run, 100.0)  # every loss is below 100: the first validation ends the run
    assert (run / "STATUS").read_text() == "preempted\n"
    checkpoint = latest(run)
    assert checkpoint is not None
    assert checkpoint.name == "step_00000002"
    start_processes(2, script, run, 0.0)  # none is below 0: the run resumes and finishes
    assert (run / "STATUS").read_text() == "finished\n"
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows if row.get("source") == "all"] == [2, 4, 6, 8]


class Noted(Hook):
    def __init__(self, name: str, seen: list[str], breaks_at: str = "") -> None:
        self.name, self.seen, self.breaks_at = name, seen, breaks_at

    def on_start(self, trainer: Any) -> None:
        self._note("start")

    def before_step(self, trainer: Any) -> None:
        self._note("before")

    def on_end(self, trainer: Any, status: str) -> None:
        self._note(f"end {status}")

    def _note(self, event: str) -> None:
        self.seen.append(f"{self.name} {event}")
        if event == self.breaks_at:
            raise ValueError(f"{self.name} breaks")


def test_hooks_run_in_list_order_and_all_started_hooks_end() -> None:
    seen: list[str] = []
    trainer: Any = None
    hooks = HookList([Noted("a", seen, "end failed"), Noted("b", seen), Noted("c", seen, "start"), Noted("d", seen)])
    with pytest.raises(ValueError, match="c breaks"):
        hooks.on_start(trainer)
    with pytest.raises(ValueError, match="a breaks"):
        hooks.on_end(trainer, "failed")
    assert seen == ["a start", "b start", "c start", "a end failed", "b end failed"]  # only hooks that have started
    seen.clear()
    hooks.before_step(trainer)
    assert seen == ["a before", "b before", "c before", "d before"]


def test_the_default_hooks_of_a_rank(tmp_path: Path, dataset: Path) -> None:
    config = RunConfig.load(write_run(tmp_path / "run", dataset))
    common = ["ReplicaConsistency", "StepMetrics", "SkippedSteps", "Validation", "Samples", "Checkpointing", "StopOnSignal"]
    for is_main, tracked in ((True, True), (True, False), (False, True)):
        values = config.model_dump()
        values["tracking"]["enabled"] = tracked
        mesh: Any = SimpleNamespace(is_main=is_main)
        nothing: Any = None
        hooks = default_hooks(RunConfig.model_validate(values), mesh, nothing, nothing)
        writers = ["TrainingProgress", "RunFiles", "MetricsWriter", "Epochs"] * is_main + ["MlflowTracking"] * (
            is_main and tracked
        )
        assert [type(hook).__name__ for hook in hooks] == ["Activity", *writers, *common]


def test_every_key_reaches_its_hook() -> None:
    keys = {
        **{"consistency_check_every": 11, "log_every": 12, "max_skips": 13, "validate_every": 14, "samples": 15},
        **{"sample_tokens": 16, "checkpoint_every": 17, "checkpoint_steps": [18], "checkpoint_minutes": 19.5},
        **{"keep_last": 20, "keep_every": 21, "steps": 22},
    }
    config = RunConfig.model_validate(
        {"model": expand_size({"size": "nano", "vocab_size": 600}), "data": {"path": "x"}, "train": keys}
    )
    mesh: Any = SimpleNamespace(is_main=False)
    nothing: Any = None
    hooks = {type(hook).__name__: vars(hook) for hook in default_hooks(config, mesh, nothing, nothing)}
    assert hooks["ReplicaConsistency"]["_every"] == 11
    assert hooks["StepMetrics"]["_every"] == 12
    assert hooks["SkippedSteps"]["_max_skips"] == 13
    assert hooks["Validation"]["_every"] == 14
    assert (hooks["Samples"]["_num_samples"], hooks["Samples"]["_num_tokens"]) == (15, 16)
    saving = [hooks["Checkpointing"][f"_{name}"] for name in ("every", "steps", "minutes", "keep_last", "keep_every")]
    assert saving == [17, (18,), 19.5, 20, 21]


def test_replicas_are_compared_before_every_nth_step(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, ...]] = []
    monkeypatch.setattr("pipeline.training.hooks.consistency.check_replica_consistency", lambda *what: compared.append(what))
    trainer: Any = SimpleNamespace(
        step=0, mesh="mesh", engine=SimpleNamespace(stages="stages"), batches=SimpleNamespace(sample_rows=lambda step: [step])
    )
    hook = ReplicaConsistency(3)
    for trainer.step in range(1, 8):
        hook.before_step(trainer)
    assert compared == [("stages", "mesh", [3]), ("stages", "mesh", [6])]


@pytest.mark.parametrize("every", [1, 4])
def test_metrics_are_logged_at_the_first_each_nth_the_last_and_every_skipped_step(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, Any]] = []
    order = SampleOrder([10, 100], [1, 1], seed=0)
    trainer: Any = SimpleNamespace(
        step=0,
        config=SimpleNamespace(train=SimpleNamespace(steps=10, global_batch_size=8)),
        batches=SimpleNamespace(order=order, position_after=lambda step: 8 * step),
        log=lambda **row: rows.append({"step": trainer.step, **row}),
    )
    hook = StepMetrics(every)
    monkeypatch.setattr(hook, "_throughput", SimpleNamespace(step=lambda seconds, waited: {}), raising=False)
    for trainer.step in range(1, 11):
        hook.after_step(trainer, report("spike" if trainer.step == 7 else None))
    assert [row["step"] for row in rows] == (list(range(1, 11)) if every == 1 else [1, 4, 7, 8, 10])
    assert rows[-1]["epoch"] == 4.0  # of the folder that was read most often
    assert rows[-1]["repeated_rows"] == 30  # 40 reads of 10 rows, and 40 of 100
    assert rows[0]["epoch"] == 0.4
    assert rows[0]["repeated_rows"] == 0
    (skipped,) = [row for row in rows if row["step"] == 7]
    assert skipped["skipped"] == "spike"
    assert "loss" not in skipped  # it is not finite


def report(skipped: str | None = None) -> StepReport:
    return StepReport(
        loss=math.nan if skipped else 3.0,
        grad_norm=1.0,
        learning_rate=0.1,
        skipped=skipped,
        seconds=1.0,
        wait_seconds=0.0,
        tokens_per_second=1.0,
    )


def test_too_many_skipped_steps_in_a_row_fail_the_run() -> None:
    notes: list[str] = []
    trainer: Any = SimpleNamespace(
        step=0,
        batches=SimpleNamespace(samples=lambda step: [8 * step, 8 * step + 7]),
        hooks=SimpleNamespace(on_note=lambda trainer, line: notes.append(line)),
    )
    hook = SkippedSteps(max_skips=3)
    for step, reason in enumerate(["spike", "not finite", None, "spike", "train.skip_steps", "not finite"], start=1):
        trainer.step = step
        hook.after_step(trainer, report(reason))
    assert [line.split(":")[0] for line in notes] == [
        "step 1 skipped (spike)",
        "step 2 skipped (not finite)",
        "step 4 skipped (spike)",
        "step 6 skipped (not finite)",
    ]
    assert notes[0].endswith("samples 8 to 15")
    trainer.step = 7
    with pytest.raises(ValueError, match=r"3 steps in a row were skipped \(spike at step 7\): the run has diverged"):
        hook.after_step(trainer, report("spike"))


def test_epochs_are_told_each_time_that_their_number_doubles_and_at_the_end() -> None:
    """Batches of 8 from a blend of 20 and 100 rows, half each, after a resume at step 3."""
    notes: list[str] = []
    order = SampleOrder([20, 100], [1, 1], seed=0)
    batches = SimpleNamespace(order=order, position_after=lambda step: 8 * step, sources=[range(20), range(100)])
    folders = [SimpleNamespace(path=Path("small")), SimpleNamespace(path=Path("large"))]
    trainer: Any = SimpleNamespace(
        step=0,
        batches=batches,
        config=SimpleNamespace(data=SimpleNamespace(blend=folders), train=SimpleNamespace(steps=60)),
        hooks=SimpleNamespace(on_note=lambda trainer, line: notes.append(line)),
    )
    hook = Epochs()
    for trainer.step in range(4, 61):
        hook.after_step(trainer, report())
    # 4 rows of a step are of each folder: the small one has been read 1, 2, 4 and 8 times after 5, 10, 20 and 40 steps
    assert [int(line.split(":")[0].removeprefix("step ")) for line in notes] == [5, 10, 20, 25, 40, 50, 60]
    assert notes[-1] == (
        "step 60: read 12.00 epochs of the 20 rows of small: every row is seen about 12.0 times; 2.40 epochs of the 100 rows "
        "of large: every row is seen about 2.4 times"
    )
    assert notes[0].endswith("1.00 epochs of the 20 rows of small: no row is seen twice; 0.20 epochs of the 100 rows of large: "
                             "no row is seen twice")  # fmt: skip


@pytest.mark.parametrize("is_main", [True, False])
def test_checkpoints_are_requested_by_step_and_by_the_main_ranks_clock(
    is_main: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, requested = [0.0], []
    monkeypatch.setattr("pipeline.training.hooks.checkpointing.time.monotonic", lambda: now[0])
    mesh = SimpleNamespace(is_main=is_main)
    trainer: Any = SimpleNamespace(step=0, mesh=mesh, run_folder=tmp_path)
    trainer.request_checkpoint = lambda: requested.append(trainer.step)
    hook = Checkpointing(every=4, steps=(3,), minutes=1.0)
    hook.on_start(trainer)
    for step in range(1, 10):
        trainer.step = step
        now[0] += 25.0
        before = len(requested)
        hook.after_step(trainer, report())
        if len(requested) > before:
            hook.on_checkpoint(trainer, tmp_path)
    # steps 3, 4 and 8 by step; step 7 by time, 75 s after the checkpoint of step 4
    assert requested == ([3, 4, 7, 8] if is_main else [3, 4, 8])


class Evaluating:
    """A trainer that evaluates micro-batches, each a number, and keeps what is reported."""

    def __init__(self, run: Path, step: int, batches: list[float], target_tokens: int = 5) -> None:
        part = SimpleNamespace(
            source="all",
            batches=batches,
            target_tokens=target_tokens,
            bits_per_byte=lambda loss: loss if target_tokens else None,
        )
        self.run_folder, self.step, self.validation_sets = run, step, [part]
        self.config = SimpleNamespace(train=SimpleNamespace(steps=10), model=SimpleNamespace(is_encoder_only=False))
        self.mesh = SimpleNamespace(is_main=True, any=lambda *flags: tuple(map(bool, flags)))
        self.engine = SimpleNamespace(evaluate=self.evaluate)
        self.hooks = SimpleNamespace(on_validate=lambda trainer, losses: self.losses.append(losses))
        self.evaluated: list[int] = []
        self.losses: list[dict[str, float]] = []
        self.rows: list[dict[str, Any]] = []
        self.activities: list[str] = []
        self.report, self.has_pending_validation = self.activities.append, False
        self.stop_after = math.inf
        self.stop = SimpleNamespace(received=False)

    def evaluate(self, batches: list[float]) -> float:
        self.evaluated.append(len(batches))
        self.stop.received = len(self.evaluated) >= self.stop_after
        return sum(batches) / len(batches)

    def log(self, **row: Any) -> None:
        self.rows.append(row)


def test_a_stop_is_seen_between_validation_batches_and_the_validation_is_done_at_the_next_start(tmp_path: Path) -> None:
    batches = [float(number) for number in range(100)]
    trainer: Any = Evaluating(tmp_path, 10, batches)
    trainer.stop_after = 2
    hook = Validation(5, trainer.stop)
    hook.after_step(trainer, report())
    assert trainer.evaluated == [32, 32]
    assert trainer.rows == trainer.losses == []
    assert trainer.has_pending_validation  # so that the run is not finished at its last step
    resumed: Any = Evaluating(tmp_path, 10, batches)
    hook = Validation(5, resumed.stop)
    hook.on_ready(resumed)
    assert resumed.evaluated == [32, 32, 32, 4]
    assert len(resumed.activities) >= 4  # each portion is progress
    assert resumed.rows[0]["validation_loss"] == resumed.losses[0]["all"] == pytest.approx(49.5, abs=1e-12)
    assert not resumed.has_pending_validation
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "source": "all", "validation_loss": 49.5}\n')
    again: Any = Evaluating(tmp_path, 10, batches)
    Validation(5, again.stop).on_ready(again)
    assert again.evaluated == []


def test_a_validation_without_targets_has_no_loss(tmp_path: Path) -> None:
    trainer: Any = Evaluating(tmp_path, 5, [0.0, 0.0], target_tokens=0)
    Validation(5, trainer.stop).after_step(trainer, report())
    assert trainer.rows == [{"validation_loss": None, "source": "all", "validation_target_tokens": 0}]
    assert trainer.losses == [{}]


def test_nothing_is_saved_while_steps_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for a checkpoint stands until the run is finite again; a person is told once."""
    notes: list[str] = []
    saved: list[int] = []
    trainer = Trainer.__new__(Trainer)
    trainer.hooks = HookList([])
    monkeypatch.setattr(trainer.hooks, "on_note", lambda trainer, line: notes.append(line))
    trainer._is_saved, trainer._checkpoint_requested = True, True
    bad_weights = {6}

    def write() -> None:
        if trainer.step in bad_weights:
            raise NotFiniteError("the weights are not finite")
        saved.append(trainer.step)

    monkeypatch.setattr(trainer, "_write_checkpoint", write)
    for step in range(1, 9):
        trainer.step, trainer._is_finite = step, step not in (3, 4, 5)
        if trainer._checkpoint_requested or step == 3:
            trainer._save()
    assert saved == [1, 7]
    assert len(notes) == 1
    assert notes[0].startswith("loss or gradient of step 3 is not finite: no checkpoint is saved or removed until")
