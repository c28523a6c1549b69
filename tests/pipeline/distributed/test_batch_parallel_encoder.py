"""Encoder layers on tensor groups of 2 and 4 compared with one process: values, gradients, bytes and FLOPs."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.helpers.processes import start_processes

D_MODEL, D_FF, NUM_TOKENS, LAYERS, WIDE = 64, 128, 24, 2, 8
CASES = [(t, form) for t in (2, 4) for form in ("batch", "columns", "mixed_batch")]
MICRO_BATCH = {"batch": 8, "columns": 3, "mixed_batch": 4}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("sharding")
    start_processes(4, "sharding_worker.py", folder)
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.mark.parametrize(("tensor_parallel", "form"), CASES)
def test_equals_one_process(records: dict[str, list[dict[str, Any]]], tensor_parallel: int, form: str) -> None:
    for record in records[f"{tensor_parallel}_{form}"]:
        assert set(record["difference"]) == {"output", "input_gradient", "replicated_gradients"}
        assert all(value < 1e-6 for value in record["difference"].values()), record["difference"]  # also false for NaN


@pytest.mark.parametrize(("tensor_parallel", "form"), [case for case in CASES if case[1] != "columns"])
def test_unsummed_norm_gradients_are_detected(
    records: dict[str, list[dict[str, Any]]], tensor_parallel: int, form: str
) -> None:
    for record in records[f"{tensor_parallel}_{form}"]:
        assert record["planted"]["replicated_gradients"] > 0.1
        assert record["planted"]["output"] < 1e-6  # only the gradients reveal the bug


@pytest.mark.parametrize("tensor_parallel", [2, 4])
def test_batch_form_transforms_its_part_without_extra_communication(
    records: dict[str, list[dict[str, Any]]], tensor_parallel: int
) -> None:
    """Per layer: one all-gather and one reduce-scatter of (B, N, D) each way, the bytes of the feed-forward's all-reduce."""
    hidden_bytes = MICRO_BATCH["batch"] * NUM_TOKENS * D_MODEL * WIDE
    for record in records[f"{tensor_parallel}_batch"]:
        assert record["counts"]["fft_flops"] == pytest.approx(record["whole_counts"]["fft_flops"] / tensor_parallel)
        assert record["counts"]["all_gather_into_tensor"] == (2 * LAYERS + 2) * hidden_bytes  # + encoder input and output
        assert record["counts"]["reduce_scatter_tensor"] == 2 * LAYERS * hidden_bytes
        assert "all_reduce" not in record["counts"]


@pytest.mark.parametrize("tensor_parallel", [2, 4])
def test_column_form_matches_its_formula(records: dict[str, list[dict[str, Any]]], tensor_parallel: int) -> None:
    batch, half = MICRO_BATCH["columns"], D_MODEL // 2 + 1
    columns = math.ceil(half / tensor_parallel)
    for rank, record in enumerate(records[f"{tensor_parallel}_columns"]):
        own = min(columns, half - columns * (rank % tensor_parallel))
        features = 2.5 * batch * NUM_TOKENS * D_MODEL * math.log2(D_MODEL)
        tokens = 5 * batch * NUM_TOKENS * own * math.log2(NUM_TOKENS)
        assert record["counts"]["fft_flops"] == pytest.approx(2 * LAYERS * (features + tokens))
        gathered = batch * NUM_TOKENS * columns * tensor_parallel * WIDE
        assert record["counts"]["all_gather_into_tensor"] == 2 * LAYERS * gathered
        # the feed-forward: one forward, and one backward for each of the two products that share its input
        assert record["counts"]["all_reduce"] == LAYERS * 3 * batch * NUM_TOKENS * D_MODEL * WIDE
