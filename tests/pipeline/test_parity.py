"""The same model, data and seed on one process and on every small mesh: losses, norms and all final parameters agree.

Real gloo processes, DeepSpeed's pipeline engine, Megatron's layers; fp32, ZeRO-1, four accumulation steps on one replica, tied
embeddings, clipping that always bites, uneven target counts, ten steps without warm-up.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.initialization import initialize
from models.pieces import Inputs
from models.seq2seq import Seq2Seq

TOLERANCE = 1e-4
ONE, TWO, FOUR = (
    [
        {"name": "one", "tensor": 1, "pipeline": 1},
        {"name": "one_untied", "tensor": 1, "pipeline": 1, "model": "untied"},
        {"name": "one_other", "tensor": 1, "pipeline": 1, "model": "other"},
    ],
    [
        {"name": "tp2", "tensor": 2, "pipeline": 1},
        {"name": "pp2", "tensor": 1, "pipeline": 2},
        {"name": "dp2", "tensor": 1, "pipeline": 1},
        {"name": "planted_tied", "tensor": 1, "pipeline": 2, "bug": "tied gradients are not reduced"},
        {"name": "planted_buffer", "tensor": 1, "pipeline": 2, "bug": "gradients stay in the receive buffer"},
    ],
    [
        {"name": "tp2_pp2", "tensor": 2, "pipeline": 2},
        {"name": "pp2_dp2", "tensor": 1, "pipeline": 2},
        {"name": "tp2_pp2_untied", "tensor": 2, "pipeline": 2, "model": "untied"},
        {"name": "tp2_pp2_other", "tensor": 2, "pipeline": 2, "model": "other"},
    ],
)
# an attending encoder layer beside a Fourier one, an untied head, and the plain feed-forward
UNTIED = {"tie_embeddings": False, "num_attention_layers": 1, "feed_forward": "relu"}
# whatever else a piece can be made of: biases on sharded layers, learnt positions (so no bias tables travel), learnt mixing
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
MODELS: dict[str | None, dict[str, Any]] = {None: {}, "untied": UNTIED, "other": OTHER}
Result = tuple[dict[str, Any], dict[str, Tensor]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, start_processes: Callable[..., None]) -> dict[str, Result]:
    folder = tmp_path_factory.mktemp("parity")
    for num_processes, plans in ((1, ONE), (2, TWO), (4, FOUR)):
        resolved = [{**plan, "model": MODELS[plan.get("model")]} for plan in plans]  # type: ignore[index]
        plan_file = folder / f"processes_{num_processes}.plan"
        plan_file.write_text(json.dumps(resolved))
        start_processes(num_processes, "parity_worker.py", folder, plan_file)
    return {
        path.stem: (json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))) for path in folder.glob("*.json")
    }


def disagreement(first: Result, second: Result) -> dict[str, float]:
    """Largest relative difference of each kind; a parameter's is in the 2-norm."""
    (ours, our_parameters), (theirs, their_parameters) = first, second
    assert our_parameters.keys() == their_parameters.keys()
    return {
        "losses": max(abs(a - b) / abs(b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)),
        "norms": max(abs(a - b) / abs(b) for a, b in zip(ours["norms"], theirs["norms"], strict=True)),
        "validation": abs(ours["validation"] - theirs["validation"]) / theirs["validation"],
        # A bias of all keys moves every score of a query alike: its gradient is rounding alone, which Adam blows up.
        "parameters": max(
            float((our_parameters[name] - value).norm() / value.norm())
            for name, value in their_parameters.items()
            if not name.endswith("key.bias")
        ),
    }


def test_the_run_is_worth_comparing(results: dict[str, Result]) -> None:
    record, _ = results["one"]
    assert record["losses"][-1] < 0.9 * record["losses"][0]
    assert min(record["norms"]) > 0.5  # the clip


@pytest.mark.parametrize("mesh", ["tp2", "pp2", "dp2", "tp2_pp2", "pp2_dp2"])
def test_mesh_equals_one_process(results: dict[str, Result], mesh: str) -> None:
    found = disagreement(results[mesh], results["one"])
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("model", ["untied", "other"])
def test_other_models_equal_one_process(results: dict[str, Result], model: str) -> None:
    found = disagreement(results[f"tp2_pp2_{model}"], results[f"one_{model}"])
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("bug", ["planted_tied", "planted_buffer"])
def test_turns_red_when_a_bug_is_planted(results: dict[str, Result], bug: str) -> None:
    found = disagreement(results[bug], results["one"])
    assert found["norms"] > TOLERANCE
    assert found["parameters"] > TOLERANCE


def test_one_process_equals_a_plain_training_loop(results: dict[str, Result]) -> None:
    """Neither DeepSpeed nor Megatron: the single-process model, torch's AdamW and torch's clipping."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("parity_worker", Path(__file__).parent / "parity_worker.py")
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    config = worker.run_config({"tensor": 1, "pipeline": 1})
    model = Seq2Seq(config.model)
    initialize(model, config.train.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.optimizer.learning_rate,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        weight_decay=0.0,
    )
    losses, norms = [], []
    for step in range(1, worker.STEPS + 1):
        batch, num_targets = worker.global_batch(step)
        inputs = Inputs(*(torch.from_numpy(array) for array in (batch.encoder_ids, batch.encoder_mask, batch.decoder_ids)))
        nll = model.factory.cross_entropy(model(inputs), torch.from_numpy(batch.targets))
        loss = (nll * torch.from_numpy(batch.target_mask)).sum() / num_targets
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)))
        optimizer.step()
        losses.append(float(loss.detach()))
    plain: Result = ({"losses": losses, "norms": norms, "validation": results["one"][0]["validation"]}, model.state_dict())
    found = disagreement(results["one"], plain)
    assert max(found.values()) < TOLERANCE, found
