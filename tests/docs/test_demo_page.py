"""docs/demo.md shows the output of the demo's code for the recorded numbers."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("docs/make_demo.py")


def test_the_page_is_up_to_date(script: ModuleType) -> None:
    facts = json.loads(script.FACTS.read_text(encoding="utf-8"))
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.with_generated(page, facts) == page, "run python docs/make_demo.py"


def test_the_recorded_run_matches_the_page(script: ModuleType, repository: Path) -> None:
    """The recorded numbers support the statements of the page, and come from the shipped recipe."""
    facts = json.loads(script.FACTS.read_text(encoding="utf-8"))
    result = script.Result(**facts["result"])
    assert result.problems == []
    assert result.step == script.load_run_config("configs/train/demo.yaml", ["data.path=x"]).train.steps
    assert result.num_parameters == pytest.approx(1.9e6, rel=0.05)
    for number in (result.loss, result.unigram_loss, result.swapped_loss):
        assert f"{number:.4f}" in script.PAGE.read_text(encoding="utf-8")
