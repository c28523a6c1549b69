"""`fnet-t5 prepare`: raw text to a packed dataset folder."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.arguments import ManyValuesCommand, Overrides, listed

if TYPE_CHECKING:  # imported late below, so that `--help` stays fast
    from rich.console import Console

    from data_prep.config import PrepareConfig
    from data_prep.dataset.manifest import Manifest

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
        list[str] | None, typer.Option(metavar="GLOB...", help="Validation files. Default: documents chosen by a hash.")
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(metavar="GLOB...", help="Test files. Default: documents chosen by a hash.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Dataset folder to make.", show_default=False)] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="Finished dataset folder to add the input to: --output begins with its documents. It is not changed."
        ),
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer.json, or bytes. Default: train one.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes. The output does not depend on it.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the split by hash and of the mixture.")] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Address of a running Ray cluster. Default: start Ray on this machine.")
    ] = None,
    config: Annotated[str | None, typer.Option(metavar="YAML", help="Recipe with any of these and further settings.")] = None,
    overrides: Overrides = None,
) -> None:
    """Tokenize and pack raw text with Ray workers into a dataset folder, with a manifest of every file.

    Rerun the same command to resume an unfinished folder from its committed units. A finished folder is left as it is.
    """
    from data_prep.config import PrepareConfig
    from launch.config import load_config
    from launch.prepare.ending import output_may_be_closed

    options = {
        "input": input or None,
        "val": val or None,
        "test": test or None,
        "output": output,
        "base": base,
        "tokenizer": tokenizer,
        "workers": workers,
        "seed": seed,
        "ray_address": ray_address,
    }
    resolved = load_config(PrepareConfig, config, overrides or [], options, kind="data")
    with output_may_be_closed():
        _run(resolved)


def _run(config: PrepareConfig) -> None:
    from rich.console import Console

    from data_prep.dataset.manifest import MANIFEST_FILE
    from data_prep.prepare import prepare as run
    from launch.prepare.ending import one_line_when_interrupted, one_line_when_killed
    from launch.prepare.peak_memory import PeakMemory
    from launch.prepare.progress_bar import preparation_bar

    _print_plan(config)
    console = Console()
    finished_before = (config.output / MANIFEST_FILE).exists()
    with one_line_when_killed(), one_line_when_interrupted(), PeakMemory() as memory, preparation_bar(console) as listener:
        manifest = run(config, listener, shlex.join(["fnet-t5", *sys.argv[1:]]))
    if finished_before:
        typer.echo(f"{config.output} was already made from this input with these settings: nothing to do.")
    _print_result(config, manifest, console)
    if not finished_before and "resume" not in manifest.stage_seconds:
        _print_speed(manifest, memory.peak_bytes)
    typer.echo(f"Look inside: fnet-t5 data inspect {config.output}")


def _print_plan(config: PrepareConfig) -> None:
    from data_prep.units.base_dataset import with_settings_of_base

    tokenizer = f"a new tokenizer of up to {config.vocab_size:,} ids"
    if config.tokenizer or config.base:
        tokenizer = f"tokenizer {config.tokenizer}" if config.tokenizer else f"the tokenizer of {config.base}"
    settings = with_settings_of_base(config) if config.base else config
    rows = " and ".join(str(length) for length in settings.packing.lengths)
    typer.echo(f"Preparing {listed(config.input)} into {config.output}")
    if config.base:
        typer.echo(f"which begins with the documents of {config.base}; only inputs that are not in it are read;")
    typer.echo(f"with {tokenizer}, in rows of {rows} tokens; worker processes: {config.workers}")


def _print_result(config: PrepareConfig, manifest: Manifest, console: Console) -> None:
    """Tables of the dataset, and what was rejected, skipped or noted."""
    from data_prep.dataset.manifest import QUARANTINE_FILE
    from data_prep.tokenization.tokenizer import TOKENIZER_FILE
    from launch.cli.data import dataset_tables as tables

    for table in (*tables.sources(manifest), tables.packing(manifest)):
        console.print(table)
    if manifest.appends:
        typer.echo(tables.appended(manifest.appends[-1]))
    if not config.tokenizer:
        typer.echo(f"Tokenizer: {manifest.tokenizer.vocab_size:,} ids, in {config.output / TOKENIZER_FILE}")
    if manifest.rejected:
        typer.echo(f"Rejected: {tables.rejections(manifest)} (see {config.output / QUARANTINE_FILE})")
    for reason in manifest.skipped_inputs.values():
        typer.echo(f"Skipped: {reason}")
    for note in manifest.notes:
        typer.echo(f"Note: {note}")
    typer.echo(tables.reconciliation(manifest))


def _print_speed(manifest: Manifest, peak_bytes: int) -> None:
    seconds = sum(manifest.stage_seconds.values())
    made = manifest.appends[-1].splits if manifest.appends else {name: record.total for name, record in manifest.splits.items()}
    rate = sum(counts.bytes for counts in made.values()) / seconds / 1e6
    peak = f"; peak memory of all processes on this machine {peak_bytes / 2**30:.1f} GiB" if peak_bytes else ""
    typer.echo(f"{seconds:,.0f} s, {rate:,.1f} MB of text per second in total{peak}")
