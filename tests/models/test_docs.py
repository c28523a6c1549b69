"""The tables of docs/models.md are what the code says today."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_of_models_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("model_tables", ROOT / "benchmarks" / "model_tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert page == tables.page(), "run `python benchmarks/model_tables.py`"
