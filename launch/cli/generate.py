"""`fnet-t5 generate`: a run's model continues a text, token by token."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "Example: echo 'The Fourier transform' | fnet-t5 generate runs/demo/run --temperature 0.8 --top-k 40"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EXAMPLE, no_args_is_help=True)(generate)


def generate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    prompt: Annotated[str | None, typer.Option(help="Text to continue. Default: standard input.")] = None,
    file: Annotated[Path | None, typer.Option(help="File with the text to continue.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the smallest set of tokens with this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    step: Annotated[int | None, typer.Option(help="Checkpoint to use. Default: the latest.")] = None,
) -> None:
    """Continue a text. The encoder reads its last tokens, the decoder writes on."""
    from data_prep.tokenizer import TOKENIZER_FILE, load_tokenizer
    from models.generation import Sampling
    from pipeline.evaluate import load_model
    from pipeline.write_text import write_text

    if prompt is not None and file is not None:
        raise ValueError("--prompt and --file both give the text: leave one out")
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    if file is not None:
        prompt = file.read_text(encoding="utf-8")
    text = sys.stdin.read() if prompt is None else prompt
    model, config, _ = load_model(run, step)
    tokenizer = load_tokenizer(run / TOKENIZER_FILE)
    for piece in write_text(model, tokenizer, text, config.data.encoder_length, sampling):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
