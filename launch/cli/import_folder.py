"""`fnet-t5 import`: a downloaded FNet checkpoint as the encoder of a hybrid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "Example: fnet-t5 import downloads/fnet-base --output imported/fnet-base --decoder-layers 6"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(name="import", epilog=EXAMPLE, no_args_is_help=True)(import_folder)


def import_folder(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Checkpoint of an FNet: config.json, and safetensors or pytorch_model.bin.")
    ],
    output: Annotated[Path, typer.Option(help="New folder for the hybrid's weights.")],
    vocab_size: Annotated[
        int | None, typer.Option(help="Vocabulary size of your tokenizer. Default: the checkpoint's.", min=1)
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Encoder length. Default: the checkpoint's.", min=1)] = None,
    decoder_layers: Annotated[
        int | None, typer.Option(help="Layers of the new decoder. Default: as many as the encoder has.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the new weights.")] = 0,
) -> None:
    """Make a hybrid with the encoder of an FNet checkpoint, and report each tensor as used, resized or skipped."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pipeline.huggingface.import_fnet import MODEL, REPORT, import_fnet

    report = import_fnet(folder, output, vocab_size=vocab_size, max_length=max_length, decoder_layers=decoder_layers, seed=seed)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("checkpoint")
    table.add_column("")
    table.add_column("hybrid")
    for name, ours in report.used.items():
        table.add_row(name, "used", ours)
    for name, ours in report.resized.items():
        table.add_row(name, "resized", ours)
    for name, reason in report.left.items():
        table.add_row(name, "skipped", reason)
    Console().print(table)
    counts = f"{len(report.used)} tensors used, {len(report.resized)} resized, {len(report.left)} skipped"
    typer.echo(f"{counts}; {len(report.fresh)} tensors of the hybrid are new.")
    typer.echo(f"Weights, {MODEL} (a recipe's model section) and {REPORT} are in {output}.")
