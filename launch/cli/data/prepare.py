"""`fnet-t5 prepare`: raw text to a packed dataset folder."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from launch.cli.arguments import ManyValuesCommand, Overrides, listed

EXAMPLE = "Example: fnet-t5 prepare --input data/raw/train/*.jsonl.zst --output data/pile --workers 8 vocab_size=32000"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(cls=ManyValuesCommand, epilog=EXAMPLE, no_args_is_help=True)(prepare)


def prepare(
    input: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB...",
            help="Paths, URLs or datasets://NAME: .jsonl(.zst|.gz|.xz), .parquet, .txt.",
            show_default=False,
        ),
    ] = None,
    val: Annotated[
        list[str] | None, typer.Option(metavar="GLOB...", help="Files for validation. Default: documents by hash.")
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(metavar="GLOB...", help="Files for the final test. Default: documents by hash.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Dataset folder to make.", show_default=False)] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer.json. Default: train one on the input.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes; change no byte of the output.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split by hash.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster. Default: start one here.")] = None,
    config: Annotated[str | None, typer.Option(metavar="YAML", help="Recipe with any of these settings, and more.")] = None,
    overrides: Overrides = None,
) -> None:
    """Tokenize and pack raw text with Ray workers into a folder that training reads, with a manifest over every file.

    Run again, it leaves a finished folder alone and goes on with an unfinished one from the units that are done.
    """
    from rich.console import Console

    from data_prep.config import PrepareConfig
    from data_prep.dataset.manifest import MANIFEST_FILE, QUARANTINE_FILE
    from data_prep.prepare import prepare as run
    from data_prep.tokenization.tokenizer import TOKENIZER_FILE
    from launch.cli.data import dataset_tables as tables
    from launch.config import load_config
    from launch.prepare.peak_memory import PeakMemory
    from launch.prepare.progress_bar import preparation_bar

    given = {
        "input": input or None,
        "val": val or None,
        "test": test or None,
        "output": output,
        "tokenizer": tokenizer,
        "workers": workers,
        "seed": seed,
        "ray_address": ray_address,
    }
    resolved = load_config(PrepareConfig, config, overrides or [], given, kind="data")
    vocabulary = (
        f"tokenizer {resolved.tokenizer}" if resolved.tokenizer else f"a new tokenizer of up to {resolved.vocab_size:,} ids"
    )
    rows = " and ".join(str(length) for length in resolved.packing.lengths)
    typer.echo(f"Preparing {listed(resolved.input)} into {resolved.output}")
    typer.echo(f"with {vocabulary}, in rows of {rows} tokens; worker processes: {resolved.workers}")
    console = Console()
    finished_before = (resolved.output / MANIFEST_FILE).exists()
    with PeakMemory() as memory, preparation_bar(console) as listener:
        manifest = run(resolved, listener, shlex.join(["fnet-t5", *sys.argv[1:]]))
    if finished_before:
        typer.echo(f"{resolved.output} is already made of this input with these settings: left as it is.")
    for table in (*tables.sources(manifest), tables.packing(manifest)):
        console.print(table)
    if not resolved.tokenizer:
        typer.echo(f"Tokenizer: {manifest.tokenizer.vocab_size:,} ids, in {resolved.output / TOKENIZER_FILE}")
    if manifest.rejected:
        typer.echo(f"Rejected: {tables.rejections(manifest)} (see {resolved.output / QUARANTINE_FILE})")
    for reason in manifest.skipped_inputs.values():
        typer.echo(f"Left out: {reason}")
    for note in manifest.notes:
        typer.echo(f"Note: {note}")
    typer.echo(tables.reconciliation(manifest))
    if not finished_before and "resume" not in manifest.stage_seconds:
        seconds = sum(manifest.stage_seconds.values())
        rate = sum(record.total.bytes for record in manifest.splits.values()) / seconds / 1e6
        peak = f"; peak memory of all processes here {memory.peak_bytes / 2**30:.1f} GiB" if memory.peak_bytes else ""
        typer.echo(f"{seconds:,.0f} s, {rate:,.1f} MB of text a second with everything in it{peak}")
    typer.echo(f"Look inside: fnet-t5 data inspect {resolved.output}")
