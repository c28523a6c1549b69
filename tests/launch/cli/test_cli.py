"""The command line: help, and one-line errors."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from launch.cli import LOG_LEVEL_VARIABLE, LogLevel, main
from launch.cli.arguments import repeat_options
from pipeline.tracking import logs

DEMO = "configs/train/demo.yaml"
Command = Callable[..., int]
ErrorLine = Callable[[], str]


def commands(app: typer.Typer, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    names = [(*prefix, info.name or info.callback.__name__) for info in app.registered_commands if info.callback]
    return names + [name for group in app.registered_groups if group.typer_instance
                    for name in commands(group.typer_instance, (*prefix, str(group.name)))]  # fmt: skip


def all_commands() -> list[tuple[str, ...]]:
    from launch.cli import _GlobalOptions, build_app

    return commands(build_app(_GlobalOptions()))


@pytest.mark.parametrize("name", all_commands(), ids=" ".join)
def test_the_help_of_every_command_has_an_example(
    name: tuple[str, ...], command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*name, "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"fnet-t5 {' '.join(name)}" in shown.partition("Example: ")[2]


def test_help_imports_no_slow_package() -> None:
    program = (
        "import sys; from launch.cli import main; sys.argv = ['fnet-t5', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print({'torch', 'ray', 'deepspeed', 'mlflow', 'pydantic', 'numpy', 'omegaconf'} & set(sys.modules))"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "train" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_wrong_key_is_one_line_on_stderr(command: Command, error_line: ErrorLine) -> None:
    assert command("train", DEMO, "model.d_modle=64") == 1
    assert error_line() == "error: override 'model.d_modle=64': unknown key model.d_modle; did you mean model.d_model?"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fnet-t5", "--debug", "train", DEMO, "model.d_modle=64"])
    with pytest.raises(ValueError, match="d_modle"):
        main()


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("it broke")])
def test_an_unexpected_error_names_the_debug_option(
    error: Exception, command: Command, error_line: ErrorLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("launch.config.load_run_config", fail)
    assert command("train", DEMO) == 1
    assert error_line() == f"error: {type(error).__name__}: {error} (`fnet-t5 --debug …` shows the traceback)"


def test_ctrl_c_prints_no_traceback(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("launch.config.load_run_config", interrupt)
    assert command("train", DEMO) == 130
    assert capsys.readouterr().err.strip() == ""


@pytest.mark.parametrize(
    ("options", "variable", "expected"),
    [
        ((), None, "info"),
        (("--log-level", "debug"), None, "debug"),
        ((), "error", "error"),
        (("--log-level", "info"), "error", "info"),
    ],
)
def test_the_log_level_applies_to_this_process_and_its_children(
    options: tuple[str, ...], variable: str | None, expected: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FNET_T5_LOG_LEVEL", variable or "")  # monkeypatch restores what the command sets
    if variable is None:
        monkeypatch.delenv("FNET_T5_LOG_LEVEL")
    assert command(*options, "train", "nope.yaml") == 1
    assert os.environ["FNET_T5_LOG_LEVEL"] == expected
    for package in ("launch", "pipeline", "models", "data_prep"):
        assert logging.getLogger(f"{package}.anything").getEffectiveLevel() == getattr(logging, expected.upper())


def test_an_unknown_log_level_is_a_usage_error(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--log-level", "loud", "train", DEMO) == 2
    assert "'loud' is not one of" in capsys.readouterr().err


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
def test_list_options_take_all_following_words(words: str, expected: str) -> None:
    assert repeat_options(words.split(), {"--input", "--val"}) == expected.split()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("data", "pack", "{prepared}", "128", "--method", "foo"), "method 'foo': Input should be"),
        (("generate", "{prepared}", "--file", "nofile"), "nofile: No such file or directory"),
        (("train", "nope.yaml"), "nope.yaml does not exist; did you mean configs/train/demo.yaml?"),
        (("prepare", "--input", "{prepared}/../*.jsonl", "--output", "{prepared}/train.bin"), "train.bin is a file"),
    ],
)
def test_errors_are_one_line_with_their_location(
    arguments: tuple[str, ...], expected: str, prepared: Path, command: Command, error_line: ErrorLine
) -> None:
    assert command(*(word.replace("{prepared}", str(prepared)) for word in arguments)) == 1
    assert expected in error_line()


def test_workers_read_the_log_level_that_the_command_sets() -> None:
    assert LOG_LEVEL_VARIABLE == logs.LOG_LEVEL_VARIABLE
    assert [level.value for level in LogLevel] == list(logs.LEVELS)


def test_the_version_is_the_installed_one(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--version") == 0
    assert capsys.readouterr().out == f"fnet-t5 {version('fnet-t5')}\n"
