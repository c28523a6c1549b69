"""Every relative link of the pages leads to an existing file, and every anchor to a heading."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in (*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "examples").rglob("*.md"))
)
_FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_exist(page: str) -> None:
    path = REPOSITORY / page
    broken = []
    for target in links(path.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        if not found.exists() or not found.is_relative_to(REPOSITORY):
            broken.append(f"{target}: no such file")
        elif anchor and found.suffix == ".md" and anchor not in anchors(found.read_text(encoding="utf-8")):
            broken.append(f"{target}: no such heading")
    assert broken == []


def test_readme_is_short_and_names_the_important_files() -> None:
    """The files and pages that a new reader looks for first."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 130
    for place in (
        "pipeline/data/batches.py",
        "loss.py",
        "mixing/__init__.py",
        "docs/config.md",
        "cluster/templates/",
        "preemption",
    ):
        assert place in readme


def test_paths_in_the_readmes_tree_exist() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    tree = readme.partition("## Where things are")[2].partition("```\n")[2].partition("```")[0]
    package, checked = "", 0
    for line in tree.splitlines():
        for name in re.findall(r"(?:^|(?<=  ))([a-z_]+/|[a-z_]+\.py)(?=\s|$)", line):
            if not line.startswith(" ") and line.startswith(name):
                package = name
            assert (REPOSITORY / name).exists() or (REPOSITORY / package / name).exists(), line
            checked += 1
    assert checked > 15


def links(text: str) -> list[str]:
    """Targets outside of code blocks."""
    return [found[1] for found in _LINK.finditer(_FENCED.sub("", text))]


def anchors(text: str) -> set[str]:
    """Anchors as GitHub makes them from headings: lower case, no punctuation, hyphens for blanks, numbered repeats."""
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCED.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = 1
        unique = slug
        while unique in found:
            unique = f"{slug}-{number}"
            number += 1
        found.add(unique)
    return found


def test_anchors_equal_those_of_github() -> None:
    text = "# A `code.py` heading: with, marks\n## Epoch AI's [link](x.md)\n## Twice\n## Twice\n```\n# no heading\n```\n"
    assert anchors(text) == {"a-codepy-heading-with-marks", "epoch-ais-link", "twice", "twice-1"}
