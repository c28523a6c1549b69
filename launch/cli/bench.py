"""`fnet-t5 bench`: arms side by side on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.cli.arguments import ManyValuesCommand

if TYPE_CHECKING:
    from launch.bench.inference_plan import InferencePlan
    from launch.bench.inference_record import InferenceRecord

INFERENCE_EXAMPLE = (
    "Example: fnet-t5 bench inference --size t5-v1.1-small --prefix 128 512 2048 --new 32 --batch 1 --output inference.json\n\n"
    "On a GPU: fnet-t5 bench inference --size t5-v1.1-base --device cuda --precision bf16 --output inference.json"
)


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    group = typer.Typer(
        help="Measure arms side by side on this machine.",
        no_args_is_help=True,
        epilog="Example: fnet-t5 bench inference --size demo --vocabulary 2048 --prefix 128 --new 16 --batch 1",
    )
    group.command(cls=ManyValuesCommand, epilog=INFERENCE_EXAMPLE)(inference)
    app.add_typer(group, name="bench")

    @group.callback()
    def bench() -> None:  # a group of one command would otherwise be that command
        pass


def inference(
    size: Annotated[str, typer.Option(help="Of the T5 that the hybrid and the GPT-2 are matched to.")] = "t5-v1.1-small",
    prefix: Annotated[list[int] | None, typer.Option(help="Tokens given. Default: 128 512 2048 4096.")] = None,
    new: Annotated[list[int] | None, typer.Option(help="New tokens. Default: 32 256.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Texts written at a time. Default: 1 16.")] = None,
    most_tokens: Annotated[
        int | None, typer.Option(min=1, help="Leave out what has more tokens of prefix in the batch than this.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32 or bf16: of weights and caches.")] = "fp32",
    rounds: Annotated[int, typer.Option(help="Every arm once a round; medians over rounds.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch on the CPU. Default: torch's choice.")] = None,
    vocabulary: Annotated[int, typer.Option(help="Token ids. Default: T5's.")] = 32128,
    encoder_length: Annotated[int, typer.Option(help="Raw tokens encoded of the training row whose compute is equal.")] = 512,
    decoder_length: Annotated[int, typer.Option(help="Raw tokens decoded of it.")] = 128,
    backend: Annotated[str, typer.Option(help="Of the Fourier transform: fft, matmul, folded, or auto.")] = "fft",
    output: Annotated[Path | None, typer.Option(help="JSON file for all records (docs/inference.md describes it).")] = None,
    report: Annotated[Path | None, typer.Option(help="Markdown file for the tables.")] = None,
) -> None:
    """Hybrid, T5 and GPT-2 of equal parameters and of equal training compute: first token, following tokens, memory.

    Weights and prefixes are random, writing is greedy and never stops early, caches are on both sides.
    """
    import torch
    from rich.console import Console

    from launch.bench.inference import measure
    from launch.bench.inference_plan import InferencePlan
    from launch.bench.inference_record import markdown, write_records
    from launch.bench.machine import machine
    from models.cost.flops import Lengths

    given: dict[str, Any] = {"prefixes": prefix, "new_tokens": new, "batches": batch}
    plan = InferencePlan(
        size=size,
        **{name: tuple(values) for name, values in given.items() if values},
        most_tokens=most_tokens,
        device=device,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        rounds=rounds,
        vocab_size=vocabulary,
        training_row=Lengths(encoder_length, decoder_length),
        fourier_backend=backend,  # type: ignore[arg-type]
    )
    if threads is not None:
        torch.set_num_threads(threads)
    for path in (output, report):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    _announce(console, plan, machine(device))
    records: list[InferenceRecord] = []
    for number, found in enumerate(measure(plan), 1):
        records += found
        if output is not None:  # after every cell, so that a run that is ended keeps what it has
            write_records(output, records)
        console.print(f"{number} of {len(plan.cells)}: batch {found[0].batch}, prefix {found[0].prefix}")
    if report is not None:
        report.write_text(f"{machine(device)}; median of {rounds} rounds.\n\n{markdown(records)}", encoding="utf-8")
    _show(console, records)


def _announce(console: Any, plan: InferencePlan, machine: str) -> None:
    row = plan.training_row
    console.print(
        f"{machine}; {plan.precision}, {plan.rounds} rounds; random weights and prefixes, greedy; "
        f"training row {row.encoder} + {row.decoder} tokens"
    )
    for one in plan.models():
        console.print(
            f"  {one.pairing.replace('_', ' ')}: {one.name}, {one.config.shape}, "
            f"{one.parameters / 1e6:,.1f} M parameters, {one.training_flops / 1e9:,.1f} GFLOP a row ({one.mismatch:+.2%})"
        )
    if plan.left_out:
        console.print(f"  left out by --most-tokens: {', '.join(f'{batch} x {prefix}' for batch, prefix in plan.left_out)}")


def _show(console: Any, records: list[InferenceRecord]) -> None:
    from rich import box
    from rich.table import Table

    from launch.bench.inference_record import columns, tables

    for title, rows in tables(records):
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
        for name in columns(records):
            table.add_column(name, justify="left" if name in ("arm", "shape") else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print("ms of the whole batch a token; GFLOP of one row; MB: what a following token must read, weights, caches.")
