"""The command as a person meets it: help, tables, errors of one line, and what `train` starts."""

import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import typer

import launch.local
from data_prep.files import only_writer
from launch.cli import main
from launch.cli.arguments import repeat_options

DEMO = "configs/train/demo.yaml"
Command = Callable[..., int]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder made by `fnet-t5 prepare`, called as a shell calls it that has expanded a glob."""
    folder = tmp_path_factory.mktemp("dataset")
    for number in range(3):
        texts = [
            f"File {number} tells story {line} of a king and of the sea that he could not command. " * 9 for line in range(30)
        ]
        records = [{"text": text, "meta": {"pile_set_name": "Tales" if number else "Songs"}} for text in texts]
        (folder / f"{number}.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    (folder / "data.yaml").write_text("vocab_size: 420\npacking:\n  lengths: [64]\n")
    inputs = [str(folder / f"{number}.jsonl") for number in range(2)]
    arguments = ["prepare", "--input", *inputs, "--val", str(folder / "2.jsonl"), "--output", str(folder / "made")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fnet-t5", *arguments, "--config", str(folder / "data.yaml"), "packing.lengths=[64,640]"])
        with pytest.raises(SystemExit) as exit_info:
            main()
    assert not exit_info.value.code
    return folder / "made"


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr."""
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "Traceback" not in message
    return message.strip()


