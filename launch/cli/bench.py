"""`fnet-t5 bench`: models benchmarked against each other on this machine."""

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
        help="Benchmark models against each other on this machine.",
        no_args_is_help=True,
        epilog="Example: fnet-t5 bench inference --size demo --vocabulary 2048 --prefix 128 --new 16 --batch 1",
    )
    group.command(cls=ManyValuesCommand, epilog=INFERENCE_EXAMPLE)(inference)
    app.add_typer(group, name="bench")

    @group.callback()
    def bench() -> None:  # typer makes a group of one command that command
        pass


def inference(
    size: Annotated[str, typer.Option(help="Size of the T5 that hybrid and GPT-2 are matched to.")] = "t5-v1.1-small",
    prefix: Annotated[list[int] | None, typer.Option(help="Prefix lengths in tokens. Default: 128 512 2048 4096.")] = None,
    new: Annotated[list[int] | None, typer.Option(help="Numbers of new tokens. Default: 32 256.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes. Default: 1 16.")] = None,
    most_tokens: Annotated[
        int | None, typer.Option(min=1, help="Skip cells with more prefix tokens than this in the whole batch.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="Precision of weights and caches: fp32 or bf16.")] = "fp32",
    rounds: Annotated[int, typer.Option(help="Rounds, in each of which every model runs once; times are medians.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of torch. Default: torch's choice.")] = None,
    vocabulary: Annotated[int, typer.Option(help="Vocabulary size. Default: T5's.")] = 32128,
    encoder_length: Annotated[int, typer.Option(help="Encoder tokens of the training row for equal compute.")] = 512,
    decoder_length: Annotated[int, typer.Option(help="Decoder tokens of the training row for equal compute.")] = 128,
    backend: Annotated[str, typer.Option(help="Backend of the Fourier transform: fft, matmul, folded, or auto.")] = "fft",
    output: Annotated[Path | None, typer.Option(help="JSON file for all records (docs/inference.md describes it).")] = None,
    report: Annotated[Path | None, typer.Option(help="Markdown file for the tables.")] = None,
) -> None:
    """Benchmark hybrid, T5 and GPT-2 of equal parameters and of equal training compute: first token, next tokens, memory.

    Weights and prefixes are random, decoding is greedy with caches for all models, and no text ends early.
    """
    import torch

    from launch.bench.inference_plan import InferencePlan
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
    _run(plan, output, report)


def _run(plan: InferencePlan, output: Path | None, report: Path | None) -> None:
    """Measure a plan, show its tables and write its files."""
    from rich.console import Console

    from launch.bench.inference import measure
    from launch.bench.inference_record import markdown, write_records
    from launch.bench.machine import machine

    for path in (output, report):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    _announce(console, plan, machine(plan.device))
    records: list[InferenceRecord] = []
    for number, found in enumerate(measure(plan), 1):
        records += found
        if output is not None:  # after every cell: an interrupted benchmark keeps its records
            write_records(output, records)
        console.print(f"{number} of {len(plan.cells)}: batch {found[0].batch}, prefix {found[0].prefix}")
    if report is not None:
        report.write_text(f"{machine(plan.device)}; median of {plan.rounds} rounds.\n\n{markdown(records)}", encoding="utf-8")
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
    if plan.skipped:
        console.print(f"  skipped by --most-tokens: {', '.join(f'{batch} x {prefix}' for batch, prefix in plan.skipped)}")


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
    console.print(
        "ms per token of the whole batch; GFLOP of one row; MB that a next token must read, of weights, and of caches."
    )
