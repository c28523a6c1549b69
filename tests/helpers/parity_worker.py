"""Run by N processes: trains one small model for ten steps on each of the given meshes, all in one process start.

    parity_worker.py OUTPUT PLAN.json      PLAN: [{"name", "tensor", "pipeline", "model"?, "objective"?, "bug"?, …}, …]

Writes OUTPUT/<name>.json (losses, gradient norms, validation loss) and OUTPUT/<name>.safetensors (final parameters by canonical
name). Batches are random integers from a fixed generator: the same on every mesh, whatever the number of processes.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from models.config import expand_size
from pipeline.checkpoint.checkpoint import gather_full
from pipeline.config import RunConfig
from pipeline.data.batches import DataShard, PipelineBatch, as_tensors
from pipeline.distributed.mesh import join
from pipeline.distributed.pipeline_stages import clone_stage_gradients
from pipeline.objectives.catalogue import build_objective
from pipeline.objectives.interface import AnyBatch, Objective
from pipeline.objectives.prefix_lm import PrefixLM
from pipeline.objectives.vocabulary import Vocabulary
from pipeline.training.engine import Engine

STEPS, VOCABULARY, GLOBAL_BATCH, MICRO_BATCH = 10, 250, 8, 2
LENGTHS = (16, 8)
VOCABULARY_OF_TESTS = Vocabulary(
    start=0,
    end=1,
    sentinels=tuple(range(200, 220)),
    named={"[CLS]": 220, "[SEP]": 221, "[MASK]": 222, "[NLU]": 223, "[NLG]": 224, "[S2S]": 225},
    ordinary=np.arange(2, 200),
    ends_sentence=np.zeros(VOCABULARY, dtype=bool),
    ends_line=np.zeros(VOCABULARY, dtype=bool),
)


def run_config(plan: dict[str, Any]) -> RunConfig:
    model = expand_size({"size": "nano", "vocab_size": VOCABULARY, **plan.get("model", {})})
    return RunConfig.model_validate(
        {
            "model": model,
            "data": {
                "path": "unused",
                "encoder_length": plan.get("lengths", LENGTHS)[0],
                "decoder_length": plan.get("lengths", LENGTHS)[1],
                "objective": plan.get("objective", "prefix_lm"),
            },
            "mesh": {"tensor_parallel": plan["tensor"], "pipeline_parallel": plan["pipeline"]},
            "train": {
                "steps": STEPS,
                "global_batch_size": GLOBAL_BATCH,
                "micro_batch_size": plan.get("micro_batch", MICRO_BATCH),
                "precision": plan.get("precision", "fp32"),
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


def objective(plan: dict[str, Any]) -> Objective:
    """The plan's objective as its architecture takes it."""
    config = run_config(plan)
    return build_objective(
        config.data.objective,
        architecture=config.model.architecture,
        encoder_length=config.data.encoder_length,
        decoder_length=config.data.decoder_length,
        vocabulary=VOCABULARY_OF_TESTS,
        seed="parity",
    )


PREFIX_LM = PrefixLM(encoder_length=LENGTHS[0], decoder_length=LENGTHS[1], start_id=0)


def global_batch(step: int, objective: Objective = PREFIX_LM) -> tuple[AnyBatch, tuple[int, ...]]:
    """Rows of uneven lengths (so that target counts differ between micro-batches) from a skewed vocabulary, and its targets."""
    rng = np.random.default_rng(step)
    longest = objective.row_length
    lengths = rng.integers(longest // 2, longest + 1, size=GLOBAL_BATCH)
    lengths[0] = longest
    rows = (VOCABULARY * rng.random((GLOBAL_BATCH, longest)) ** 8).astype(np.int64)
    samples = np.arange(GLOBAL_BATCH) + step * GLOBAL_BATCH
    return objective(rows, lengths, samples), objective.loss_counts(lengths, samples)


def micro_batches(step: int, share: DataShard, objective: Objective = PREFIX_LM) -> list[PipelineBatch]:
    batch, counts = global_batch(step, objective)
    weights = [GLOBAL_BATCH // share.micro_batch_size / max(1, count) for count in counts]
    result = []
    for rows in share.micro_batches(np.arange(GLOBAL_BATCH)):
        portion = type(batch)(**{name: getattr(batch, name)[rows] for name in batch.__dataclass_fields__})
        result.append(as_tensors(portion, *weights))
    return result


def share_groups() -> None:
    """Let process groups of the same ranks be one group: a mesh joined anew would leave its threads and sockets behind."""
    make, made = torch.distributed.new_group, {}

    def new_group(ranks: Any = None, *arguments: Any, **options: Any) -> Any:
        key = tuple(range(torch.distributed.get_world_size()) if ranks is None else ranks)
        if key not in made:
            made[key] = make(list(key), *arguments, **options)
        return made[key]

    torch.distributed.new_group = new_group
    torch.distributed.destroy_process_group = lambda group=None: None  # Megatron takes some of its groups away


def plant(bug: str | None, engine: Engine) -> None:
    """Break the engine on purpose: the parity check has to notice."""
    if bug == "tied gradients are not reduced":
        instructions = engine.deepspeed._INSTRUCTION_MAP
        reduce = next(kind for kind in instructions if kind.__name__ == "ReduceTiedGrads")
        engine.deepspeed._INSTRUCTION_MAP = {**instructions, reduce: lambda self: None}
    elif bug == "gradients stay in the receive buffer":
        if clone_stage_gradients in engine.stages.forward_funcs:
            engine.stages.forward_funcs.remove(clone_stage_gradients)
    elif bug == "norm gradients are not summed":
        engine.partial_gradients.clear()
    elif bug == "gradients of the last stage are divided by the accumulation steps twice":  # DeepSpeed issue 8152
        if engine.mesh.pipeline_rank == engine.mesh.pipeline_parallel - 1:
            for parameter in engine.stages.parameters():
                parameter.register_hook(lambda gradient: gradient / engine.accumulation_steps)
    elif bug == "tied weights count twice in the norm":
        for parameter in engine.stages.parameters():
            parameter.ds_pipe_replicated = False  # type: ignore[attr-defined]
    elif bug == "every replica reads the data of the first":
        engine.share = replace(engine.share, data_rank=0)
    else:
        assert bug is None


def main() -> None:
    output, plans = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(1)
    share_groups()
    for plan in plans:
        config = run_config(plan)
        mesh = join(config.mesh)
        engine = Engine(config, mesh)
        task = objective(plan)
        plant(plan.get("bug"), engine)
        losses, norms = [], []
        for step in range(1, STEPS + 1):
            result = engine.train_step(micro_batches(step, engine.share, task), config.optimizer.learning_rate)
            assert result.skipped is None
            losses.append(result.loss)
            norms.append(result.grad_norm)
        validation = engine.evaluate(micro_batches(1000, engine.share, task))
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
