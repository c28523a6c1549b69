"""Writes the generated parts of docs/objectives.md: each objective on one short text, and its cost at 512 tokens.

python docs/make_objectives.py            # a test fails if the page differs from the output
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from launch.cli.data.objective_examples import examples
from pipeline.objectives.catalogue import ObjectiveField, build_objective
from pipeline.objectives.interface import Objective
from pipeline.objectives.vocabulary import Vocabulary

PAGE = Path(__file__).with_name("objectives.md")
TEXT = "The encoder mixes the words of a text by Fourier transform . The decoder writes what comes next , one word at a time ."
UL2 = {"name": "ul2", "repeat_sentinels": True}
# The text in the recipe, the objective, the architecture, encoder and decoder length, and the sample that is shown.
SHOWN: tuple[tuple[str, Any, str, int, int | None, int], ...] = (
    ("prefix_lm", "prefix_lm", "fnet_t5", 18, 8, 0),
    (
        "{name: prefix_lm, prefix_lengths: [8, 12, 16]}",
        {"name": "prefix_lm", "prefix_lengths": [8, 12, 16]},
        "fnet_t5",
        16,
        18,
        1,
    ),
    ("prefix_lm", "prefix_lm", "gpt2", 18, 8, 0),
    ("causal_lm", "causal_lm", "gpt2", 18, 8, 0),
    ("span_corruption", "span_corruption", "fnet_t5", 24, None, 3),
    (
        "{name: span_corruption, noise_density: 0.5}",
        {"name": "span_corruption", "noise_density": 0.5},
        "fnet_t5",
        18,
        None,
        0,
    ),
    (
        "{name: span_corruption, num_spans: 1, ends_with_span: false}",
        {"name": "span_corruption", "num_spans": 1, "ends_with_span": False},
        "fnet_t5",
        24,
        None,
        0,
    ),
    ("text_infilling", "text_infilling", "fnet_t5", 44, 26, 8),
    ("ul2", "ul2", "fnet_t5", 25, 25, 4),
    ("masked_lm", "masked_lm", "fnet", 29, None, 5),
)
COSTS: tuple[tuple[str, Any, str], ...] = (
    ("`prefix_lm`, 512 + 128", "prefix_lm", "fnet_t5"),
    ("`prefix_lm`, prefixes of 128, 256, 384, 512", {"name": "prefix_lm", "prefix_lengths": [128, 256, 384, 512]}, "fnet_t5"),
    ("`causal_lm` on the same rows", "causal_lm", "gpt2"),
    ("`span_corruption`, 15 %, spans of 3", "span_corruption", "fnet_t5"),
    (
        "`span_corruption`, 50 %, spans of 3",
        {"name": "span_corruption", "noise_density": 0.5, "repeat_sentinels": True},
        "fnet_t5",
    ),
    (
        "`span_corruption`, 15 %, one span anywhere",
        {"name": "span_corruption", "num_spans": 1, "ends_with_span": False},
        "fnet_t5",
    ),
    ("`text_infilling`", "text_infilling", "fnet_t5"),
    ("`ul2`", UL2, "fnet_t5"),
    ("`masked_lm`", "masked_lm", "fnet"),
)


def word_tokenizer() -> Tokenizer:
    """A tokenizer with one token a word, for readability; specials and sentinels as in the project's tokenizers."""
    specials = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{number}>" for number in reversed(range(100)))]
    words = sorted({f"\N{LOWER ONE EIGHTH BLOCK}{word}" for word in TEXT.split()})
    vocabulary = {word: number for number, word in enumerate([*specials[:3], *words, *specials[3:]])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\N{LOWER ONE EIGHTH BLOCK}", " "), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    return tokenizer


def make(spec: Any, architecture: str, encoder_length: int, decoder_length: int | None, vocabulary: Vocabulary) -> Objective:
    config = ObjectiveField.model_validate({"objective": spec}).objective
    return build_objective(
        config,
        architecture=architecture,
        encoder_length=encoder_length,
        decoder_length=decoder_length or config.default_decoder_length(encoder_length),
        vocabulary=vocabulary,
        seed="0",
    )


def shown_examples() -> str:
    """A heading, lengths and the texts of each objective."""
    tokenizer = word_tokenizer()
    vocabulary = Vocabulary.of(tokenizer)
    ids = [*tokenizer.encode(TEXT, add_special_tokens=False).ids, vocabulary.end]
    blocks = []
    for recipe, spec, architecture, encoder_length, decoder_length, sample in SHOWN:
        objective = make(spec, architecture, encoder_length, decoder_length, vocabulary)
        row = np.zeros((1, objective.row_length), dtype=np.int64)
        used = min(len(ids), objective.row_length)
        row[0, :used] = ids[:used]
        batch = objective(row, np.array([used]), np.array([sample]))
        cost = objective.cost
        lines = [f"{part + ':':9} {_spaced(text.plain)}" for part, text in examples(batch, 0, tokenizer, vocabulary)]
        targets = int(objective.num_targets(np.array([used]), np.array([sample]))[0])
        counts = (
            f"{used} raw tokens of a row of {cost.raw}, {cost.encoder} encoder positions, {cost.decoder} decoder positions, "
        )
        title = f"### `objective: {recipe}` on `{architecture}`"
        blocks.append("\n".join([title, "", f"{counts}{targets} targets.", "", "```text", *lines, "```"]))
    return "\n\n".join(blocks)


def _spaced(text: str) -> str:
    """Words and marks separated by one space."""
    return " ".join(re.sub(r"(<extra_id_\d+>|</s>|\[[A-Z0-9]+\])", r" \1 ", text).split())


def cost_table() -> str:
    """The cost of a full row at an encoder length of 512, by objective."""
    tokenizer = word_tokenizer()
    vocabulary = Vocabulary.of(tokenizer)
    lines = [
        "| objective | raw tokens a row | encoder | decoder | targets | encoder / raw | decoder / raw | targets / raw |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for label, spec, architecture in COSTS:
        cost = make(spec, architecture, 512, None, vocabulary).cost
        shares = " | ".join(f"{share:.3f}" for share in cost.per_raw())
        lines.append(f"| {label} | {cost.raw} | {cost.encoder} | {cost.decoder} | {cost.target:.4g} | {shares} |")
    return "\n".join(lines)


def with_generated(page: str) -> str:
    """The page with new generated parts."""
    for name, made in (("examples", shown_examples()), ("costs", cost_table())):
        pattern = rf"(<!-- {name}: made by docs/make_objectives.py -->\n).*?(<!-- end of {name} -->)"
        page, count = re.subn(pattern, lambda found, made=made: f"{found[1]}{made}\n{found[2]}", page, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{PAGE} has {count} parts called {name!r}: restore its two comment lines")
    return page


if __name__ == "__main__":
    PAGE.write_text(with_generated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
