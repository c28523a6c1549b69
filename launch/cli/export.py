"""`fnet-t5 export`: a run's model as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.arguments import CheckpointStep, Run

EXAMPLE = "Example: fnet-t5 export runs/demo/run --output exported/demo"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EXAMPLE, no_args_is_help=True)(export)


def export(
    run: Run,
    output: Annotated[Path | None, typer.Option(help="New folder. Default: RUN/export.")] = None,
    step: CheckpointStep = None,
) -> None:
    """Export a run for `transformers`: safetensors, configuration, tokenizer and model card.

    `transformers` loads the folder without this package.
    """
    from pipeline.huggingface.export import export_run

    folder = output or run / "export"
    config = export_run(run, folder, step)
    typer.echo(f"{config.architecture} {config.size} is in {folder}; load it with")
    auto = "AutoModelForCausalLM" if config.is_decoder_only else "AutoModelForSeq2SeqLM"
    if config.is_encoder_only:
        auto = "AutoModelForPreTraining" if "order" in config.heads else "AutoModelForMaskedLM"
    trust = ", trust_remote_code=True" if config.architecture == "fnet_t5" else ""
    typer.echo(f"  transformers.{auto}.from_pretrained({str(folder)!r}{trust})")
