"""`fnet-t5 tokenizer`: train a tokenizer for datasets and models."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from launch.cli.arguments import ManyValuesCommand, listed

EXAMPLE = "Example: fnet-t5 tokenizer train --input data/raw/*.jsonl.zst --vocab-size 32000 --output data/tokenizer.json"


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    group = typer.Typer(help="Train a tokenizer.", no_args_is_help=True, epilog=EXAMPLE)
    group.command(cls=ManyValuesCommand, epilog=EXAMPLE, no_args_is_help=True)(train)
    # Without a callback, typer would replace the group by its only command.
    group.callback()(_group)
    app.add_typer(group, name="tokenizer")


def _group() -> None:
    pass


def train(
    input: Annotated[list[str], typer.Option(metavar="GLOB...", help="Raw text in any format that prepare reads.")],
    vocab_size: Annotated[int, typer.Option(help="Number of ids, specials and 100 sentinels included.")],
    output: Annotated[Path, typer.Option(help="Path of the tokenizer.json to write.", dir_okay=False)],
) -> None:
    """Train byte-level BPE with <pad>, </s>, <unk> and T5's 100 sentinels on a sample of the input."""
    from rich.console import Console

    from data_prep.tokenization.tokenizer import num_ids, train_tokenizer_on_files

    if output.exists():
        raise ValueError(f"{output} exists, and datasets may depend on it: delete it or give another --output")
    typer.echo(f"Training a byte-level BPE of {vocab_size:,} ids on {listed(input)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with Console().status("reading text and training"):
        made = train_tokenizer_on_files(input, vocab_size, output)
    seconds = time.perf_counter() - begin
    typer.echo(f"{output}: {num_ids(made):,} ids in {seconds:.1f} s")
