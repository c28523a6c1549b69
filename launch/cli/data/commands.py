"""`fnet-t5 data`: verify, inspect, count, repack and merge dataset folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Dataset folder made by `fnet-t5 prepare`.")]
INSPECT_EXAMPLE = (
    "Example: fnet-t5 data inspect data/pile --split val --rows 5\n\n"
    "As model input: fnet-t5 data inspect data/pile --objective span_corruption noise_density=0.3"
)


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    group = typer.Typer(
        help="Verify, inspect, count, repack and merge dataset folders.",
        no_args_is_help=True,
        epilog="Example: fnet-t5 data inspect data/pile",
    )
    group.command(epilog="Example: fnet-t5 data verify data/pile", no_args_is_help=True)(verify)
    group.command(epilog=INSPECT_EXAMPLE, no_args_is_help=True)(inspect)
    group.command(epilog="Example: fnet-t5 data stats data/pile", no_args_is_help=True)(stats)
    group.command(epilog="Example: fnet-t5 data pack data/pile 1024 2048", no_args_is_help=True)(pack)
    group.command(epilog="Example: fnet-t5 data merge data/a data/b --output data/both", no_args_is_help=True)(merge)
    app.add_typer(group, name="data")


def verify(folder: Folder) -> None:
    """Check every file against the checksums in the manifest. Exit code 1 if anything differs."""
    from data_prep.dataset.manifest import load_manifest
    from data_prep.dataset.manifest import verify as problems_of

    problems = problems_of(folder)
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    if problems:
        raise typer.Exit(1)
    files = load_manifest(folder).files
    num_bytes = sum(record.bytes for record in files.values())
    typer.echo(f"{folder}: {len(files)} files, {num_bytes / 1e6:,.1f} MB, all checksums match")


def inspect(
    folder: Folder,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the objective.", show_default=False)
    ] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    rows: Annotated[int, typer.Option(min=1, help="Number of rows to show.")] = 3,
    row_length: Annotated[int | None, typer.Option(help="Row length in tokens. Default: the shortest one.")] = None,
    seed: Annotated[int, typer.Option(help="Seed for choosing the rows.")] = 0,
    objective: Annotated[
        str | None,
        typer.Option(
            help="Show the input and targets of: prefix_lm, causal_lm, span_corruption, text_infilling, ul2 or masked_lm."
        ),
    ] = None,
    encoder_length: Annotated[int, typer.Option(help="With --objective.", min=2)] = 512,
    decoder_length: Annotated[
        int | None, typer.Option(help="With --objective. Default: the length that the objective needs.")
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(help="With --objective: the model architecture, such as gpt2. Default: one that the objective can train."),
    ] = None,
) -> None:
    """Show packed rows decoded to text, or, with --objective, as the input and targets of a model."""
    from rich.console import Console
    from rich.text import Text

    from data_prep.dataset.manifest import load_manifest
    from data_prep.dataset.preview import sample_rows

    manifest = load_manifest(folder)
    if split not in manifest.splits:
        raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(manifest.splits)}")
    if objective is not None:
        from launch.cli.data.objective_examples import print_examples

        print_examples(
            folder, split, objective, settings or [], encoder_length, decoder_length, architecture, rows=rows, seed=seed
        )
        return
    if settings:
        raise ValueError(f"{' '.join(settings)} are settings of an objective: add --objective")
    lengths = [index.row_length for index in manifest.splits[split].packing]
    if row_length is not None and row_length not in lengths:
        raise ValueError(f"{folder} has no rows of {row_length} tokens; it has {', '.join(map(str, lengths))}")
    console = Console()
    for sample in sample_rows(folder, split, row_length or lengths[0], rows, seed):
        pieces = "1 piece" if len(sample.pieces) == 1 else f"{len(sample.pieces)} pieces"
        console.rule(f"{split} row {sample.row}: {sample.num_tokens} of {row_length or lengths[0]} tokens, {pieces}")
        for number, piece in enumerate(sample.pieces):
            if number:
                console.rule(style="dim", characters="·")
            console.print(Text(piece))


def stats(
    folder: Folder,
    plot: Annotated[Path | None, typer.Option(help="Plot document lengths by source to this .png or .svg file.")] = None,
) -> None:
    """Print tables: documents and tokens by source, lengths, packing, time by stage, rejected records."""
    from rich.console import Console

    from data_prep.dataset.manifest import load_manifest
    from launch.cli.data import dataset_tables as tables

    manifest = load_manifest(folder)
    console = Console()
    for table in (
        *tables.sources(manifest),
        *tables.lengths(manifest),
        tables.packing(manifest),
        *([tables.stages(manifest)] if manifest.stage_seconds else []),
    ):
        console.print(table)
    if plot is not None:
        from launch.cli.data.length_plot import draw_lengths

        draw_lengths(manifest, plot)
        typer.echo(f"Document lengths plotted to {plot}")
    num_bytes = sum(record.bytes for record in manifest.inputs)
    tokenizer = manifest.tokenizer
    lines = [
        f"Input: {len(manifest.inputs)} files, {num_bytes / 1e6:,.1f} MB; {manifest.blank_lines:,} blank lines",
        f"Tokenizer: {tokenizer.vocab_size:,} ids, sha256 {tokenizer.sha256[:12]}…; tokens stored as {manifest.token_dtype}",
        f"Tokenized by: {manifest.engine.name}, {manifest.engine.checked_documents:,} documents checked against the reference",
        f"Units: {manifest.units:,}, repeated after a crash: {manifest.retokenized_units:,}",
        *map(tables.appended, manifest.appends),
        tables.reconciliation(manifest),
        f"Rejected: {tables.rejections(manifest)}",
        f"Made by: {manifest.command or 'a Python program'}",
    ]
    for line in lines:
        typer.echo(line)


def pack(
    folder: Folder,
    lengths: Annotated[list[int], typer.Argument(metavar="LENGTH...", help="Row lengths in tokens.", min=1)],
    method: Annotated[str, typer.Option(help="best_fit, concatenate or document.")] = "best_fit",
) -> None:
    """Add row indexes of further lengths. The tokens are not changed."""
    from rich.console import Console

    from data_prep.config import PackingConfig
    from data_prep.dataset.repack import pack_folder
    from launch.cli.data import dataset_tables as tables

    wanted = PackingConfig.model_validate({"lengths": lengths, "method": method})
    Console().print(tables.packing(pack_folder(folder, wanted.lengths, wanted.method)))


def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Finished folders with the same tokenizer.")],
    output: Annotated[Path, typer.Option(help="Dataset folder to make.")],
    lengths: Annotated[list[int] | None, typer.Option(help="Row lengths. Default: those of the first folder.")] = None,
) -> None:
    """Merge the documents of several folders, in the given order, and pack them again."""
    import shlex
    import sys

    from rich.console import Console

    from data_prep.config import PackingConfig
    from data_prep.dataset.manifest import load_manifest
    from data_prep.dataset.merge import merge as merge_folders
    from launch.cli.data import dataset_tables as tables

    first = next(iter(load_manifest(folders[0]).splits.values())).packing
    packing = PackingConfig.model_validate(
        {"lengths": lengths or [record.row_length for record in first], "method": first[0].method}
    )
    manifest = merge_folders(folders, output, packing, shlex.join(["fnet-t5", *sys.argv[1:]]))
    for table in tables.sources(manifest):
        Console().print(table)
