"""`fnet-t5 generate`: a run's model continues a text, token by token, or a file of texts, a batch at a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = (
    "Example: echo 'The Fourier transform' | fnet-t5 generate runs/demo/run --temperature 0.8 --top-k 40\n\n"
    "Many at once: fnet-t5 generate runs/demo/run --file prompts.txt --lines --beams 4 > written.jsonl"
)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EXAMPLE, no_args_is_help=True)(generate)


def generate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    prompt: Annotated[str | None, typer.Option(help="Text to continue. Default: standard input.")] = None,
    file: Annotated[Path | None, typer.Option(help="File with the text to continue.")] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Every line with text is a prompt; one JSON object each.")] = False,
    batch_size: Annotated[int, typer.Option(help="Prompts written at a time with --lines.", min=1)] = 16,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the smallest set of tokens with this probability.")] = 1.0,
    beams: Annotated[int, typer.Option(help="Beam search with so many beams; 1 is none.")] = 1,
    length_penalty: Annotated[float, typer.Option(help="Of beam search: above 0 favours longer texts.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="A token that ends the text, besides the end of text.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    step: Annotated[int | None, typer.Option(help="Checkpoint to use. Default: the latest.")] = None,
) -> None:
    """Continue a text. A model reads its last data.encoder_length tokens and writes on.

    One trained on spans (span_corruption, ul2) writes the spans that sentinels stand for; it does not continue a text.
    """
    from data_prep.tokenization.tokenizer import TOKENIZER_FILE, load_tokenizer
    from models.generation.sampling import Sampling
    from pipeline.eval.evaluate import load_model
    from pipeline.eval.generate import stop_ids, write_text, write_texts

    if prompt is not None and file is not None:
        raise ValueError("--prompt and --file both give the text: leave one out")
    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        num_beams=beams,
        length_penalty=length_penalty,
    )
    if file is not None:
        prompt = file.read_text(encoding="utf-8")
    text = sys.stdin.read() if prompt is None else prompt
    model, config, _ = load_model(run, step)
    tokenizer = load_tokenizer(run / TOKENIZER_FILE)
    stops = stop_ids(tokenizer, stop or [])
    encoder_length = config.data.encoder_length
    if lines:
        prompts = [line for line in text.splitlines() if line.strip()]
        if not prompts:
            raise ValueError("--lines: there is no line with text")
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            for given, written in zip(
                batch, write_texts(model, tokenizer, batch, encoder_length, sampling, stops), strict=True
            ):
                sys.stdout.write(json.dumps({"prompt": given, "text": written}, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        return
    for piece in write_text(model, tokenizer, text, encoder_length, sampling, stops):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
