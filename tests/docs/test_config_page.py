"""docs/config.md equals the output of docs/make_config.py and has every key of every shipped file, with a description."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.helpers.scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("docs/make_config.py")


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs/config.md").read_text(encoding="utf-8")


def test_the_page_is_up_to_date(script: ModuleType, page: str) -> None:
    assert script.page() == page, "run python docs/make_config.py"


def test_every_key_has_a_description(script: ModuleType) -> None:
    missing = [key.name for key in script.all_keys() if not key.description and "section" not in key.type]
    assert missing == [], f"{len(missing)} keys lack a description: write a docstring under the field"


@pytest.mark.parametrize("kind", ["train", "data", "scaling", "battery", "cluster"])
def test_every_key_of_the_shipped_files_is_on_the_page(repository: Path, page: str, kind: str) -> None:
    """The keys come from the files, not from the classes."""
    described = set(re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE))
    files = sorted((repository / "configs" / kind).glob("*.yaml"))
    assert files
    for file in files:
        for key in _leaves(yaml.safe_load(file.read_text(encoding="utf-8"))):
            spellings = {key, re.sub(r"^(sizes|arms)\.[^.]+", r"\1{}", key)}
            parents = {spelling.rpartition(".")[0].removesuffix("[]") for spelling in spellings}
            # tables of free keys, such as environment, end the search
            assert (spellings | parents) & described, f"{file.name}: {key}"


def test_rows_show_the_values_of_the_classes(script: ModuleType) -> None:
    clip = next(key for key in script.all_keys() if key.name == "optimizer.clip")
    assert (clip.type, clip.default, clip.allowed) == ("number", "`1.0`", "≥ 0")
    assert "gradient norm" in clip.description


def _leaves(values: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from _leaves(value, f"{prefix}.{name}".removeprefix("."))
    elif isinstance(values, list) and values and isinstance(values[0], dict):
        for value in values:
            yield from _leaves(value, f"{prefix}[]")
    else:
        yield prefix
