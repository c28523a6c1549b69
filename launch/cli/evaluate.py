"""`fnet-t5 evaluate`: the losses of a checkpoint on validation rows, in one process."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.arguments import CheckpointStep, Run

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.eval.evaluate import InputReport

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

    Encoder inputs are swapped between rows: a decoder that uses its encoder then has a higher loss. A second table shows if the
    model uses its input: the losses with shuffled and without encoder input, and those of n-gram tables (floors).
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pipeline.eval.evaluate import evaluate_input_use

    if sources:
        _print_sources(run, step, as_json=as_json, prefix=prefix, suffix=suffix, rows=rows)
        return
    report = evaluate_input_use(run, step)
    result = report.evaluation
    if as_json:
        typer.echo(json.dumps({**asdict(result), **_input_use_json(report)}))
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
    Console().print(_input_use_table(report))


def _input_use_json(report: InputReport) -> dict[str, object]:
    use = report.input_use
    return {"input_use": None if use is None else asdict(use), "floors": asdict(report.floors)}


def _input_use_table(report: InputReport) -> Table:
    """The losses with manipulated encoder inputs and of n-gram tables, each with its difference to the model's loss."""
    from rich import box
    from rich.table import Table

    model, use, floors = report.token_loss, report.input_use, report.floors
    table = Table(box=box.SIMPLE_HEAD, title="Does the model use its input?", title_justify="left")
    for name in ("nats per target token", "loss", "difference", ""):
        table.add_column(name, justify="right" if name in ("loss", "difference") else "left")
    table.add_row("model", f"{model:.4f}", "", "")
    if use is not None and report.evaluation.swapped_loss is not None:
        for name, loss in (
            ("encoder input of another row", report.evaluation.swapped_loss),
            ("its tokens shuffled in the row", use.shuffled_loss),
            ("its first half shuffled", use.far_half_shuffled_loss),
            ("no encoder input", use.no_input_loss),
        ):
            table.add_row(name, f"{loss:.4f}", f"{loss - model:+.4f}", "")
    for name, loss in (
        ("floor: unigram", floors.unigram_loss),
        ("floor: bigram", floors.bigram_loss),
        ("floor: trigram", floors.trigram_loss),
    ):
        table.add_row(name, f"{loss:.4f}", f"{loss - model:+.4f}", f"{'worse' if loss > model else 'better'} than the model")
    return table


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
