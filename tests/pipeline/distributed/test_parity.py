"""The same model, data and seed on one process and on every small mesh give equal losses, norms and final parameters.

Gloo processes, DeepSpeed's pipeline engine, Megatron's layers; fp32, ZeRO-1, four accumulation steps on one replica, tied
embeddings, a clip norm that always clips, uneven target counts, ten steps without warm-up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor

from models.architectures.build import build_model
from models.layers.initialization import initialize
from tests.helpers.parity import BF16, FP32, ORDER, STEPS, Plan, Tolerance, global_batch, objective_of, run_config
from tests.helpers.processes import start_processes

RMS = {"name": "adamw_rms", "learning_rate": 0.02, "weight_decay": 0.1}
# one attention layer and one Fourier layer in the encoder, an untied head, and the plain feed-forward
UNTIED = {"tie_embeddings": False, "num_attention_layers": 1, "feed_forward": "relu"}
# the other options: biases on sharded layers, learnt positions (so no bias tables are sent), learnt mixing
OTHER = {
    "norm": "layer",
    "bias": True,
    "position": "learned",
    "scale_scores": True,
    "mixing": "linear",
    "num_attention_layers": 1,
    "feed_forward": "gelu",
    "max_length": 16,
    "encoder_d_ff": 192,
}
MODELS: dict[str, dict[str, Any]] = {
    "fnet_t5": {},
    "untied": UNTIED,
    "other": OTHER,
    "t5": {"architecture": "t5"},
    "gpt2": {"architecture": "gpt2", "max_length": 24},
    "prefix_decoder": {"architecture": "prefix_decoder"},
    "bert": {"architecture": "bert", "max_length": 16},
    "fnet": {"architecture": "fnet", "max_length": 16},
}
MESHES = {"t1p1d1": (1, 1, 1), "t2p1d1": (2, 1, 1), "t1p2d1": (1, 2, 1), "t1p1d2": (1, 1, 2)}
MESHES |= {"t2p2d1": (2, 2, 1), "t2p1d2": (2, 1, 2), "t1p2d2": (1, 2, 2), "t4p1d1": (4, 1, 1)}
BUGS = [
    ("t1p2d1", "tied gradients are not reduced"),
    ("t1p2d1", "gradients stay in the receive buffer"),
    ("t2p1d1", "norm gradients are not summed"),
    ("t1p2d1", "gradients of the last stage are divided by the accumulation steps twice"),
    ("t1p2d1", "tied weights count twice in the norm"),
    ("t1p1d2", "every replica reads the data of the first"),
]


def label(model: str, name: str, mesh: str) -> str:
    return "_".join(part for part in (model, name, mesh) if part)


def cell(model: str, mesh: str, name: str = "", **settings: Any) -> Plan:
    """One training run of the worker's plan, with a name that describes it."""
    tensor, pipeline, data = MESHES[mesh]
    return Plan(name=label(model, name, mesh), tensor=tensor, pipeline=pipeline, data=data, model=MODELS[model], **settings)


def with_one(model: str, *meshes: str, name: str = "", **settings: Any) -> list[Plan]:
    """The same run on one process and on each of the given meshes, which must equal it."""
    alone = cell(model, "t1p1d1", name, **settings)
    return [alone, *(cell(model, mesh, name, reference=alone.name, **settings) for mesh in meshes)]


