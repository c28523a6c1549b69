"""Run by N processes: trains one small model for ten steps on each of the given meshes, all in one process start.

    parity_worker.py OUTPUT PLAN.json      PLAN: [{"name", "tensor", "pipeline", "data", "bug"?}, …]

Writes OUTPUT/<name>.json (losses, gradient norms, validation loss) and OUTPUT/<name>.safetensors (final parameters by canonical
name). Batches are random integers from a fixed generator: the same on every mesh, whatever the number of processes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from models.config import expand_size
from pipeline.batches import PipelineBatch, Share, as_tensors
from pipeline.checkpoints import gather_full
from pipeline.config import RunConfig
from pipeline.engine import Engine
from pipeline.mesh import join
from pipeline.objectives.prefix_lm import Batch, PrefixLM
from pipeline.stages import own_gradients

STEPS, ENCODER, DECODER, VOCABULARY, GLOBAL_BATCH, MICRO_BATCH = 10, 16, 8, 250, 8, 2


def run_config(plan: dict[str, Any]) -> RunConfig:
    model = expand_size({"size": "nano", "vocab_size": VOCABULARY, **plan.get("model", {})})
    return RunConfig.model_validate(
        {
            "model": model,
            "data": {"path": "unused", "encoder_length": ENCODER, "decoder_length": DECODER},
            "mesh": {"tensor_parallel": plan["tensor"], "pipeline_parallel": plan["pipeline"]},
            "train": {
                "steps": STEPS,
                "global_batch_size": GLOBAL_BATCH,
                "micro_batch_size": plan.get("micro_batch", MICRO_BATCH),
                "precision": "fp32",
                "seed": 3,
                "recompute": plan.get("recompute", False),
            },
            # no warm-up, a rate at which the loss moves, and a clip that always bites
            "optimizer": {
                "learning_rate": 0.004,
                "schedule": "constant",
                "warmup_steps": 0,
                "clip": 0.5,
                **plan.get("optimizer", {}),
            },
        }
    )


def global_batch(step: int) -> tuple[Batch, int]:
    """Rows of uneven lengths (so that target counts differ between micro-batches) from a skewed vocabulary."""
    rng = np.random.default_rng(step)
    lengths = rng.integers(ENCODER - 4, ENCODER + DECODER + 1, size=GLOBAL_BATCH)
    lengths[0] = ENCODER + DECODER
    rows = (VOCABULARY * rng.random((GLOBAL_BATCH, ENCODER + DECODER)) ** 8).astype(np.int64)
    objective = PrefixLM(ENCODER, DECODER, start_id=0)
    return objective(rows, lengths), int(objective.num_targets(lengths).sum())


def micro_batches(step: int, share: Share) -> list[PipelineBatch]:
    batch, num_targets = global_batch(step)
    weight = GLOBAL_BATCH // share.micro_batch_size / num_targets
    result = []
    for rows in share.micro_batches(np.arange(GLOBAL_BATCH)):
        portion = Batch(*(getattr(batch, name)[rows] for name in Batch.__dataclass_fields__))
        result.append(as_tensors(portion, weight))
    return result


def plant(bug: str | None, engine: Engine) -> None:
    """Break the engine on purpose: the parity check has to notice."""
    if bug == "tied gradients are not reduced":
        instructions = engine.deepspeed._INSTRUCTION_MAP
        reduce = next(kind for kind in instructions if kind.__name__ == "ReduceTiedGrads")
        engine.deepspeed._INSTRUCTION_MAP = {**instructions, reduce: lambda self: None}
    elif bug == "gradients stay in the receive buffer":
        if own_gradients in engine.stages.forward_funcs:
            engine.stages.forward_funcs.remove(own_gradients)
    elif bug == "norm gradients are not summed":
        engine.partial_gradients.clear()
    else:
        assert bug is None


def main() -> None:
    output, plans = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(1)
    for plan in plans:
        config = run_config(plan)
        mesh = join(config.mesh)
        engine = Engine(config, mesh)
        plant(plan.get("bug"), engine)
        losses, norms = [], []
        for step in range(1, STEPS + 1):
            result = engine.train_step(micro_batches(step, engine.share), config.optimizer.learning_rate)
            assert result.skipped is None
            losses.append(result.loss)
            norms.append(result.grad_norm)
        validation = engine.evaluate(micro_batches(1000, engine.share))
        parameters = gather_full(engine.stages, mesh)
        stages: list[Any] = [None] * mesh.world_size
        torch.distributed.all_gather_object(stages, parameters)
        if mesh.is_main:
            merged = {name: tensor for stage in stages for name, tensor in stage.items()}
            save_file(merged, output / f"{plan['name']}.safetensors")
            record = {"losses": losses, "norms": norms, "validation": validation}
            (output / f"{plan['name']}.json").write_text(json.dumps(record))
    torch.distributed.barrier()
    os._exit(0)  # several meshes leave several groups behind; nothing is left to flush


if __name__ == "__main__":
    main()
