"""`fnet-t5 generate`: a run's model continues a text, token by token, or a file of texts, a batch at a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.arguments import CheckpointStep, Run

if TYPE_CHECKING:
    from models.generation.sampling import Sampling

EXAMPLE = (
    "Example: echo 'The Fourier transform' | fnet-t5 generate runs/demo/run --temperature 0.8 --top-k 40\n\n"
    "Many prompts: fnet-t5 generate runs/demo/run --file prompts.txt --lines --beams 4 > written.jsonl"
)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EXAMPLE, no_args_is_help=True)(generate)


def generate(
    run: Run,
    prompt: Annotated[str | None, typer.Option(help="Text to continue. Default: standard input.")] = None,
    file: Annotated[Path | None, typer.Option(help="File with the text to continue.")] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Take every non-empty line as a prompt; print one JSON object for each.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="With --lines: prompts in one batch.", min=1)] = 16,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum number of new tokens.")] = 64,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample from the k most likely tokens; 0: from all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample from the smallest set of tokens with this probability.")] = 1.0,
    beams: Annotated[int, typer.Option(help="Beams of beam search; 1: no beam search.")] = 1,
    length_penalty: Annotated[float, typer.Option(help="Of beam search: above 0 favours longer texts.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="A further token that ends the text.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    step: CheckpointStep = None,
) -> None:
    """Continue a text. The model reads the last data.encoder_length tokens of it and continues the text.

    A model trained on spans (span_corruption, ul2) writes the spans that sentinels stand for; it does not continue a text.
    """
    from models.generation.sampling import Sampling

    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        num_beams=beams,
        length_penalty=length_penalty,
    )
    text = _read(prompt, file)
    if lines:
        _continue_lines(run, step, text, sampling, stop or [], batch_size)
    else:
        _continue_text(run, step, text, sampling, stop or [])


def _read(prompt: str | None, file: Path | None) -> str:
    if prompt is not None and file is not None:
        raise ValueError("--prompt and --file both give the text: leave one out")
    if prompt is not None:
        return prompt
    name, data = ("standard input", sys.stdin.buffer.read()) if file is None else (str(file), file.read_bytes())
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise ValueError(
            f"{name} is not UTF-8 (byte 0x{byte:02x} at position {error.start}): convert it, for example by "
            "`iconv -f latin1 -t utf-8`"
        ) from error


def _continue_text(run: Path, step: int | None, text: str, sampling: Sampling, stop: list[str]) -> None:
    """Print the continuation token by token."""
    from data_prep.tokenization.tokenizer import TOKENIZER_FILE, load_tokenizer
    from pipeline.eval.evaluate import load_model
    from pipeline.eval.generate import stop_ids, write_text

    model, config, _ = load_model(run, step)
    tokenizer = load_tokenizer(run / TOKENIZER_FILE)
    for piece in write_text(model, tokenizer, text, config.data.encoder_length, sampling, stop_ids(tokenizer, stop)):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _continue_lines(run: Path, step: int | None, text: str, sampling: Sampling, stop: list[str], batch_size: int) -> None:
    """Print `{"prompt": …, "text": …}` for every line with text, a batch at a time."""
    from data_prep.tokenization.tokenizer import TOKENIZER_FILE, load_tokenizer
    from pipeline.eval.evaluate import load_model
    from pipeline.eval.generate import stop_ids, write_texts

    model, config, _ = load_model(run, step)
    tokenizer = load_tokenizer(run / TOKENIZER_FILE)
    stops = stop_ids(tokenizer, stop)
    # not splitlines(), which also cuts at form feeds and at Unicode's separators within a line
    prompts = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
    if not prompts:
        raise ValueError("--lines: there is no line with text")
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        texts = write_texts(model, tokenizer, batch, config.data.encoder_length, sampling, stops)
        for given, written in zip(batch, texts, strict=True):
            sys.stdout.write(json.dumps({"prompt": given, "text": written}, ensure_ascii=False) + "\n")
        sys.stdout.flush()
