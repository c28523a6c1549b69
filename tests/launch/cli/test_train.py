"""Tests of the runs that `fnet-t5 train` starts, resumes and refuses."""

import io
import json
import os
import shutil
import socket
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

import launch.start
from data_prep.dataset.manifest import load_manifest
from data_prep.files import only_writer
from launch.config import load_run_config, write_resolved
from launch.preflight import check_data, checkpoint_bytes
from pipeline.run_folder import hold
from tests.helpers.datasets import tales, write_text_dataset

DEMO = "configs/train/demo.yaml"
Command = Callable[..., int]
ErrorLine = Callable[[], str]


class Started:
    """A fake `run_local` that records its arguments."""

    def __init__(self, code: int = 0) -> None:
        self.calls: list[tuple[Path, int]] = []
        self.code = code
        self.status: str | None = None

    def __call__(self, run_dir: Path, num_processes: int, *, then: Sequence[Path], stop_grace: float) -> int:
        assert not then
        assert stop_grace == 20 * 60  # train.hang_minutes
        if self.status is not None:
            (run_dir / "STATUS").write_text(f"{self.status}\n")
        assert (run_dir / "config.json").is_file()
        self.calls.append((run_dir, num_processes))
        return self.code


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Started:
    monkeypatch.chdir(tmp_path)
    local = Started()
    monkeypatch.setattr(launch.start, "run_local", local)
    return local


def test_train_starts_one_replica_in_a_folder_named_after_the_recipe(
    started: Started, prepared: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", DEMO, f"data.path={prepared}") == 0
    assert started.calls == [(Path("runs/demo"), 4)]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("Training fnet_t5 demo on ")
    assert lines[1] == "400 steps read 320.00 epochs of the 20 rows: every row is seen about 320.0 times"
    assert lines[2].startswith("4 processes (tensor 2 × pipeline 2 × data 1); run folder runs/demo")


def test_train_uses_nproc_and_output_and_returns_the_exit_code(
    started: Started, prepared: Path, command: Command, tmp_path: Path
) -> None:
    started.code = 7
    assert command("train", DEMO, "--nproc", 8, "--output", tmp_path / "mine", f"data.path={prepared}") == 7
    assert started.calls == [(tmp_path / "mine", 8)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--nproc", "3"], "3 processes cannot hold replicas of 4"),
        (["--nproc", "12"], "train.global_batch_size 16 is not a multiple"),
        (["data.path=nowhere"], "data.path: nowhere/manifest.json: the folder does not exist; make one with"),
        (["data.encoder_length=500"], "has no train rows of 628 tokens"),
        (["optimizer.learning_rate=.inf"], "optimizer.learning_rate"),
        (["optimizer.betas=[0.9,1.0]"], "optimizer.betas [0.9, 1.0]: each must be at least 0 and less than 1"),
    ],
)
def test_impossible_runs_are_refused_before_processes_start(
    arguments: list[str],
    expected: str,
    started: Started,
    prepared: Path,
    command: Command,
    tmp_path: Path,
    error_line: ErrorLine,
) -> None:
    assert command("train", DEMO, f"data.path={prepared}", *arguments) == 1
    assert expected in error_line()
    assert started.calls == []
    assert not (tmp_path / "runs").exists()


def test_another_run_in_the_same_folder_is_refused(
    started: Started, prepared: Path, command: Command, capsys: pytest.CaptureFixture[str], error_line: ErrorLine
) -> None:
    assert command("train", DEMO, f"data.path={prepared}") == 0
    empty_checkpoint(Path("runs/demo/checkpoints/step_00000100"))
    assert command("train", DEMO, f"data.path={prepared}", "train.steps=999") == 0
    shown = capsys.readouterr().out
    assert "Resuming fnet_t5 demo" in shown
    assert "from step 100 to step 999" in shown
    assert command("train", DEMO, f"data.path={prepared}", "train.seed=5") == 1
    assert error_line() == (
        "error: runs/demo holds another run: train.seed (0 there, 5 now); give another --output, or undo the difference"
    )
    assert len(started.calls) == 2


