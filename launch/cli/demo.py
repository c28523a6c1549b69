"""`fnet-t5 demo`: the whole road on this machine, with nothing downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.arguments import Overrides

EXAMPLE = "Example: fnet-t5 demo --output runs/demo"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EXAMPLE)(demo)


def demo(
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("runs/demo"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start clean, whatever is there.")] = False,
) -> None:
    """From text found on this machine to a trained hybrid that writes text, in about six minutes on two cores.

    Four real processes train (tensor parallel 2 x pipeline parallel 2). Interrupted, it goes on where it was; finished, it
    shows its page again. Overrides change the training recipe, configs/train/demo.yaml.
    """
    from rich.console import Console

    from launch.demo.page import show
    from launch.demo.steps import Demo

    console = Console(highlight=False)
    folder = Demo(output, console)
    result = folder.perform(fresh, overrides or [])
    show(folder, result, console)
    if result.problems:
        raise ValueError("the demo does not show what it should: " + "; ".join(result.problems))
