"""`fnet-t5 data inspect --objective`: real rows of a dataset folder as an objective gives them to a model, and their cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from data_prep.packing import rows_file
from data_prep.tokenizer import TOKENIZER_FILE, load_tokenizer
from launch.cli.objective_view import examples
from launch.config import load_config
from pipeline.objectives.catalogue import ObjectiveField, build_objective
from pipeline.objectives.interface import Objective, ObjectiveConfig
from pipeline.objectives.vocabulary import Vocabulary
from pipeline.rows import Rows, RowSource, StreamRows

_TYPICAL = {"encoder_decoder": "fnet_t5", "decoder_only": "gpt2", "encoder_only": "fnet"}


def read_objective(name: str, settings: Sequence[str]) -> ObjectiveConfig:
    """An objective by its name and `key=value` settings, checked. Raises ConfigError."""
    return load_config(ObjectiveField, None, [f"objective={name}", *(f"objective.{setting}" for setting in settings)]).objective


def print_examples(
    folder: Path,
    split: str,
    name: str,
    settings: Sequence[str],
    encoder_length: int,
    decoder_length: int | None,
    architecture: str | None,
    *,
    rows: int,
    seed: int,
) -> None:
    """Print `rows` examples in colour. Packed rows are read where the folder has them in this length, else its stream."""
    config = read_objective(name, settings)
    tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
    vocabulary = Vocabulary.of(tokenizer)
    built = build_objective(
        config,
        architecture=architecture or _TYPICAL[config.form],
        encoder_length=encoder_length,
        decoder_length=decoder_length or config.default_decoder_length(encoder_length),
        vocabulary=vocabulary,
        seed=str(seed),
    )
    packed = (folder / rows_file(split, built.row_length)).is_file()
    source: RowSource = (Rows if packed else StreamRows)(folder, split, built.row_length)
    chosen = np.random.default_rng(seed).choice(len(source), size=min(rows, len(source)), replace=False).astype(np.int64)
    tokens, lengths = source.read(chosen)
    batch = built(tokens, lengths, chosen)
    console = Console()
    kind = "packed rows" if packed else "the stream (no rows of this length are packed)"
    console.print(f"{config.name} on {kind}: {describe_cost(built)}", highlight=False)
    num_targets = built.num_targets(lengths, chosen)
    for place, row in enumerate(chosen.tolist()):
        console.rule(f"{split} row {row}: {lengths[place]} raw tokens, {num_targets[place]} targets")
        for part, text in examples(batch, place, tokenizer, vocabulary):
            console.print(Text.assemble((f"{part}: ", "bold underline"), text))


def describe_cost(objective: Objective) -> str:
    """What a full row spends, in one line."""
    cost = objective.cost
    encoder, decoder, target = cost.per_raw()
    return (
        f"{cost.raw} raw tokens make {cost.encoder} encoder and {cost.decoder} decoder positions and {cost.target:.4g} targets "
        f"({encoder:.3f}, {decoder:.3f} and {target:.3f} a raw token)"
    )
