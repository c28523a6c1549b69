"""The command `fnet-t5`: joins the command groups, one file each, and turns errors into one line on stderr."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import typer

from launch.cli import bench, checkpoint, compare, demo, evaluate, export, generate, import_folder, plan, train
from launch.cli.cluster import commands as cluster
from launch.cli.data import commands as data
from launch.cli.data import prepare, tokenizer
from launch.cli.scaling import commands as scaling

# A command file has `register(app)`; the order is that of `fnet-t5 --help`. What is slow to import (torch, ray, mlflow)
# is imported inside its commands, so that help stays fast.
COMMAND_FILES = (
    demo,
    tokenizer,
    prepare,
    data,
    plan,
    train,
    evaluate,
    generate,
    checkpoint,
    export,
    import_folder,
    compare,
    bench,
    scaling,
    cluster,
)


# As in pipeline/tracking/logs.py: nothing of `pipeline` may be imported before `check_identity`.
LOG_LEVEL_VARIABLE = "FNET_T5_LOG_LEVEL"
_OUR_PACKAGES = ("launch", "pipeline", "models", "data_prep")


class LogLevel(str, Enum):
    """Levels of --log-level."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass
class _GlobalOptions:
    debug: bool = False


def configure_logging(level: LogLevel) -> None:
    """Log messages of our packages to stderr from `level` on, here and in the processes that this one starts.

    Of libraries, warnings and errors are logged.
    """
    os.environ[LOG_LEVEL_VARIABLE] = level.value
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for package in _OUR_PACKAGES:
        logging.getLogger(package).setLevel(level.value.upper())


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"fnet-t5 {version('fnet-t5')}")
        raise typer.Exit


def _check_current_folder() -> None:
    """Raise ValueError if the current folder was deleted: every relative path would fail, without a name."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ValueError("the current folder was deleted: change to another folder and rerun the command") from None


def build_app(options: _GlobalOptions) -> typer.Typer:
    """The command line as a typer application, which fills `options` from the options before the command's name."""
    app = typer.Typer(
        name="fnet-t5",
        help="Pretrain hybrid encoder-decoders: a Fourier (FNet) encoder with an attention decoder, at T5 sizes.",
        epilog="Start with: fnet-t5 demo",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def global_options(
        debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")] = False,
        version: Annotated[
            bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print it and end.")
        ] = False,
        log_level: Annotated[
            LogLevel,
            typer.Option(
                envvar=LOG_LEVEL_VARIABLE, case_sensitive=False, help="Least severe log messages to write, here and in workers."
            ),
        ] = LogLevel.INFO,
    ) -> None:
        from launch.identity import check_identity

        options.debug = debug
        _check_current_folder()
        configure_logging(log_level)
        check_identity()

    for file in COMMAND_FILES:
        file.register(app)
    return app


def main() -> None:
    """Entry point of the console script. Exit codes: 0 done, 1 error (one line on stderr), 2 wrong usage, 130 Ctrl-C."""
    options = _GlobalOptions()
    try:
        build_app(options)()
    except Exception as error:
        if options.debug:
            raise
        rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
        typer.echo(typer.style("error: ", fg="red", bold=True) + rank + _message_of(error), err=True)
        sys.exit(1)


def _message_of(error: Exception) -> str:
    """One line where the error allows it, without a traceback."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(map(str, problem['loc']))} {problem['input']!r}: {problem['msg']}" for problem in error.errors()
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (ValueError, OSError)):
        return str(error)
    return f"{type(error).__name__}: {error} (`fnet-t5 --debug …` shows the traceback)"
