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
RMS = {"name": "adamw_rms", "learning_rate": 0.02, "weight_decay": 0.1}
ONE, TWO, FOUR = (
    [{"name": "one", "tensor": 1, "pipeline": 1}, {"name": "one_untied", "tensor": 1, "pipeline": 1, "model": "untied"}],
    [
        {"name": "tp2", "tensor": 2, "pipeline": 1},
        {"name": "pp2", "tensor": 1, "pipeline": 2},
        {"name": "dp2", "tensor": 1, "pipeline": 1},
        {"name": "tp2_columns", "tensor": 2, "pipeline": 1, "micro_batch": 1},
        {"name": "dp2_rms", "tensor": 1, "pipeline": 1, "optimizer": RMS},
        {"name": "tp2_rms", "tensor": 2, "pipeline": 1, "optimizer": RMS},
        {"name": "planted_tied", "tensor": 1, "pipeline": 2, "bug": "tied gradients are not reduced"},
        {"name": "planted_buffer", "tensor": 1, "pipeline": 2, "bug": "gradients stay in the receive buffer"},
        {"name": "planted_norms", "tensor": 2, "pipeline": 1, "bug": "norm gradients are not summed"},
    ],
    [
        {"name": "tp2_pp2", "tensor": 2, "pipeline": 2},
        {"name": "pp2_dp2", "tensor": 1, "pipeline": 2},
        {"name": "pp2_dp2_rms", "tensor": 1, "pipeline": 2, "optimizer": RMS},
        {"name": "tp4", "tensor": 4, "pipeline": 1, "micro_batch": 4},
        {"name": "tp4_columns", "tensor": 4, "pipeline": 1},
        {"name": "tp2_pp2_recompute", "tensor": 2, "pipeline": 2, "recompute": True},
        {"name": "tp2_pp2_untied", "tensor": 2, "pipeline": 2, "model": "untied"},
    ],
)
# an attending encoder layer beside a Fourier one, an untied head, and the plain feed-forward
UNTIED = {"tie_embeddings": False, "num_attention_layers": 1, "feed_forward": "relu"}
Result = tuple[dict[str, Any], dict[str, Tensor]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, start_processes: Callable[..., None]) -> dict[str, Result]:
    folder = tmp_path_factory.mktemp("parity")
    for num_processes, plans in ((1, ONE), (2, TWO), (4, FOUR)):
        resolved = [{**plan, "model": UNTIED if plan.get("model") else {}} for plan in plans]
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
        "parameters": max(
            float((our_parameters[name] - value).norm() / value.norm()) for name, value in their_parameters.items()
        ),
    }


def test_the_run_is_worth_comparing(results: dict[str, Result]) -> None:
    record, _ = results["one"]
    assert record["losses"][-1] < 0.9 * record["losses"][0]
    assert min(record["norms"]) > 0.5  # the clip


@pytest.mark.parametrize(
    "mesh", ["tp2", "tp2_columns", "pp2", "dp2", "tp2_pp2", "pp2_dp2", "tp4", "tp4_columns", "tp2_pp2_recompute"]
)
def test_mesh_equals_one_process(results: dict[str, Result], mesh: str) -> None:
    found = disagreement(results[mesh], results["one"])
    assert max(found.values()) < TOLERANCE, found


def test_untied_mixed_encoder_equals_one_process(results: dict[str, Result]) -> None:
    found = disagreement(results["tp2_pp2_untied"], results["one_untied"])
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("bug", ["planted_tied", "planted_buffer", "planted_norms"])
def test_turns_red_when_a_bug_is_planted(results: dict[str, Result], bug: str) -> None:
    found = disagreement(results[bug], results["one"])
    assert found["norms"] > TOLERANCE
    assert found["parameters"] > TOLERANCE


def worker_module() -> Any:
    import importlib.util

    spec = importlib.util.spec_from_file_location("parity_worker", Path(__file__).parent / "parity_worker.py")
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    return worker


def plain_run(optimizer_settings: dict[str, Any]) -> Result:
    """Neither DeepSpeed nor Megatron: the single-process model, torch's AdamW (a group a tensor) and torch's clipping."""
    worker = worker_module()
    config = worker.run_config({"tensor": 1, "pipeline": 1, "optimizer": optimizer_settings})
    settings = config.optimizer
    model = Seq2Seq(config.model)
    initialize(model, config.train.seed)
    groups = [
        {"params": [p], "decay": settings.weight_decay * (p.ndim == 2 and ".layers." in name)}
        for name, p in model.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps)
    losses, norms = [], []
    for step in range(1, worker.STEPS + 1):
        batch, num_targets = worker.global_batch(step)
        inputs = Inputs(*(torch.from_numpy(array) for array in (batch.encoder_ids, batch.encoder_mask, batch.decoder_ids)))
        nll = model.factory.cross_entropy(model(inputs), torch.from_numpy(batch.targets))
        loss = (nll * torch.from_numpy(batch.target_mask)).sum() / num_targets
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)))
        for group in optimizer.param_groups:
            (p,) = group["params"]
            scale = max(1e-3, float(p.detach().square().mean().sqrt())) if settings.name == "adamw_rms" else 1.0
            # torch decays by lr * weight_decay: the scale must not enter there
            group.update(lr=settings.learning_rate * scale, weight_decay=group["decay"] / scale)
        optimizer.step()
        losses.append(float(loss.detach()))
    return {"losses": losses, "norms": norms, "validation": 1.0}, model.state_dict()


def test_one_process_equals_a_plain_training_loop(results: dict[str, Result]) -> None:
    record, parameters = results["one"]
    found = disagreement(({**record, "validation": 1.0}, parameters), plain_run({}))
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("mesh", ["dp2_rms", "tp2_rms", "pp2_dp2_rms"])
def test_rms_scaling_equals_a_plain_per_tensor_optimizer(results: dict[str, Result], mesh: str) -> None:
    record, parameters = results[mesh]
    found = disagreement(({**record, "validation": 1.0}, parameters), plain_run(RMS))
    assert max(found.values()) < TOLERANCE, found
