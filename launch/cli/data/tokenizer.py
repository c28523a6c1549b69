"""`fnet-t5 tokenizer`: train a tokenizer for datasets and models, or write the one of bytes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from launch.cli.arguments import ManyValuesCommand, listed

EXAMPLE = "Example: fnet-t5 tokenizer train --input data/raw/*.jsonl.zst --vocab-size 32000 --output data/tokenizer.json"

BYTES_EXAMPLE = "Example: fnet-t5 tokenizer bytes --output data/bytes.json"


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    group = typer.Typer(help="Train a tokenizer, or write the one of bytes.", no_args_is_help=True, epilog=EXAMPLE)
    group.command(cls=ManyValuesCommand, epilog=EXAMPLE, no_args_is_help=True)(train)
    group.command(name="bytes", epilog=BYTES_EXAMPLE, no_args_is_help=True)(write_bytes)
    app.add_typer(group, name="tokenizer")


def train(
    input: Annotated[list[str], typer.Option(metavar="GLOB...", help="Raw text in any format that prepare reads.")],
    vocab_size: Annotated[int, typer.Option(help="Number of ids, specials and 100 sentinels included.")],
    output: Annotated[Path, typer.Option(help="Path of the tokenizer.json to write.", dir_okay=False)],
) -> None:
    """Train byte-level BPE with <pad>, </s>, <unk> and T5's 100 sentinels on a sample of the input."""
    from rich.console import Console

    from data_prep.tokenization.tokenizer import num_ids, train_tokenizer_on_files
    from launch.prepare.ending import one_line_when_interrupted

    _check_new(output)
    typer.echo(f"Training a byte-level BPE of {vocab_size:,} ids on {listed(input)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with one_line_when_interrupted(), Console().status("reading text and training"):
        made = train_tokenizer_on_files(input, vocab_size, output)
    seconds = time.perf_counter() - begin
    typer.echo(f"{output}: {num_ids(made):,} ids in {seconds:.1f} s")


def write_bytes(
    output: Annotated[Path, typer.Option(help="Path of the tokenizer.json to write.", dir_okay=False)],
) -> None:
    """Write the tokenizer of bytes: <pad>, </s>, <unk>, one id for each of the 256 bytes (3 + byte), T5's 100 sentinels.

    It needs no text. `fnet-t5 prepare --tokenizer bytes` uses the same tokenizer without a file.
    """
    from data_prep.tokenization.tokenizer import byte_tokenizer, num_ids, save_tokenizer

    _check_new(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    made = byte_tokenizer()
    save_tokenizer(made, output)
    typer.echo(f"{output}: {num_ids(made):,} ids, one for each byte")


def _check_new(output: Path) -> None:
    if output.exists():
        raise ValueError(f"{output} exists, and datasets may depend on it: delete it or give another --output")