@pytest.mark.parametrize("rank", [0, 3])
def test_train_joins_the_job_of_an_outer_launcher(
    rank: int,
    started: Started,
    prepared: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    error_line: ErrorLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[Path] = []
    trainer = types.ModuleType("pipeline.training.trainer")
    trainer.train = lambda run, stop: trained.append(run)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipeline.training.trainer", trainer)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert command("train", DEMO, f"data.path={prepared}") == 0
    assert trained == [Path("runs/demo")]
    assert started.calls == []
    assert len(capsys.readouterr().out.splitlines()) == (3 if rank == 0 else 0)
    assert command("train", DEMO, f"data.path={prepared}", "--nproc", 8) == 1
    assert "leave it out" in error_line()
    monkeypatch.delenv("WORLD_SIZE")
    assert command("train", DEMO, f"data.path={prepared}") == 1
    assert "WORLD_SIZE is not" in error_line()


def test_a_run_is_refused_in_a_folder_with_other_files(
    started: Started, prepared: Path, command: Command, error_line: ErrorLine, tmp_path: Path
) -> None:
    assert command("train", DEMO, "--output", prepared, f"data.path={prepared}") == 1
    assert error_line() == f"error: {prepared} holds a dataset, which a run would overwrite: give another --output"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    assert command("train", DEMO, "--output", tmp_path / "notes", f"data.path={prepared}") == 1
    assert "holds files that are not a run's" in error_line()
    assert command("train", DEMO, f"data.path={prepared}") == 0
    with only_writer(Path("runs/demo")):
        assert command("train", DEMO, f"data.path={prepared}") == 1
    assert "another process is writing here" in error_line()
    assert len(started.calls) == 1


def empty_checkpoint(path: Path) -> Path:
    """The smallest complete checkpoint: a manifest that lists one file."""
    (path / "state").mkdir(parents=True)
    (path / "state" / "position.json").write_text("")
    (path / "state" / "manifest.json").write_text('{"step": 0, "sha256": {"state/position.json": ""}}')
    return path


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [(143, "preempted", 75), (138, "preempted", 75), (130, "preempted", 130), (143, "failed", 143), (0, "finished", 0)],
)
def test_a_preempted_run_exits_with_75(
    started: Started, prepared: Path, command: Command, code: int, status: str, expected: int
) -> None:
    started.code = code
    Path("runs/demo").mkdir(parents=True)
    started.status = status
    assert command("train", DEMO, f"data.path={prepared}") == expected


