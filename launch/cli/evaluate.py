"""`fnet-t5 evaluate`: a checkpoint's losses on its validation rows, in one process."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "Example: fnet-t5 evaluate runs/demo/run --step 100"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EXAMPLE, no_args_is_help=True)(evaluate)


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    step: Annotated[int | None, typer.Option(help="Checkpoint to evaluate. Default: the latest.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Validation loss, bits per byte, and two yardsticks: the unigram model, and encoder inputs swapped between rows."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pipeline.evaluate import evaluate as evaluate_run

    result = evaluate_run(run, step)
    if as_json:
        typer.echo(json.dumps(asdict(result)))
        return
    table = Table(box=box.SIMPLE_HEAD, title=f"{run}, step {result.step}", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("validation loss, nats per target token", f"{result.loss:.4f}")
    table.add_row("with encoder inputs swapped between rows", f"{result.swapped_loss:.4f}")
    table.add_row("unigram model on the same tokens", f"{result.unigram_loss:.4f}")
    table.add_row("bits per byte", f"{result.bits_per_byte:.4f}")
    table.add_row("target tokens", f"{result.target_tokens:,}")
    Console().print(table)
