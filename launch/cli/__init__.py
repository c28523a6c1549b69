"""The command `fnet-t5`: one file a command group, joined here, and the one place where errors become a line for people."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
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


@dataclass
class _GlobalOptions:
    debug: bool = False


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
    ) -> None:
        from launch.identity import check_identity

        options.debug = debug
        check_identity()

    for file in COMMAND_FILES:
        file.register(app)
    return app


def main() -> None:
    """Entry point of the console script. Exit codes: 0 done, 1 an error (one line on stderr), 2 a wrong call, 130 Ctrl-C."""
    options = _GlobalOptions()
    try:
        build_app(options)()
    except Exception as error:
        if options.debug:
            raise
        rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""  # of a job's many
        typer.echo(typer.style("error: ", fg="red", bold=True) + rank + _for_people(error), err=True)
        sys.exit(1)


def _for_people(error: Exception) -> str:
    """One line where the error allows it."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(map(str, problem['loc']))} {problem['input']!r}: {problem['msg']}" for problem in error.errors()
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (ValueError, OSError)):
        return str(error)
    return f"{type(error).__name__}: {error} (`fnet-t5 --debug …` shows where)"