def test_a_finished_run_is_not_started_again(
    started: Started, prepared: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", DEMO, f"data.path={prepared}") == 0
    checkpoint = empty_checkpoint(Path("runs/demo/checkpoints/step_00000400"))
    checkpoint.with_name("latest").write_text(checkpoint.name)
    Path("runs/demo/STATUS").write_text("finished\n")
    assert command("train", DEMO, f"data.path={prepared}") == 0
    assert "runs/demo is finished at step 400: raise train.steps" in capsys.readouterr().out
    assert command("train", DEMO, f"data.path={prepared}", "train.steps=500") == 0
    assert len(started.calls) == 2


def test_a_stopped_run_prints_how_to_resume(
    started: Started, prepared: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    started.code = 130
    assert command("train", DEMO, "--output", "runs/other", f"data.path={prepared}") == 130
    assert "Stopped; no checkpoint was saved yet" in capsys.readouterr().out
    assert Path("runs/other/STATUS").read_text() == "preempted\n"  # the processes had not written one
    empty_checkpoint(Path("runs/other/checkpoints/step_00000016"))
    Path("runs/other/checkpoints/latest").write_text("step_00000016")
    assert command("train", DEMO, "--output", "runs/other", f"data.path={prepared}") == 130
    assert "Stopped; step_00000016 is saved. Rerun the same command to resume." in capsys.readouterr().out


def saved(run: Path, step: int, config: Any, data: str = "") -> None:
    """A checkpoint whose position has the data's fingerprint, or another one."""
    path = empty_checkpoint(run / f"checkpoints/step_{step:08d}")
    fingerprint = data or check_data(config, load_manifest(config.data.path)).fingerprint
    position = {"dataset_fingerprint": fingerprint, "seed": config.train.seed, "step": step}
    (path / "state" / "position.json").write_text(json.dumps(position))


def test_a_run_goes_on_with_moved_data_without_its_start_folder_and_with_other_reports(
    started: Started,
    prepared: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    error_line: ErrorLine,
    tmp_path: Path,
) -> None:
    run, old = Path("runs/demo"), shutil.copytree(prepared, tmp_path / "old")
    config = load_run_config(DEMO, [f"data.path={old}"]).resolved()
    values = config.model_dump(mode="json")
    values["train"]["initial_weights"] = str(tmp_path / "gone")
    values["tracking"] = {"experiment": "mine", "enabled": True}
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(values))
    saved(run, 100, config)
    shutil.rmtree(old)
    assert command("train", DEMO, f"data.path={old}") == 1
    assert (
        "the folder does not exist; make one with `fnet-t5 prepare`; if it was moved, give its new place: data" in error_line()
    )
    overrides = [f"train.initial_weights={tmp_path / 'gone'}", "tracking.enabled=false", "data.validation_rows=600"]
    assert command("train", DEMO, f"data.path={prepared}", *overrides) == 0
    assert "from step 100 to step 400" in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["data"]["path"] == str(prepared)
    assert command("train", DEMO, f"data.path={prepared}", "data.decoder_length=17") == 1  # this changes numbers
    assert len(started.calls) == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["train.steps=300"], True),
        (["train.steps=500"], True),
        (["train.steps=500", "optimizer.decay_steps=400"], False),
        ([], False),
    ],
)
def test_another_length_that_changes_the_learning_rates_is_told(
    changes: list[str],
    told: bool,
    started: Started,
    prepared: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The demo's cosine ends at train.steps, unless optimizer.decay_steps says where."""
    before = [f"data.path={prepared}", *(change for change in changes if "decay" in change)]
    config = load_run_config(DEMO, before).resolved()
    write_resolved(config, tmp_path / "run")
    saved(tmp_path / "run", 200, config)
    assert command("train", DEMO, f"data.path={prepared}", "--output", tmp_path / "run", *changes) == 0
    shown = capsys.readouterr().out
    assert ("warning: train.steps was 400 and is " in shown) is told
    assert len(started.calls) == 1


def test_what_a_checkpoint_cannot_continue_is_refused_before_anything_is_written(
    started: Started, prepared: Path, command: Command, error_line: ErrorLine, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = load_run_config(DEMO, [f"data.path={prepared}"]).resolved()
    write_resolved(config, run)
    saved(run, 200, config)
    before = (run / "config.json").read_bytes()
    arguments = ("train", DEMO, f"data.path={prepared}", "--output")
    assert command(*arguments, run, "train.steps=150") == 1
    assert "train.steps 150 is less than the 200 steps that " in error_line()
    assert command(*arguments, tmp_path / "branch", "--branch", run, "train.seed=3") == 1
    message = error_line()
    assert "was trained with train.seed 0, not 3" in message
    assert "a branch goes on with the data and seed of its parent" in message
    assert "another --output" not in message
    assert f"give train.initial_weights={run}/checkpoints/step_00000200 train.initial_moments=true in place of --bra" in message
    saved(run, 250, config, data="other")
    assert command(*arguments, tmp_path / "branch", "--branch", run, "--branch-step", 250) == 1
    message = error_line()
    assert f"step_00000250 was trained on other data than {prepared} holds" in message
    assert "another --output" not in message
    assert command(*arguments, tmp_path / "branch", "--branch", run, "--branch-step", 200, "train.steps=150") == 1
    assert "give a larger train.steps, or an earlier --branch-step" in error_line()
    saved(run, 300, config, data="other")
    assert command(*arguments, run) == 1
    assert "was trained on other data than" in error_line()
    assert (run / "config.json").read_bytes() == before
    assert not (tmp_path / "branch").exists()
    assert started.calls == []


def test_a_checkpoint_that_is_skipped_is_told_before_the_start(
    started: Started, prepared: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = load_run_config(DEMO, [f"data.path={prepared}"]).resolved()
    write_resolved(config, run)
    saved(run, 100, config)
    saved(run, 200, config)
    (run / "checkpoints/step_00000200/state/position.json").unlink()
    assert command("train", DEMO, f"data.path={prepared}", "--output", run) == 0
    shown = capsys.readouterr().out
    assert "warning: skipped checkpoint " in shown
    assert "step_00000200/state/position.json is missing" in shown
    assert "from step 100 to step 400" in shown
    assert len(started.calls) == 1


def test_the_place_of_checkpoints_is_tried_before_processes_start(
    started: Started,
    prepared: Path,
    command: Command,
    error_line: ErrorLine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    arguments = ("train", DEMO, f"data.path={prepared}", "--output", tmp_path / "new" / "run")
    free = 10**9

    def usage(path: Path) -> Any:
        assert path == tmp_path
        return types.SimpleNamespace(free=free)

    monkeypatch.setattr("launch.preflight.shutil.disk_usage", usage)
    size = checkpoint_bytes(load_run_config(DEMO, [f"data.path={prepared}"]).resolved())
    free = size - 1
    assert command(*arguments) == 1
    assert f"{tmp_path} has " in (message := error_line())
    assert "GB free, and one checkpoint of this run takes" in message
    free = size + 1
    assert command(*arguments, "optimizer.warmup_steps=400") == 0
    shown = capsys.readouterr().out
    assert "checkpoints to come take" in shown
    assert "warning: optimizer.warmup_steps 400 is not less than train.steps 400" in shown

    def refuse(**options: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("launch.preflight.tempfile.TemporaryFile", refuse)
    assert command(*arguments) == 1
    assert "cannot be written (Read-only file system)" in error_line()
    assert len(started.calls) == 1


def test_the_planned_size_of_a_checkpoint_is_that_of_its_tensors(prepared: Path) -> None:
    """Weights, and three fp32 numbers a parameter, counted over the modules of the model."""
    from models.architectures.build import build_model

    for precision, size in (("fp32", 16), ("bf16", 14)):
        config = load_run_config(DEMO, [f"data.path={prepared}", f"train.precision={precision}"]).resolved()
        parameters = sum(parameter.numel() for parameter in build_model(config.model).parameters())
        assert checkpoint_bytes(config) == size * parameters


def test_a_run_folder_in_use_is_refused_with_the_holders_name(
    started: Started, prepared: Path, command: Command, error_line: ErrorLine
) -> None:
    assert command("train", DEMO, f"data.path={prepared}") == 0
    with hold(Path("runs/demo")):
        assert command("train", DEMO, f"data.path={prepared}") == 1
        name = f"process {os.getpid()} on {socket.gethostname()}"
        assert error_line() == f"error: runs/demo: {name} is training here; wait for it or stop it"
    assert command("train", DEMO, f"data.path={prepared}") == 0


@pytest.mark.parametrize("lines", [(), ("--lines",)])
def test_text_that_is_not_utf8_is_named(
    lines: tuple[str, ...], tmp_path: Path, command: Command, error_line: ErrorLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"caf\xe9")
    remedy = "is not UTF-8 (byte 0xe9 at position 3): convert it, for example by `iconv -f latin1 -t utf-8`"
    assert command("generate", tmp_path, "--file", file, *lines) == 1
    assert error_line() == f"error: {file} {remedy}"
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"caf\xe9")))
    assert command("generate", tmp_path, *lines) == 1
    assert error_line() == f"error: standard input {remedy}"


def test_a_prompt_is_a_line_of_the_file_whatever_it_holds(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.eval import evaluate, generate

    config = types.SimpleNamespace(data=types.SimpleNamespace(encoder_length=16))
    monkeypatch.setattr(evaluate, "load_model", lambda run, step: (None, config, None))
    monkeypatch.setattr("data_prep.tokenization.tokenizer.load_tokenizer", lambda path: None)
    monkeypatch.setattr(generate, "stop_ids", lambda tokenizer, stop: [])
    monkeypatch.setattr(generate, "write_texts", lambda model, tokenizer, prompts, *rest: [text.upper() for text in prompts])
    lines = ["one\u2028still one", "two\x0c\x85still two", "  ", "three"]
    file = tmp_path / "prompts"
    file.write_bytes("\r\n".join(lines).encode() + b"\n")
    assert command("generate", tmp_path, "--file", file, "--lines", "--batch-size", 2) == 0
    written = [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]
    assert [one["prompt"] for one in written] == [lines[0], lines[1], lines[3]]
    assert [one["text"] for one in written] == [text.upper() for text in (lines[0], lines[1], lines[3])]


def test_an_objective_without_its_sentinels_is_refused_before_processes_start(
    started: Started, command: Command, error_line: ErrorLine, tmp_path: Path
) -> None:
    """A tokenizer of another library has none. prefix_lm needs none."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    specials = [AddedToken(name, special=True, normalized=False) for name in ("<pad>", "</s>", "<unk>")]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    plain.train_from_iterator([text for text, _ in tales(0)], trainer)
    data = write_text_dataset(tmp_path / "data", {"train": tales(0), "val": tales(1)}, [568, 640], tokenizer=plain)
    spans = "data.objective=span_corruption"
    assert command("train", DEMO, f"data.path={data}", spans) == 1
    message = error_line()
    assert "span_corruption marks spans by sentinels, and the tokenizer has none (<extra_id_0>, …)" in message
    assert "prepare the data with one made by `fnet-t5 tokenizer train`" in message
    assert not Path("runs").exists()
    assert command("train", DEMO, f"data.path={data}") == 0
    assert len(started.calls) == 1


@pytest.mark.parametrize(("warmup", "told"), [(399, False), (400, True), (1000, True)])
def test_a_warm_up_that_never_ends_is_told(
    warmup: int, told: bool, started: Started, prepared: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", DEMO, f"data.path={prepared}", f"optimizer.warmup_steps={warmup}") == 0
    line = f"warning: optimizer.warmup_steps {warmup} is not less than train.steps 400: the learning rate never reaches 0.004"
    assert (line in capsys.readouterr().out.splitlines()) is told


def test_what_a_new_run_begins_with_is_told(
    started: Started, prepared: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.start, "check_initial_weights", lambda config: ["warning: of the weights"])
    weights = Path("runs/old/checkpoints/step_00000004").absolute()
    for moments, what in ((False, "weights"), (True, "weights and moments")):
        given = [f"train.initial_weights={weights}", f"train.initial_moments={str(moments).lower()}"]
        assert command("train", DEMO, f"data.path={prepared}", "--output", f"runs/{moments}", *given) == 0
        lines = capsys.readouterr().out.splitlines()
        assert "warning: of the weights" in lines
        assert f"Begins with the {what} of {weights}; data, steps, schedule and seed begin anew" in lines
        recorded = json.loads(Path(f"runs/{moments}/config.json").read_text())["train"]
        assert (recorded["initial_weights"], recorded["initial_moments"]) == (str(weights), moments)
    saved(Path("runs/True"), 100, load_run_config(DEMO, [f"data.path={prepared}"]).resolved())
    assert command("train", DEMO, f"data.path={prepared}", "--output", "runs/True") == 0  # neither is read any more
    assert "Begins with" not in capsys.readouterr().out


def test_a_length_in_tokens_is_told_and_recorded_in_steps_and_resumed(
    started: Started, prepared: Path, command: Command, capsys: pytest.CaptureFixture[str], error_line: ErrorLine
) -> None:
    corpus = sum(split.tokens for split in load_manifest(prepared).splits["train"].sources.values())
    length = f"train.tokens={3 * corpus}"
    assert command("train", DEMO, f"data.path={prepared}", length) == 0
    steps = -(-3 * 20 // 16)  # three epochs of 20 rows
    first = capsys.readouterr().out
    assert (
        f"{steps} steps (train.tokens {3 * corpus:,}, at {corpus / 20:.1f} tokens a row on average) read 3.20 epochs" in first
    )
    config = Path("runs/demo/config.json")
    recorded = json.loads(config.read_text())["train"]
    assert (recorded["steps"], recorded["tokens"]) == (steps, 3 * corpus)
    saved(Path("runs/demo"), 2, load_run_config(DEMO, [f"data.path={prepared}", length]).resolved())
    before = config.read_bytes()
    assert command("train", DEMO, f"data.path={prepared}", length) == 0  # the same run
    assert f"from step 2 to step {steps} of 16 rows" in capsys.readouterr().out
    assert config.read_bytes() == before
    assert command("train", "runs/demo/config.yaml", "--output", "runs/demo") == 0  # with steps and tokens, which agree
    assert command("train", DEMO, f"data.path={prepared}", f"train.tokens={6 * corpus}") == 0  # made longer
    assert json.loads(config.read_text())["train"]["steps"] == 8
    capsys.readouterr()
    assert command("train", DEMO, f"data.path={prepared}", "train.tokens=99") == 1
    assert "train.tokens 99 (1 step) is less than the 2 steps that " in (message := error_line())
    assert "give at least 2 steps by train.tokens, or branch off" in message
    assert command("train", "runs/demo/config.yaml", "--output", "runs/other", "train.global_batch_size=32") == 1
    assert f"train.steps 8 and train.tokens {6 * corpus} (which is 4 steps of 32 rows) both give" in error_line()
    assert len(started.calls) == 4


@pytest.mark.parametrize("rank", [0, 5])
def test_every_rank_of_a_job_computes_the_same_steps(rank: int, prepared: Path, tmp_path: Path) -> None:
    config = load_run_config(DEMO, [f"data.path={prepared}", "train.epochs=2.5"])
    run = launch.start.check_run(config, tmp_path, processes=launch.start.Processes(8, rank))
    assert run.config.train.steps == 4  # 50 rows in batches of 16


def test_rows_repeated_in_every_batch_are_told_before_the_start(
    started: Started, prepared: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", DEMO, f"data.path={prepared}", "train.global_batch_size=40") == 0
    assert (
        f"warning: a step reads 40 rows of {prepared}, which has 20: each row is about 2.0 times in every batch; give a "
        "smaller train.global_batch_size or more text"
    ) in capsys.readouterr().out
