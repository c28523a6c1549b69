"""docs/inference.md describes every field of the JSON, and its table of formulas equals the code."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from launch.bench.inference_plan import InferencePlan
from launch.bench.inference_record import InferenceRecord
from models.cost.inference_cost import first_token_flops, step_bytes

PAGE = (Path(__file__).parents[3] / "docs" / "inference.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| t5-v1.1-") and ";" in line]


def test_every_field_is_described() -> None:
    described = PAGE.partition("## The JSON")[2]
    assert [field.name for field in fields(InferenceRecord) if f"`{field.name}`" not in described] == []


@pytest.mark.parametrize("row", ROWS)
def test_the_table_of_formulas_is_up_to_date(row: str) -> None:
    size, length, *ratios, alone, together = [cell.strip() for cell in row.strip("|").split("|")]
    prefix = int(length.replace(",", ""))
    hybrid, t5, gpt2, hybrid_compute, _, gpt2_compute = [arm.config for arm in InferencePlan(size=size).models()]
    flops = [first_token_flops(config, prefix) for config in (hybrid, gpt2, hybrid_compute, gpt2_compute)]
    assert ratios == [f"{value / first_token_flops(t5, prefix):.2f}" for value in flops]
    for batch, shown in ((1, alone), (16, together)):
        bytes_read = [step_bytes(config, prefix, 256, batch, 2) for config in (t5, gpt2, gpt2_compute)]
        assert shown == "; ".join(f"{value / 1e6:,.0f}" for value in bytes_read)


def test_the_table_exists() -> None:
    assert len(ROWS) == 16
