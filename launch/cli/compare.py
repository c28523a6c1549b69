"""`fnet-t5 compare`: two runs on the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.arguments import Run

EXAMPLE = "Example: fnet-t5 compare runs/t5 runs/fnet_t5"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EXAMPLE, no_args_is_help=True)(compare)


def compare(
    first: Run,
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder to compare with it.")],
    prefix: Annotated[
        int | None, typer.Option(help="Prefix length in tokens. Default: the shorter encoder length.", min=1)
    ] = None,
    suffix: Annotated[int, typer.Option(help="Suffix length in tokens.", min=1)] = 128,
    rows: Annotated[int, typer.Option(help="Rows of each source.", min=1)] = 256,
) -> None:
    """Compare two runs: settings, cost, and suffix bits per byte on the same text.

    These are two single runs: a difference below the noise of seeds means nothing. `fnet-t5 scaling` compares with several
    seeds and intervals.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pipeline.eval.compare_runs import compare_runs

    found = compare_runs(first, second, prefix, suffix, rows)
    console = Console()
    for title, names, body in (
        ("Settings that differ", ("setting", str(first), str(second)), found.settings),
        ("Cost", ("", str(first), str(second), "second / first"), found.cost),
        (
            f"Bits per byte of {suffix} tokens given {found.prefix}, on the same text",
            ("source", str(first), str(second), "second - first"),
            found.quality,
        ),
    ):
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
        for number, name in enumerate(names):
            table.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
        for row in body:
            table.add_row(*row)
        console.print(table)
    console.print("One run each: how much another seed would change is not known here.")
