"""Arguments that several commands share: a recipe, `key=value` overrides, options with many values (`--input A B C`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

Recipe = Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="A recipe: a path, or the name of a shipped one.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides for the config file: section.key=value.", show_default=False),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
CheckpointStep = Annotated[int | None, typer.Option(help="Step of the checkpoint to use. Default: the latest.")]

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


class ManyValuesCommand(TyperCommand):
    """A command whose list options take every word that follows, as an unquoted glob of the shell gives them.

    The values of such an option end at the next option and at a `key=value`; write `./a=b.jsonl` for a file of that form.
    Options for `KEY=VALUE` are excepted.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = [option for option in self.params if option.multiple and option.metavar != "KEY=VALUE"]
        many = {spelling for option in lists for spelling in option.opts}
        return super().parse_args(ctx, repeat_options(args, many))


def repeat_options(words: Sequence[str], many: set[str]) -> list[str]:
    """`--input A B k=v` as `--input A --input B k=v`, for the options in `many`."""
    repeated: list[str] = []
    option: str | None = None  # the option whose values may still come
    for position, word in enumerate(words):
        if word == "--":
            return repeated + list(words[position:])
        if word.startswith("-") and word != "-":
            option = word if word in many else None
            if option is None:
                repeated.append(word)
            elif position + 1 == len(words) or words[position + 1].startswith("-"):
                repeated.append(word)  # without a value: the parser reports it
        elif option is not None and not _OVERRIDE.match(word):
            repeated += [option, word]
        else:
            option = None
            repeated.append(word)
    return repeated


def listed(values: Sequence[str], shown: int = 2) -> str:
    """The first values and the number of the others: one glob may give thousands of files."""
    rest = len(values) - shown
    return ", ".join(values[:shown]) + (f" and {rest} more" if rest > 0 else "")
