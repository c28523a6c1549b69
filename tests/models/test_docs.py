"""The tables of docs/models.md are up to date with the code."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.scripts import load_script

ROOT = Path(__file__).parents[2]


def test_the_page_of_models_is_up_to_date() -> None:
    tables = load_script("benchmarks/model_tables.py")
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert page == tables.page(), "run `python benchmarks/model_tables.py`"
