"""docs/objectives.md shows what the code does: its generated parts are the ones that the code makes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_objectives", DOCS / "make_objectives.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (DOCS / "objectives.md").read_text(encoding="utf-8")
    assert script.with_generated(page) == page, "run python docs/make_objectives.py"
