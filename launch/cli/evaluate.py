"""`fnet-t5 evaluate`: the losses of a checkpoint on validation rows, in one process."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from launch.cli.arguments import CheckpointStep, Run

EXAMPLE = "Example: fnet-t5 evaluate runs/demo/run --step 100\n\nOn each source: fnet-t5 evaluate runs/demo/run --sources"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EXAMPLE, no_args_is_help=True)(evaluate)


def evaluate(
    run: Run,
    step: CheckpointStep = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    sources: Annotated[
        bool, typer.Option("--sources", help="Evaluate suffix bits per byte of each source, which any two runs can compare.")
    ] = False,
    prefix: Annotated[
        int | None, typer.Option(help="With --sources: prefix length in tokens. Default: the encoder length.", min=1)
    ] = None,
    suffix: Annotated[int, typer.Option(help="With --sources: suffix length in tokens.", min=1)] = 128,
    rows: Annotated[int, typer.Option(help="With --sources: rows of each source.", min=1)] = 256,
) -> None:
    """Print validation loss, bits per byte and two reference losses: the unigram model's, and that with swapped encoder inputs.

    Encoder inputs are swapped between rows: a decoder that uses its encoder then has a higher loss.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pipeline.eval.evaluate import evaluate as evaluate_run

    if sources:
        _print_sources(run, step, as_json=as_json, prefix=prefix, suffix=suffix, rows=rows)
        return
    result = evaluate_run(run, step)
    if as_json:
        typer.echo(json.dumps(asdict(result)))
        return
    table = Table(box=box.SIMPLE_HEAD, title=f"{run}, step {result.step}", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("validation loss, nats per target token", f"{result.loss:.4f}")
    if result.swapped_loss is not None:
        table.add_row("with encoder inputs swapped between rows", f"{result.swapped_loss:.4f}")
    table.add_row("unigram model on the same tokens", f"{result.unigram_loss:.4f}")
    if result.order_loss is not None:
        table.add_row("loss of segment order, per row, included above", f"{result.order_loss:.4f}")
    if result.bits_per_byte is not None:
        table.add_row("bits per byte", f"{result.bits_per_byte:.4f}")
    table.add_row("target tokens", f"{result.target_tokens:,}")
    Console().print(table)


def _print_sources(run: Path, step: int | None, *, as_json: bool, prefix: int | None, suffix: int, rows: int) -> None:
    """Suffix bits per byte of each source, and of all together."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pipeline.eval.evaluate import evaluate_sources
    from pipeline.eval.suffix_bpb import overall

    scores = evaluate_sources(run, step, prefix_length=prefix, suffix_length=suffix, rows_per_source=rows)
    if len(scores) > 1:
        scores["all together"] = overall(scores)
    if as_json:
        typer.echo(json.dumps({name: {**asdict(one), "bits_per_byte": one.bits_per_byte} for name, one in scores.items()}))
        return
    table = Table(box=box.SIMPLE_HEAD, title=f"{run}: suffixes of {suffix} tokens given prefixes", title_justify="left")
    table.add_column("source")
    for name in ("bits per byte", "nats per token", "tokens", "bytes", "text"):
        table.add_column(name, justify="right")
    for name, one in scores.items():
        cells = f"{one.bits_per_byte:.4f}", f"{one.loss:.4f}", f"{one.target_tokens:,}", f"{one.target_bytes:,}"
        table.add_row(name, *cells, one.text_sha256[:8])
    Console().print(table)
