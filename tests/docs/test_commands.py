"""Every `fnet-t5` command in a code block of the pages exists, with all of its options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from launch.cli import _GlobalOptions, build_app
from launch.recipes import find_recipe

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in (*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "examples").rglob("*.md"))
    if path.name != "CHANGELOG.md" and path.parent.name != "howto"  # test_howto.py runs those
)
_BLOCK = re.compile(r"^```(?:sh|bash|console|text)?\n(.*?)^```|((?:^ {4}.*\n)+)", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def app() -> Any:
    return typer.main.get_command(build_app(_GlobalOptions()))


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str, app: Any) -> None:
    wrong = [f"{' '.join(words)}: {problem}" for words in commands_of(page) for problem in problems(app, words)]
    assert wrong == []


def test_the_quick_start_has_six_lines() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    block = readme.partition("## Quick start")[2].partition("```\n")[2].partition("```")[0]
    assert len(block.splitlines()) == 6
    assert len(list(commands(block))) == 6


def test_wrong_commands_are_detected(app: Any) -> None:
    assert list(problems(app, ["trian"])) == ["no command trian"]
    assert list(problems(app, ["train", "configs/train/demo.yaml", "--nprocs", "4"])) == ["no option --nprocs"]
    assert list(problems(app, ["data", "verify", "--help"])) == []
    assert list(problems(app, ["train", "configs/train/dmeo.yaml"])) == ["no recipe configs/train/dmeo.yaml"]


def commands_of(page: str) -> list[list[str]]:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return [words for found in _BLOCK.finditer(text) for words in commands(found[1] or found[2])]


def commands(block: str) -> Iterator[list[str]]:
    """The words after `fnet-t5` of each command in a block of shell."""
    for line in block.replace("\\\n", " ").splitlines():
        found = re.match(r"\s*(?:\$ )?(?:[^#]*?[|\s/])?fnet-t5 (?=[a-z])(.*)", line)
        if not found:
            continue
        lexer = shlex.shlex(found[1], posix=True, punctuation_chars="|;&<>")
        lexer.whitespace_split = True
        words = []
        for word in lexer:
            if word in ("|", ";", "&&", ">", "<", ">>"):
                break
            words.append(word)
        yield words


def problems(app: Any, words: list[str]) -> Iterator[str]:
    """The problems of a command line, by the application's own parser."""
    command = app
    rest = list(words)
    while hasattr(command, "commands"):
        if not rest or rest[0].startswith("-") or "…" in rest[0]:
            return
        name = rest.pop(0)
        if name not in command.commands:
            yield f"no command {name}"
            return
        command = command.commands[name]
    options = {spelling for option in command.params for spelling in (*option.opts, *option.secondary_opts)} | {"--help", "-h"}
    for word in rest:
        if word.startswith("--") and word.partition("=")[0] not in options:
            yield f"no option {word}"
        if re.fullmatch(r"configs/[\w/-]+\.yaml", word):
            try:
                find_recipe(REPOSITORY / word if (REPOSITORY / word).exists() else word)
            except FileNotFoundError:
                yield f"no recipe {word}"
