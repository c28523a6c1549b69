"""`fnet-t5 plan`: what a recipe needs on a number of GPUs, estimated without running anything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.arguments import Overrides, Recipe

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.config import RunConfig
    from pipeline.planner.hardware import GPU
    from pipeline.planner.plan import Plan

EXAMPLE = "Example: fnet-t5 plan configs/train/demo.yaml --gpus 64 --gpu h100 model.size=t5-v1.1-base --tokens 100e9"
_T5_VOCABULARY = 32128
_TOKENS = 100e9


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EXAMPLE, no_args_is_help=True)(plan)


def plan(
    config: Recipe,
    overrides: Overrides = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Number of GPUs. Default: tensor_parallel × pipeline_parallel.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="GPU type: a100, a100-40g, h100 or h200.")] = "h100",
    tokens: Annotated[
        float | None, typer.Option(help="Token budget for the estimate of time. Default: train.tokens, or 100e9.")
    ] = None,
) -> None:
    """Estimate parameters, FLOPs, stages, memory, communication and time of a recipe, and propose a mesh. Nothing is run.

    Weights, gradients and optimizer state are exact; activations come from shapes, times from published peak speeds.
    """
    from rich.console import Console

    from data_prep.tokenization.tokenizer import TOKENIZER_FILE
    from launch.config import load_run_config
    from pipeline.planner.hardware import gpu as known_gpu
    from pipeline.planner.plan import make_plan, propose

    run_config = _with_vocabulary(load_run_config(config, overrides or []))
    device = known_gpu(gpu)
    mesh = run_config.mesh
    num_gpus = gpus or mesh.tensor_parallel * mesh.pipeline_parallel
    if not (Path(run_config.data.path) / TOKENIZER_FILE).is_file():
        typer.echo(f"{run_config.data.path} is not prepared yet: a vocabulary of {run_config.model.vocab_size:,} is assumed.")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    asked = make_plan(run_config, mesh.data_parallel(num_gpus), device)
    _show(console, run_config, asked, device, tokens or run_config.train.tokens or _TOKENS)
    proposed = propose(run_config, num_gpus, device)
    if proposed.mesh == asked.mesh:
        console.print(f"No other mesh of {num_gpus} {device.name} is estimated to be faster.")
        return
    console.print(
        f"Proposed: mesh.tensor_parallel={proposed.mesh.tensor_parallel} "
        f"mesh.pipeline_parallel={proposed.mesh.pipeline_parallel}{_limit(proposed)} (data {proposed.data_parallel}): "
        f"{proposed.step_seconds:.3g} s a step, MFU {proposed.mfu:.0%}, {proposed.peak_bytes / 1e9:.1f} GB"
    )


def _limit(plan: Plan) -> str:
    limit = plan.mesh.stage_memory_gb
    return "" if limit is None else f" mesh.stage_memory_gb={limit:.0f}"


def _with_vocabulary(config: RunConfig) -> RunConfig:
    """The recipe with the vocabulary size of its data, or of T5 if the data are not prepared yet."""
    from dataclasses import replace

    from data_prep.tokenization.tokenizer import TOKENIZER_FILE

    if (Path(config.data.path) / TOKENIZER_FILE).is_file():
        return config.resolved()
    vocab_size = config.model.vocab_size or _T5_VOCABULARY
    return config.model_copy(update={"model": replace(config.model, vocab_size=vocab_size)})


def _show(console: object, config: RunConfig, plan: Plan, device: GPU, tokens: float) -> None:
    from rich.console import Console

    from pipeline.planner.plan import fits

    assert isinstance(console, Console)
    model, mesh = config.model, plan.mesh
    console.print(
        f"{model.architecture} {model.size}: {plan.num_parameters / 1e6:,.1f} M parameters, "
        f"{plan.flops_per_step / 1e12:,.1f} TFLOP a step of {config.train.global_batch_size} rows "
        f"({config.data.row_length} tokens of text), {config.train.precision}"
    )
    console.print(
        f"{plan.num_gpus} {device.name}: tensor {mesh.tensor_parallel} × pipeline {mesh.pipeline_parallel} × data "
        f"{plan.data_parallel}, {plan.num_micro_batches} micro-batches of {config.train.micro_batch_size} a step"
    )
    console.print(_stage_table(plan))
    if not fits(plan, device):
        console.print(f"This does not fit: a {device.name} has {device.memory_bytes / 1e9:.0f} GB, of which 10 % is reserved.")
    console.print(
        f"Sent by a rank in a step: {plan.tensor_bytes / 1e9:.2f} GB in its tensor group, {plan.pipeline_bytes / 1e9:.2f} GB "
        f"to adjacent stages, {plan.data_bytes / 1e9:.2f} GB among replicas; bubble {plan.bubble:.0%}"
    )
    seconds = tokens / plan.tokens_per_step * plan.step_seconds
    console.print(
        f"Estimate: {plan.step_seconds:.3g} s a step, {plan.tokens_per_step / plan.step_seconds:,.0f} tokens/s, MFU "
        f"{plan.mfu:.0%}; {tokens:.3g} tokens in {seconds / 86400:.3g} days"
    )


def _stage_table(plan: Plan) -> Table:
    """Pieces, parameters, FLOPs and memory of each pipeline stage."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in (
        "stage",
        "pieces",
        "M parameters",
        "FLOPs",
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "GB in total",
    ):
        table.add_column(column, justify="left" if column == "pieces" else "right")
    for number, stage in enumerate(plan.stages):
        gigabytes = (stage.weight_bytes, stage.gradient_bytes, stage.optimizer_bytes, stage.activation_bytes, stage.total_bytes)
        table.add_row(
            str(number),
            f"{stage.first_piece} … {stage.last_piece}",
            f"{stage.num_parameters / 1e6:,.1f}",
            f"{stage.flops_share:.0%}",
            *(f"{value / 1e9:.2f}" for value in gigabytes),
        )
    return table