def commands(app: typer.Typer, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    names = [(*prefix, info.name or info.callback.__name__) for info in app.registered_commands if info.callback]
    return names + [name for group in app.registered_groups if group.typer_instance
                    for name in commands(group.typer_instance, (*prefix, str(group.name)))]  # fmt: skip


def all_commands() -> list[tuple[str, ...]]:
    from launch.cli import _GlobalOptions, build_app

    return commands(build_app(_GlobalOptions()))


@pytest.mark.parametrize("name", all_commands(), ids=" ".join)
def test_every_command_s_help_has_an_example(
    name: tuple[str, ...], command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*name, "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"fnet-t5 {' '.join(name)}" in shown.partition("Example: ")[2]


def test_help_imports_nothing_slow() -> None:
    program = (
        "import sys; from launch.cli import main; sys.argv = ['fnet-t5', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print({'torch', 'ray', 'deepspeed', 'mlflow', 'pydantic', 'numpy', 'omegaconf'} & set(sys.modules))"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "train" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_wrong_key_is_one_line_on_stderr(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("train", DEMO, "model.d_modle=64") == 1
    assert one_line(capsys) == "error: override 'model.d_modle=64': unknown key model.d_modle; did you mean model.d_model?"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fnet-t5", "--debug", "train", DEMO, "model.d_modle=64"])
    with pytest.raises(ValueError, match="d_modle"):
        main()


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("it broke")])
def test_an_unexpected_error_says_how_to_see_more(
    error: Exception, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("launch.config.load_run_config", fail)
    assert command("train", DEMO) == 1
    assert one_line(capsys) == f"error: {type(error).__name__}: {error} (`fnet-t5 --debug …` shows where)"


def test_ctrl_c_is_quiet(command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("launch.config.load_run_config", interrupt)
    assert command("train", DEMO) == 130
    assert capsys.readouterr().err.strip() == ""


def test_a_wrong_command_is_a_usage_error(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("trian") == 2
    assert "No such command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--input a b c --output d", "--input a --input b --input c --output d"),
        ("--input a b k.l=3 --val c d k=v", "--input a --input b k.l=3 --val c --val d k=v"),
        ("--input a --input b", "--input a --input b"),
        ("k=v --output d --input x/lang=en/a ./a=b", "k=v --output d --input x/lang=en/a --input ./a=b"),
        ("--input --output d", "--input --output d"),
        ("--input", "--input"),
        ("--input a -- b c", "--input a -- b c"),
        ("", ""),
    ],
)
def test_list_options_take_every_word_that_follows(words: str, expected: str) -> None:
    assert repeat_options(words.split(), {"--input", "--val"}) == expected.split()


def test_prepare_made_what_was_asked_for(dataset: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(path.name for path in dataset.glob("*.npy")) == [
        f"{split}.{name}.npy" for split in ("train", "val") for name in ("rows_64", "rows_640", "sources")
    ]
    assert command("data", "stats", dataset) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "Songs 30",
        "Tales 30",
        "all 60",
        "640 tokens val",
        "420 ids",
        "Rejected: nothing",
        "Made by: fnet-t5 prepare --input",
    ):
        assert text in shown


def test_inspect_shows_the_text(dataset: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("data", "inspect", dataset, "--split", "val", "--rows", 2, "--row-length", 64) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("tokens") >= 2
    assert "of a king and of the sea" in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--split", "vall"), "has no split 'vall': it has train, val"),
        (("--row-length", 7), "has no rows of 7 tokens: it has 64, 640"),
    ],
)
def test_inspect_names_what_there_is(
    arguments: tuple[object, ...], expected: str, dataset: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("data", "inspect", dataset, *arguments) == 1
    assert one_line(capsys).endswith(expected)


@pytest.mark.parametrize(
    ("objective", "arguments", "expected"),
    [
        ("prefix_lm", (), "64 encoder and 128 decoder positions and 128 targets (0.333, 0.667 and 0.667 a raw token)"),
        ("span_corruption", ("noise_density=0.5", "repeat_sentinels=true"), "<extra_id_0>"),
        ("text_infilling", (), "the stream (no rows of this length are packed)"),
        ("ul2", ("mode_tokens=false",), "decoder:"),
        ("masked_lm", (), "[MASK]"),
        ("causal_lm", ("--decoder-length", 576), "causal_lm on packed rows: 640 raw tokens"),
        ("span_corruption", ("--architecture", "gpt2"), "writes: <extra_id_0>"),
    ],
)
def test_inspect_shows_what_a_model_reads_and_writes(
    objective: str,
    arguments: tuple[object, ...],
    expected: str,
    dataset: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "4000")
    options = ("--objective", objective, "--encoder-length", 64, "--rows", 2)
    assert command("data", "inspect", dataset, *arguments, *options) == 0
    shown = capsys.readouterr().out
    assert expected in shown
    assert "king" in shown


def test_inspect_shows_spans_in_colours(
    dataset: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first sentinel in bright red (SGR 91) on both sides, as its span."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "4000")
    assert command("data", "inspect", dataset, "--objective", "span_corruption", "--encoder-length", 64, "--rows", 1) == 0
    shown = capsys.readouterr().out
    assert shown.count("\x1b[1;91m<extra_id_0>") == 2
    assert "\x1b[91m" in shown.partition("decoder:")[2]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--objective", "span_coruption"), "(did you mean span_corruption?)"),
        (("noise_densty=0.5", "--objective", "span_corruption"), "did you mean objective.noise_density?"),
        (("noise_density=0.5",), "noise_density=0.5 are settings of an objective: give --objective too"),
        (
            ("--objective", "causal_lm", "--architecture", "t5"),
            "take prefix_lm, span_corruption, text_infilling, ul2 or mixture",
        ),
    ],
)
def test_inspect_refuses_what_is_no_objective(
    arguments: tuple[object, ...], expected: str, dataset: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("data", "inspect", dataset, *arguments) == 1
    assert one_line(capsys).endswith(expected)


def test_verify_finds_a_changed_byte(dataset: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("data", "verify", dataset) == 0
    assert "all as they were written" in capsys.readouterr().out
    file = dataset / "val.bin"
    good = file.read_bytes()
    try:
        file.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        assert command("data", "verify", dataset) == 1
        assert one_line(capsys) == f"error: {file}: its bytes changed since it was written"
    finally:
        file.write_bytes(good)


def test_prepare_without_input_says_which_option(command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command("prepare", "--output", tmp_path / "x") == 1
    assert one_line(capsys) == "error: the command line: input is missing; give --input, or input=VALUE"


def test_tokenizer_train_writes_a_tokenizer(
    dataset: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from data_prep.tokenizer import load_tokenizer, num_ids

    output = tmp_path / "new" / "tokenizer.json"
    inputs = [dataset.parent / f"{number}.jsonl" for number in range(2)]
    assert command("tokenizer", "train", "--input", *inputs, "--vocab-size", 400, "--output", output) == 0
    assert num_ids(load_tokenizer(output)) == 400
    assert command("tokenizer", "train", "--input", *inputs, "--vocab-size", 400, "--output", output) == 1
    assert "exists, and datasets may depend on it" in one_line(capsys)


class Started:
    """Stands in for `run_local` and remembers what it was to start."""

    def __init__(self, code: int = 0) -> None:
        self.calls: list[tuple[Path, int]] = []
        self.code = code
        self.status: str | None = None

    def __call__(self, run_dir: Path, num_processes: int) -> int:
        if self.status is not None:
            (run_dir / "STATUS").write_text(f"{self.status}\n")
        assert (run_dir / "config.json").is_file()
        self.calls.append((run_dir, num_processes))
        return self.code


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Started:
    monkeypatch.chdir(tmp_path)
    local = Started()
    monkeypatch.setattr(launch.local, "run_local", local)
    return local


def test_train_starts_one_replica_in_a_folder_named_after_the_recipe(
    started: Started, dataset: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", DEMO, f"data.path={dataset}") == 0
    assert started.calls == [(Path("runs/demo"), 4)]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("Training fnet_t5 demo on ")
    assert lines[1].startswith("4 processes (tensor 2 × pipeline 2 × data 1); run folder runs/demo")


def test_train_takes_processes_and_output_and_returns_their_exit_code(
    started: Started, dataset: Path, command: Command, tmp_path: Path
) -> None:
    started.code = 7
    assert command("train", DEMO, "--nproc", 8, "--output", tmp_path / "mine", f"data.path={dataset}") == 7
    assert started.calls == [(tmp_path / "mine", 8)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--nproc", "3"], "3 processes cannot hold replicas of 4"),
        (["--nproc", "12"], "train.global_batch_size 16 is not a multiple"),
        (["data.path=nowhere"], "nowhere/manifest.json: no manifest"),
        (["data.encoder_length=500"], "has no train rows of 628 tokens"),
        (["optimizer.learning_rate=.inf"], "optimizer.learning_rate"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    arguments: list[str],
    expected: str,
    started: Started,
    dataset: Path,
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command("train", DEMO, f"data.path={dataset}", *arguments) == 1
    assert expected in one_line(capsys)
    assert started.calls == []
    assert not (tmp_path / "runs").exists()


def test_another_run_in_the_same_folder_is_refused(
    started: Started, dataset: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", DEMO, f"data.path={dataset}") == 0
    Path("runs/demo/checkpoints/latest").mkdir(parents=True)
    assert command("train", DEMO, f"data.path={dataset}", "train.steps=999") == 0
    assert "Going on with fnet_t5 demo" in capsys.readouterr().out
    assert command("train", DEMO, f"data.path={dataset}", "train.seed=5") == 1
    assert one_line(capsys) == (
        "error: runs/demo holds another run: train.seed (0 there, 5 now); give another --output, or undo the difference"
    )
    assert len(started.calls) == 2


@pytest.mark.parametrize("rank", [0, 3])
def test_train_joins_an_outer_launcher_s_job(
    rank: int,
    started: Started,
    dataset: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[Path] = []
    trainer = types.ModuleType("pipeline.train")
    trainer.train = trained.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipeline.train", trainer)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert command("train", DEMO, f"data.path={dataset}") == 0
    assert trained == [Path("runs/demo")]
    assert started.calls == []
    assert len(capsys.readouterr().out.splitlines()) == (2 if rank == 0 else 0)
    assert command("train", DEMO, f"data.path={dataset}", "--nproc", 8) == 1
    assert "leave it out" in one_line(capsys)
    monkeypatch.delenv("WORLD_SIZE")
    assert command("train", DEMO, f"data.path={dataset}") == 1
    assert "WORLD_SIZE is not" in one_line(capsys)


def test_a_run_does_not_mix_with_what_is_there(
    started: Started, dataset: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command("train", DEMO, "--output", dataset, f"data.path={dataset}") == 1
    assert one_line(capsys) == f"error: {dataset} holds a dataset, which a run would overwrite: give another --output"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    assert command("train", DEMO, "--output", tmp_path / "notes", f"data.path={dataset}") == 1
    assert "holds other files than a run's" in one_line(capsys)
    assert command("train", DEMO, f"data.path={dataset}") == 0
    with only_writer(Path("runs/demo")):
        assert command("train", DEMO, f"data.path={dataset}") == 1
    assert "another process is writing here" in one_line(capsys)
    assert len(started.calls) == 1


def whole_checkpoint(path: Path) -> Path:
    """The least that counts as one: a manifest, all of whose files (none) are there."""
    (path / "state").mkdir(parents=True)
    (path / "state" / "manifest.json").write_text('{"step": 0, "sha256": {}}')
    return path


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [(143, "preempted", 75), (138, "preempted", 75), (130, "preempted", 130), (143, "failed", 143), (0, "finished", 0)],
)
def test_a_preempted_run_asks_to_be_started_again(
    started: Started, dataset: Path, command: Command, code: int, status: str, expected: int
) -> None:
    started.code = code
    Path("runs/demo").mkdir(parents=True)
    started.status = status
    assert command("train", DEMO, f"data.path={dataset}") == expected


def test_a_finished_run_is_not_started_again(
    started: Started, dataset: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", DEMO, f"data.path={dataset}") == 0
    checkpoint = whole_checkpoint(Path("runs/demo/checkpoints/step_00000400"))
    checkpoint.with_name("latest").write_text(checkpoint.name)
    Path("runs/demo/STATUS").write_text("finished\n")
    assert command("train", DEMO, f"data.path={dataset}") == 0
    assert "runs/demo is finished at step 400: raise train.steps" in capsys.readouterr().out
    assert command("train", DEMO, f"data.path={dataset}", "train.steps=500") == 0
    assert len(started.calls) == 2


def test_a_run_that_was_stopped_says_how_to_go_on(
    started: Started, dataset: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    started.code = 130
    assert command("train", DEMO, "--output", "runs/other", f"data.path={dataset}") == 130
    assert "Stopped" not in capsys.readouterr().out
    whole_checkpoint(Path("runs/other/checkpoints/step_00000016"))
    Path("runs/other/checkpoints/latest").write_text("step_00000016")
    assert command("train", DEMO, "--output", "runs/other", f"data.path={dataset}") == 130
    assert "Stopped; step_00000016 is kept" in capsys.readouterr().out


def test_damaged_folders_are_not_merged(
    dataset: Path, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    data = bytearray((copy / "train.bin").read_bytes())
    data[7] ^= 1
    (copy / "train.bin").write_bytes(data)
    assert command("data", "merge", dataset, copy, "--output", tmp_path / "both") == 1
    assert f"{copy}/train.bin: its bytes changed since it was written" in one_line(capsys)
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("data", "pack", "{dataset}", "128", "--method", "foo"), "method 'foo': Input should be"),
        (("generate", "{dataset}", "--file", "nofile"), "nofile: No such file or directory"),
        (("train", "nope.yaml"), "nope.yaml does not exist; did you mean configs/train/demo.yaml?"),
        (("prepare", "--input", "{dataset}/../*.jsonl", "--output", "{dataset}/train.bin"), "train.bin is a file"),
    ],
)
def test_errors_are_one_line_that_names_the_place(
    arguments: tuple[str, ...], expected: str, dataset: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*(word.replace("{dataset}", str(dataset)) for word in arguments)) == 1
    assert expected in one_line(capsys)
