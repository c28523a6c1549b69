"""`fnet-t5 demo`: the whole pipeline on this machine, without a download."""

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
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete an earlier demo in the folder and start over.")] = False,
) -> None:
    """End-to-end demo on one machine: from text found here to a trained hybrid that writes, in about six minutes on two cores.

    Four processes train (tensor parallel 2 x pipeline parallel 2). Rerun the command to resume an interrupted demo, or to show
    the page of a finished one. Overrides change the training recipe, configs/train/demo.yaml.
    """
    from rich.console import Console

    from launch.demo.page import show
    from launch.demo.steps import Demo

    console = Console(highlight=False)
    folder = Demo(output, console)
    result = folder.perform(fresh, overrides or [])
    show(folder, result, console)
    if result.problems:
        raise ValueError("the demo failed its checks: " + "; ".join(result.problems))
