"""The generated parts of docs/objectives.md are up to date with the code."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.scripts import load_script

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_is_up_to_date() -> None:
    script = load_script("docs/make_objectives.py")
    page = (DOCS / "objectives.md").read_text(encoding="utf-8")
    assert script.with_generated(page) == page, "run python docs/make_objectives.py"