# The way a step is computed (column-parallel transform, recomputation) must not matter: equal to the plain run on one process.
HYBRID_ALONE = label("fnet_t5", "", "t1p1d1")
# Every mesh for the hybrid. For the others, each form of model and each kind of objective on one mesh with another partition.
QUICK = [
    *with_one("fnet_t5", *list(MESHES)[1:-1]),
    cell("fnet_t5", "t4p1d1", reference=HYBRID_ALONE, micro_batch=4),
    cell("fnet_t5", "t4p1d1", "columns", reference=HYBRID_ALONE),
    cell("fnet_t5", "t2p1d1", "columns", reference=HYBRID_ALONE, micro_batch=1),
    cell("fnet_t5", "t2p2d1", "recompute", reference=HYBRID_ALONE, recompute=True),
    *(cell("fnet_t5", mesh, "zero0", reference=HYBRID_ALONE, zero_stage=0) for mesh in ("t1p1d2", "t2p1d2")),
    *(cell("fnet_t5", mesh, "rms", optimizer=RMS) for mesh in ("t1p1d2", "t2p1d1", "t1p2d2")),
    *with_one("fnet_t5", "t2p2d1", name="bf16", precision="bf16", tolerance=BF16),
    *with_one("untied", "t2p2d1"),
    *with_one("other", "t2p2d1"),
    *with_one("t5", "t2p1d2", name="spans", objective="span_corruption"),
    *with_one("t5", "t1p2d2", name="bf16", precision="bf16", tolerance=BF16),
    *with_one("fnet_t5", "t1p2d1", name="infilling", objective="text_infilling", lengths=(48, 24)),
    *with_one("gpt2", "t2p2d1", "t1p2d2", objective="causal_lm"),
    *with_one("gpt2", "t2p1d1", name="bf16", precision="bf16", tolerance=BF16),
    *with_one("prefix_decoder", "t2p2d1", objective="ul2", lengths=(48, 24)),
    *with_one("bert", "t2p2d1", "t1p1d2", objective="masked_lm", tolerance=ORDER),
    *with_one("fnet", "t2p2d1", "t2p1d1", objective="masked_lm", tolerance=ORDER),
    # FNet's unnormalised transform, by columns
    cell("fnet", "t2p1d1", "columns", reference="fnet_t1p1d1", objective="masked_lm", micro_batch=1, tolerance=ORDER),
    *(cell("fnet_t5", mesh, f"bug{number}", bug=bug) for number, (mesh, bug) in enumerate(BUGS)),
]
# the full matrix: {hybrid, T5, GPT-2} x {tensor, pipeline, data in 1, 2; up to 4 processes} x {fp32, bf16}
MATRIX = [
    plan
    for precision, tolerance in (("fp32", FP32), ("bf16", BF16))
    for model in ("fnet_t5", "t5", "gpt2")
    for plan in with_one(model, *list(MESHES)[1:-1], name=precision, precision=precision, tolerance=tolerance)
]
PLANS = {plan.name: plan for plan in [*QUICK, *MATRIX]}
Result = tuple[dict[str, Any], dict[str, Tensor]]


def run_plans(plans: list[Plan], folder: Path) -> dict[str, Result]:
    """Run every plan. Plans with equal numbers of processes share one start."""
    for num_processes in (1, 2, 4):
        chosen = [plan for plan in plans if plan.num_processes == num_processes]
        plan_file = folder / f"processes_{num_processes}.plan"
        plan_file.write_bytes(TypeAdapter(list[Plan]).dump_json(chosen))
        start_processes(num_processes, "parity_worker.py", folder, plan_file, timeout=1500)
    return {
        path.stem: (json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))) for path in folder.glob("*.json")
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    return run_plans(QUICK, tmp_path_factory.mktemp("parity"))


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    return run_plans(MATRIX, tmp_path_factory.mktemp("matrix"))


def largest(values: Iterable[float]) -> float:
    """The largest value; NaN if one is NaN. Python's max would pass over it."""
    return float(np.max(list(values)))


def disagreement(first: Result, second: Result) -> dict[str, float]:
    """Largest relative difference of each kind; NaN if one is. Parameters are compared in the 2-norm."""
    (ours, our_parameters), (theirs, their_parameters) = first, second
    assert our_parameters.keys() == their_parameters.keys()
    return {
        "losses": largest(abs(a - b) / abs(b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)),
        "norms": largest(abs(a - b) / abs(b) for a, b in zip(ours["norms"], theirs["norms"], strict=True)),
        "validation": abs(ours["validation"] - theirs["validation"]) / theirs["validation"],
        # A key bias adds a constant to all scores of a query. Its gradient is only rounding error, which Adam amplifies.
        "parameters": largest(
            float((our_parameters[name] - value).norm() / value.norm())
            for name, value in their_parameters.items()
            if not name.endswith("key.bias")
        ),
    }


def compared(plans: list[Plan]) -> list[str]:
    """The names of the plans that have a reference."""
    return [plan.name for plan in plans if plan.reference is not None]


def check_equal(results: dict[str, Result], name: str) -> None:
    """Compare a run on a mesh with its reference run on one process."""
    reference = PLANS[name].reference
    assert reference is not None
    check_within(PLANS[name].tolerance, disagreement(results[name], results[reference]))


def check_within(tolerance: Tolerance, found: dict[str, float]) -> None:
    limits = asdict(tolerance)
    assert limits.keys() == found.keys()
    assert all(found[kind] < limits[kind] for kind in limits), found


