"""Worker for N processes: trains one small model for ten steps on each of the given meshes, in one start of the processes.

    parity_worker.py OUTPUT PLANS.json      PLANS.json: a list of `tests.helpers.parity.Plan`

Writes OUTPUT/<name>.json (losses, gradient norms, validation loss) and OUTPUT/<name>.safetensors (final parameters by canonical
name).
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file

from pipeline.checkpoint.checkpoint import gather_share
from pipeline.distributed.mesh import join
from pipeline.distributed.pipeline_stages import clone_stage_gradients
from pipeline.engine.engine import Engine
from tests.helpers.parity import STEPS, Plan, micro_batches, objective_of, run_config, share_groups


def plant(bug: str | None, engine: Engine) -> None:
    """Plant a bug in the engine, which the parity check must detect."""
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
        engine.shard = replace(engine.shard, data_rank=0)
    else:
        assert bug is None


def num_timings(engine: Engine) -> int:
    """How many times of steps DeepSpeed holds: on a GPU two CUDA events each."""
    return sum(len(timer.event_timers) for timer in engine.deepspeed.timers.get_timers().values())


def main() -> None:
    output = Path(sys.argv[1])
    plans = TypeAdapter(list[Plan]).validate_json(Path(sys.argv[2]).read_bytes())
    torch.set_num_threads(1)
    share_groups()
    for plan in plans:
        config = run_config(plan)
        mesh = join(config.mesh)
        engine = Engine(config, mesh)
        task = objective_of(plan)
        plant(plan.bug, engine)
        losses, norms = [], []
        for step in range(1, STEPS + 1):
            result = engine.train_step(micro_batches(step, engine.shard, task), config.optimizer.learning_rate)
            assert result.skipped is None
            losses.append(result.loss)
            norms.append(result.grad_norm)
        validation = engine.evaluate(micro_batches(1000, engine.shard, task))
        parameters, _ = gather_share(engine.stages, mesh)
        stages: list[Any] = [None] * mesh.world_size
        torch.distributed.all_gather_object(stages, parameters)
        if mesh.is_main:
            merged = {name: tensor for stage in stages for name, tensor in stage.items()}
            save_file(merged, output / f"{plan.name}.safetensors")
            record = {"losses": losses, "norms": norms, "validation": validation, "timings": num_timings(engine)}
            (output / f"{plan.name}.json").write_text(json.dumps(record))
    torch.distributed.barrier()
    os._exit(0)  # skip the teardown of several meshes' groups; nothing is left to flush


if __name__ == "__main__":
    main()
