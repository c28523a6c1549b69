"""`fnet-t5 data inspect --objective`: rows of a dataset folder as an objective gives them to a model, and their cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text
from tokenizers import Tokenizer

from data_prep.dataset.packing import rows_file
from data_prep.tokenization.tokenizer import TOKENIZER_FILE, load_tokenizer
from launch.config import load_config
from pipeline.data.rows import Rows, RowSource, StreamRows
from pipeline.objectives.catalogue import ObjectiveField, build_objective
from pipeline.objectives.interface import AnyBatch, Batch, EncoderBatch, Objective, ObjectiveConfig, TextBatch
from pipeline.objectives.vocabulary import Vocabulary

_TYPICAL = {"encoder_decoder": "fnet_t5", "decoder_only": "gpt2", "encoder_only": "fnet"}


def read_objective(name: str, settings: Sequence[str]) -> ObjectiveConfig:
    """The configuration of an objective from its name and `key=value` settings. Raises ConfigError."""
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
    """Print `rows` examples in colour, from packed rows if the folder has them in this length, else from the token stream."""
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
    kind = "packed rows" if packed else "the token stream (there are no packed rows of this length)"
    console.print(f"{config.name} on {kind}: {describe_cost(built)}", highlight=False)
    num_targets = built.num_targets(lengths, chosen)
    for place, row in enumerate(chosen.tolist()):
        console.rule(f"{split} row {row}: {lengths[place]} raw tokens, {num_targets[place]} targets")
        for part, text in examples(batch, place, tokenizer, vocabulary):
            console.print(Text.assemble((f"{part}: ", "bold underline"), text))


def describe_cost(objective: Objective) -> str:
    """The cost of a full row, in one line."""
    cost = objective.cost
    encoder, decoder, target = cost.per_raw()
    return (
        f"{cost.raw} raw tokens give {cost.encoder} encoder and {cost.decoder} decoder positions and {cost.target:.4g} targets "
        f"({encoder:.3f}, {decoder:.3f} and {target:.3f} per raw token)"
    )


_SPANS = ("bright_red", "bright_green", "bright_yellow", "bright_blue", "bright_magenta", "bright_cyan")
_WRITTEN, _PREFIX, _MARK, _END = "green", "default", "bold bright_cyan", "dim"
_KINDS = {"mask": "bold red", "random": "bold magenta", "same": "bold yellow"}
Ids = NDArray[np.int64]
Styled = tuple[int, str]


def examples(batch: AnyBatch, row: int, tokenizer: Tokenizer, vocabulary: Vocabulary) -> list[tuple[str, Text]]:
    """The parts of row `row` of a batch, each with its name, such as encoder and decoder, or prefix and writes."""
    view = _View(tokenizer, vocabulary)
    if isinstance(batch, EncoderBatch):
        return view.masked(batch, row)
    if isinstance(batch, TextBatch):
        return view.text(batch, row)
    return view.pair(batch, row)


class _View:
    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
        self.tokenizer, self.vocabulary = tokenizer, vocabulary
        self._special = set(tokenizer.get_added_tokens_decoder())
        # A sentinel that replaces another paper's token is shown as that token.
        self._names = {token: name for name, token in vocabulary.named.items() if token not in vocabulary.sentinels}

    def pair(self, batch: Batch, row: int) -> list[tuple[str, Text]]:
        encoder = batch.encoder_ids[row][batch.encoder_mask[row] == 1].tolist()
        targets = batch.targets[row][batch.target_mask[row] == 1].tolist()
        return [
            ("encoder", self._show(self._marked(encoder, _PREFIX, colour_spans=False))),
            ("decoder", self._show(self._marked(targets, _WRITTEN, colour_spans=True))),
        ]

    def text(self, batch: TextBatch, row: int) -> list[tuple[str, Text]]:
        """The targets, after the prefix that is only read. The target of a position is the token that follows it."""
        used = batch.mask[row] > 0
        written = batch.target_mask[row][used] == 1
        # The text is the input without the start token, followed by the last target.
        shifted = batch.ids[row][used][1:].tolist()
        tokens = [*shifted, int(batch.targets[row][used][-1])] if used.any() else []
        first = int(written.argmax()) if written.any() else len(tokens)
        parts = [("prefix", self._show(self._marked(tokens[:first], _PREFIX, colour_spans=False)))] if first else []
        return [*parts, ("writes", self._show(self._marked(tokens[first:], _WRITTEN, colour_spans=True)))]

    def masked(self, batch: EncoderBatch, row: int) -> list[tuple[str, Text]]:
        self._names[self.vocabulary.named["[MASK]"]] = "[MASK]"
        ids = batch.ids[row][batch.mask[row] == 1].tolist()
        styles = [_PREFIX] * len(ids)
        used = batch.target_mask[row] == 1
        predicted: list[Styled] = []
        for place, target in zip(batch.positions[row][used].tolist(), batch.targets[row][used].tolist(), strict=True):
            shown = ids[place]
            kind = "mask" if shown == self.vocabulary.named["[MASK]"] else "same" if shown == target else "random"
            styles[place] = _KINDS[kind]
            predicted.append((target, _KINDS[kind]))
        parts = [("encoder", self._show(list(zip(ids, styles, strict=True))))]
        words = Text(" ").join(self._show([one]) for one in predicted)
        parts.append(("predicts", words))
        if batch.order_mask[row]:
            parts.append(("order", Text("swapped" if batch.order[row] else "as in the text")))
        return parts

    def _marked(self, ids: Sequence[int], plain: str, colour_spans: bool) -> list[Styled]:
        """Tokens with their style: sentinels in cycling colours; with `colour_spans`, also the tokens after them."""
        styled: list[Styled] = []
        marks, following = 0, plain
        for token in ids:
            if token in self.vocabulary.sentinels:
                colour = _SPANS[marks % len(_SPANS)]
                marks += 1
                following = colour if colour_spans else plain
                styled.append((token, f"bold {colour}"))
            elif token == self.vocabulary.end:
                styled.append((token, _END))
            elif token in self._special:
                styled.append((token, _MARK))
            else:
                styled.append((token, following))
        return styled

    def _show(self, styled: Sequence[Styled]) -> Text:
        text = Text()
        for (style, is_special), group in groupby(styled, key=lambda one: (one[1], one[0] in self._special)):
            tokens = [token for token, _ in group]
            names = [self._names.get(token) or str(self.tokenizer.id_to_token(token)) for token in tokens]
            text.append("".join(names) if is_special else self.tokenizer.decode(tokens), style=style)
        return text