@pytest.mark.parametrize("place", [("losses", 1), ("norms", 0), ("validation", None), ("parameters", "b")])
def test_a_value_that_is_not_a_number_is_a_difference(place: tuple[str, Any]) -> None:
    def result() -> Result:
        record = {"losses": [3.0, 2.0, 1.0], "norms": [1.0, 1.0, 2.0], "validation": 3.0}
        return record, {name: torch.ones(3) for name in "abc"}

    check_within(FP32, disagreement(result(), result()))
    changed = result()
    kind, key = place
    if kind == "parameters":
        changed[1][key][1] = math.nan
    elif key is None:
        changed[0][kind] = math.nan
    else:
        changed[0][kind][key] = math.nan
    with pytest.raises(AssertionError, match="nan"):
        check_within(FP32, disagreement(changed, result()))


@pytest.mark.parametrize("name", [plan.name for plan in QUICK if plan.num_processes == 1])
def test_the_loss_falls_and_gradients_are_clipped(results: dict[str, Result], name: str) -> None:
    record, _ = results[name]
    assert record["losses"][-1] < 0.95 * record["losses"][0]
    assert sorted(record["norms"])[len(record["norms"]) // 2] > 0.5  # gradients are clipped


def test_deepspeed_keeps_no_time_of_any_step(results: dict[str, Result]) -> None:
    """It keeps one for each step where nobody reads them: on a GPU two CUDA events, until the run ends."""
    assert {record["timings"] for record, _ in results.values()} == {0}


@pytest.mark.parametrize("name", compared(QUICK))
def test_mesh_equals_one_process(results: dict[str, Result], name: str) -> None:
    check_equal(results, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", compared(MATRIX))
def test_every_mesh_equals_one_process(matrix: dict[str, Result], name: str) -> None:
    check_equal(matrix, name)


@pytest.mark.parametrize("number", range(len(BUGS)), ids=[bug for _, bug in BUGS])
def test_planted_bugs_are_detected(results: dict[str, Result], number: int) -> None:
    found = disagreement(results[f"fnet_t5_bug{number}_{BUGS[number][0]}"], results["fnet_t5_t1p1d1"])
    assert largest(found.values()) > 10 * FP32.losses, found


def plain_run(plan: Plan) -> Result:
    """Train without DeepSpeed and Megatron: single-process model, torch's AdamW (one group per tensor), torch's clipping."""
    config, objective = run_config(plan), objective_of(plan)
    settings = config.optimizer
    model = build_model(config.model)
    initialize(model, config.train.seed)
    groups = [
        {"params": [p], "decay": settings.weight_decay * (p.ndim == 2 and ".layers." in name)}
        for name, p in model.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps)
    losses, norms = [], []
    for step in range(1, STEPS + 1):
        batch, counts = global_batch(step, objective)
        outputs = model(model.inputs([torch.from_numpy(array) for array in batch.inputs]))
        of_tokens, *of_order = batch.losses
        logits = outputs.mlm if of_order else outputs
        loss = _mean_nll(logits, of_tokens, counts[0])
        if of_order:
            loss = loss + _mean_nll(outputs.order, of_order[0], counts[1])
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)))
        for group in optimizer.param_groups:
            (p,) = group["params"]
            scale = max(1e-3, float(p.detach().square().mean().sqrt())) if settings.name == "adamw_rms" else 1.0
            # torch decays by lr * weight_decay: divide by the scale to keep it out of the decay
            group.update(lr=settings.learning_rate * scale, weight_decay=group["decay"] / scale)
        optimizer.step()
        losses.append(float(loss.detach()))
    return {"losses": losses, "norms": norms, "validation": 1.0}, model.state_dict()


def _mean_nll(logits: Tensor, loss: Any, count: int) -> Tensor:
    targets, mask = map(torch.from_numpy, loss)
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return (nll * mask.flatten()).sum() / count


@pytest.mark.parametrize("name", ["fnet_t5_t1p1d1", "t5_spans_t1p1d1", "gpt2_t1p1d1", "prefix_decoder_t1p1d1", "bert_t1p1d1"])
def test_one_process_equals_a_plain_training_loop(results: dict[str, Result], name: str) -> None:
    record, parameters = results[name]
    found = disagreement(({**record, "validation": 1.0}, parameters), plain_run(PLANS[name]))
    check_within(PLANS[name].tolerance, found)


@pytest.mark.parametrize("name", [plan.name for plan in QUICK if plan.optimizer])
def test_rms_scaling_equals_a_plain_per_tensor_optimizer(results: dict[str, Result], name: str) -> None:
    record, parameters = results[name]
    found = disagreement(({**record, "validation": 1.0}, parameters), plain_run(cell("fnet_t5", "t1p1d1", optimizer=RMS)))
    check_within(PLANS[name].tolerance, found)
