"""Worker for 4 (then 2, then 1) processes: checkpoints across meshes, the skip-step guard, replica consistency and memory.

Many cases run in one start of the processes.

    mesh_worker.py OUTPUT reshard     4 processes: train, save, resume on every mesh; fewer: resume what 4 processes saved
    mesh_worker.py OUTPUT guard       corrupt a step, a replica and the data order; measure bytes

Writes OUTPUT/<what>_<processes>.json.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from megatron.core import parallel_state

from pipeline.checkpoint import checkpoint as checkpoints
from pipeline.checkpoint.checkpoint import Position, load_state, mesh_shape
from pipeline.checkpoint.checkpoint import save as save_checkpoint
from pipeline.config import RunConfig
from pipeline.distributed.consistency import check_replica_consistency
from pipeline.distributed.mesh import Mesh, join
from pipeline.distributed.rng import seed_dropout
from pipeline.engine.engine import Engine
from pipeline.optim.zero_fragments import inner_optimizer
from pipeline.planner.hardware import gpu
from pipeline.planner.plan import make_plan
from pipeline.run_folder import checkpoints_of
from pipeline.tracking.metrics import Counters
from tests.helpers.meshes import MESHES, SAVED_AT, SETTINGS, STEPS, result_name
from tests.helpers.parity import GLOBAL_BATCH, Training, micro_batches, objective_of, run_config, share_groups


def build(
    setting: str, tensor: int, pipeline: int, model: dict[str, Any] | None = None, **train: Any
) -> tuple[Engine, RunConfig, Mesh]:
    config = run_config(replace(SETTINGS[setting].training, tensor=tensor, pipeline=pipeline, model=model or {}))
    values = config.model_dump()
    values["train"].update(train)
    config = RunConfig.model_validate(values)
    mesh = join(config.mesh)
    return Engine(config, mesh), config, mesh


def steps(engine: Engine, config: RunConfig, first: int, last: int) -> list[float]:
    return [
        engine.train_step(micro_batches(step, engine.shard), config.optimizer.learning_rate).loss
        for step in range(first, last + 1)
    ]


def bits(engine: Engine) -> list[torch.Tensor]:
    """Weights and optimizer state of this rank."""
    states = inner_optimizer(engine.deepspeed).state
    values = [parameter.detach().clone() for parameter in engine.stages.parameters()]
    values += [piece.master.clone() for piece in engine.fragments]
    for flat in sorted(states, key=lambda flat: flat.numel()):
        values += [states[flat][name].clone() for name in ("step", "exp_avg", "exp_avg_sq") if name in states[flat]]
    return values


def save(run: Path, engine: Engine, mesh: Mesh) -> None:
    position = Position(
        step=SAVED_AT,
        seed=3,
        dataset_fingerprint="data",
        counters=Counters(),
        mesh=mesh_shape(mesh),
        guards=engine.skip_step.spikes.state(),
    )
    save_checkpoint(run, engine, position, micro_batches(1000, engine.shard)[0])


def resharding(output: Path, world_size: int, results: dict[str, Any]) -> None:
    checkpoints._SHARE_BYTES = 1  # every rank writes a part of the weights, as those of a large model do
    for setting in SETTINGS:
        run = output / setting
        checkpoint = checkpoints_of(run) / "step_00000003"
        if world_size == 4:
            engine, config, mesh = build(setting, 2, 2)
            steps(engine, config, 1, SAVED_AT)
            (run / "checkpoints").mkdir(parents=True, exist_ok=True)
            save(run, engine, mesh)
            saved = bits(engine)
            results[f"{setting}_straight"] = steps(engine, config, SAVED_AT + 1, STEPS)
        for tensor, pipeline in MESHES[world_size]:
            engine, config, mesh = build(setting, tensor, pipeline)
            load_state(checkpoint, engine, micro_batches(1000, engine.shard)[0])
            name = result_name(setting, tensor, pipeline, mesh.data_parallel)
            if world_size == 4 and (tensor, pipeline) == (2, 2):
                same = all(torch.equal(a, b) for a, b in zip(bits(engine), saved, strict=True))
                results[f"{setting}_bit_equal"] = not mesh.any(not same)[0]
            results[name] = steps(engine, config, SAVED_AT + 1, STEPS)


@contextmanager
def spoil_gradient(engine: Engine, here: bool) -> Iterator[None]:
    """Make one gradient of this rank infinite in the backward pass; its loss stays finite."""
    parameter = next(parameter for parameter in engine.stages.parameters() if parameter.requires_grad)
    handle = parameter.register_hook(lambda gradient: gradient * math.inf) if here else None
    yield
    if handle is not None:
        handle.remove()


@contextmanager
def spoil_norm(engine: Engine, here: bool) -> Iterator[None]:
    """Let this rank alone compute a norm that is not finite, as a faulty device would."""
    guard = engine.skip_step
    measure = guard._norm  # a collective
    if here:
        guard._norm = lambda: measure() * math.nan  # type: ignore[method-assign]
    yield
    guard.__dict__.pop("_norm", None)


def guarding(results: dict[str, Any]) -> None:
    for setting, bad_rank in (("fp32", 3), ("bf16", 2)):
        engine, config, mesh = build(setting, 1, 2, spike_window=6)
        steps(engine, config, 1, 4)
        before = bits(engine)
        found = {}
        for name, value in (("nan_gradient", math.nan), ("infinite_gradient", math.inf), ("spike", 1e4)):
            batches = micro_batches(5, engine.shard)
            if mesh.rank == bad_rank:  # the last stage of one replica: its labels hold the weights of the loss
                batches[-1][1][1].mul_(value)
            result = engine.train_step(batches, config.optimizer.learning_rate)
            same = all(torch.equal(a, b) for a, b in zip(before, bits(engine), strict=True))
            found[name] = {"skipped": result.skipped, "bit_equal": not mesh.any(not same)[0]}
        for name, spoil in (("gradient_alone", spoil_gradient), ("one_rank_alone", spoil_norm)):
            with spoil(engine, mesh.rank == bad_rank):
                result = engine.train_step(micro_batches(5, engine.shard), config.optimizer.learning_rate)
            same = all(torch.equal(a, b) for a, b in zip(before, bits(engine), strict=True))
            found[name] = {"skipped": result.skipped, "bit_equal": not mesh.any(not same)[0]}
            found[f"{name}_loss"] = result.loss
        asked = engine.train_step(micro_batches(5, engine.shard), config.optimizer.learning_rate, skip=True)
        same = all(torch.equal(a, b) for a, b in zip(before, bits(engine), strict=True))
        found["asked"] = {"skipped": asked.skipped, "bit_equal": not mesh.any(not same)[0]}
        taken = engine.train_step(micro_batches(6, engine.shard), config.optimizer.learning_rate)
        changed = any(not torch.equal(a, b) for a, b in zip(before, bits(engine), strict=True))
        found["next"] = {"skipped": taken.skipped, "bit_equal": not changed}
        # the same run without the skipped steps
        other, config, _ = build(setting, 1, 2, spike_sigma=0)
        steps(other, config, 1, 4)
        loss = steps(other, config, 6, 6)[0]
        found["next_loss_equal"] = taken.loss == loss
        results[f"guards_{setting}"] = found


def checking_consistency(results: dict[str, Any]) -> None:
    engine, _, mesh = build("fp32", 2, 1)
    rows = np.arange(8)
    named = {entry.name: entry.parameter for entry in engine.stages.canonical_parameters()}
    norm = named["encoder.layers.0.mixing_norm.weight"]
    embedding = engine.stages.tied_modules["embedding"].module.weight

    def complaint(samples: Any) -> str:
        try:
            check_replica_consistency(engine.stages, mesh, samples)
        except ValueError as error:
            return str(error)
        return ""

    results["consistency_clean"] = complaint(rows)
    results["consistency_data"] = complaint(rows + (mesh.rank == 1))
    for name, parameter in (("replicated", norm), ("replica", embedding)):
        kept = parameter.detach().clone()
        if mesh.rank == 1:
            with torch.no_grad():
                parameter.view(-1).view(torch.int32)[0] ^= 1  # the last bit
        results[f"consistency_{name}"] = complaint(rows)
        with torch.no_grad():
            parameter.copy_(kept)
    engine, _, mesh = build("fp32", 1, 2)
    if mesh.pipeline_rank == 1:
        with torch.no_grad():
            engine.stages.tied_modules["embedding"].module.weight.view(-1).view(torch.int32)[0] ^= 1
    results["consistency_tied"] = complaint(rows)


def dropping(results: dict[str, Any]) -> None:
    """Dropout masks in a tensor group: equal on all ranks for a replicated tensor, different per rank for a sharded one."""
    engine, config, mesh = build("fp32", 2, 1, {"dropout": 0.3})
    for step in (1, 2, 3):
        seed_dropout(config.train.seed, step, mesh)
        steps(engine, config, step, step)
    check_replica_consistency(engine.stages, mesh, np.arange(8))  # different masks would make replicated weights diverge
    seen: dict[str, torch.Tensor] = {}
    (layer,) = [module for module in engine.stages.modules() if type(module).__name__ == "DecoderLayer"][:1]
    hooks = [
        layer.feed_forward.down.register_forward_pre_hook(lambda _, inputs: seen.update(sharded=inputs[0].detach() == 0)),
        layer.register_forward_hook(lambda *arguments: seen.update(replicated=arguments[2].detach().clone())),
    ]
    seed_dropout(config.train.seed, 4, mesh)
    steps(engine, config, 4, 4)
    for hook in hooks:
        hook.remove()
    group = parallel_state.get_tensor_model_parallel_group()
    for name, tensor in seen.items():
        both = [torch.empty_like(tensor) for _ in range(2)]
        torch.distributed.all_gather(both, tensor.contiguous(), group=group)
        results[f"dropout_{name}"] = torch.equal(*both)
    results["dropout_share"] = float(seen["sharded"].float().mean())


def measuring(results: dict[str, Any]) -> None:
    """Measured bytes of state on this rank, and the bytes planned for its stage."""
    for setting, tensor, pipeline in (("fp32", 2, 2), ("fp32", 1, 2), ("bf16", 2, 1), ("bf16", 1, 2)):
        engine, config, mesh = build(setting, tensor, pipeline)
        steps(engine, config, 1, 1)
        stage = make_plan(config, mesh.data_parallel, gpu("h100")).stages[mesh.pipeline_rank]
        optimizer = engine.deepspeed.optimizer
        storages = {p.untyped_storage()._cdata: p.untyped_storage().nbytes() for p in engine.stages.parameters()}
        inner = inner_optimizer(engine.deepspeed)
        states = [value for state in inner.state.values() for value in state.values() if value.ndim]
        masters = [flat for group in inner.param_groups for flat in group["params"]]
        record = {
            "weights": [sum(storages.values()), stage.weight_bytes],
            "optimizer": [sum(t.numel() * t.element_size() for t in states + masters), stage.optimizer_bytes],
        }
        if setting == "bf16":
            flats = optimizer.fp32_groups_gradients_flat
            record["gradients"] = [sum(t.numel() * t.element_size() for t in flats), stage.gradient_bytes]
        records: list[Any] = [None] * mesh.world_size
        torch.distributed.all_gather_object(records, record)
        results[f"memory_{setting}_{tensor}_{pipeline}"] = records


class Sent:
    """Bytes that this rank sends, by kind of group ("tensor", "data", "pipeline"), counted for ring algorithms."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.bytes = {"tensor": 0.0, "data": 0.0, "pipeline": 0.0, "other": 0.0}
        self.kinds = {
            tuple(torch.distributed.get_process_group_ranks(group())): kind
            for kind, group in (
                ("data", parallel_state.get_data_parallel_group),
                ("tensor", parallel_state.get_tensor_model_parallel_group),
            )
            if group().size() > 1
        }

    def __enter__(self) -> Sent:
        ring = {
            "all_reduce": lambda size, n: 2 * (n - 1) / n * size,
            "all_gather_into_tensor": lambda size, n: (n - 1) / n * size,
            "reduce_scatter_tensor": lambda size, n: (n - 1) * size,  # the size of its output
            "send": lambda size, n: size,
        }
        owners = [(torch.distributed, name) for name in ring]
        owners.append((deepspeed.comm, "all_gather_into_tensor"))  # DeepSpeed holds its own reference to PyTorch's function
        self.originals = [(owner, name, getattr(owner, name)) for owner, name in owners]
        for owner, name, original in self.originals:
            setattr(owner, name, self._counted(original, ring[name], "pipeline" if name == "send" else None))
        return self

    def _counted(self, original: Any, cost: Any, kind: str | None) -> Any:
        def call(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            groups = [value for value in (*arguments, *options.values()) if isinstance(value, torch.distributed.ProcessGroup)]
            ranks = tuple(torch.distributed.get_process_group_ranks(groups[0] if groups else None))
            size = tensor.numel() * tensor.element_size()
            self.bytes[kind or self.kinds.get(ranks, "other")] += cost(size, len(ranks))
            return original(tensor, *arguments, **options)

        return call

    def __exit__(self, *ignored: Any) -> None:
        for owner, name, original in self.originals:
            setattr(owner, name, original)


def sent_cases() -> dict[str, Training]:
    """t5 with micro-batches that the tensor group divides, and that it does not divide: then attention is split by heads."""
    cases = {
        f"{precision}_{tensor}_{pipeline}": Training(
            tensor=tensor, pipeline=pipeline, precision=precision, micro_batch=2 if tensor < 4 else 4
        )
        for precision in ("fp32", "bf16")
        for tensor, pipeline in MESHES[4][:4]
    }
    cases["fp32_2_2_recompute"] = replace(cases["fp32_2_2"], recompute=True)
    cases["t5_2_2"] = replace(cases["fp32_2_2"], model={"architecture": "t5"})
    cases["t5_4_1"] = replace(cases["fp32_4_1"], model={"architecture": "t5"}, micro_batch=2)
    return cases


def sending(results: dict[str, Any]) -> None:
    """Measured and planned bytes that each rank sends in a step."""
    for name, training in sent_cases().items():
        config = run_config(training)
        data = 4 // training.tensor // training.pipeline
        mesh = join(config.mesh)
        engine = Engine(config, mesh)
        steps(engine, config, 1, 1)
        with Sent(mesh) as sent:
            steps(engine, config, 2, 2)
        plan = make_plan(config, data, gpu("h100"))
        records: list[Any] = [None] * mesh.world_size
        torch.distributed.all_gather_object(records, sent.bytes)
        planned = {"tensor": plan.tensor_bytes, "data": plan.data_bytes, "pipeline": plan.pipeline_bytes}
        results[f"sent_{name}"] = {"ranks": records, "planned": planned}


ACTIVATIONS = {
    "short": Training(lengths=(64, 32), model={"num_attention_layers": 1}),
    "long": Training(lengths=(160, 16), model={"d_ff": 256}),
    "t5": Training(lengths=(48, 48), model={"architecture": "t5"}),
}


def saving(results: dict[str, Any]) -> None:
    """Measured and planned bytes that autograd saves on each rank for one micro-batch in flight."""
    for shape, training in ACTIVATIONS.items():
        for tensor, pipeline in MESHES[4][:4]:
            data = 4 // tensor // pipeline
            on_mesh = replace(training, tensor=tensor, pipeline=pipeline, micro_batch=GLOBAL_BATCH // data)
            config, task = run_config(on_mesh), objective_of(on_mesh)
            mesh = join(config.mesh)
            engine = Engine(config, mesh)
            own = {parameter.untyped_storage().data_ptr() for parameter in engine.stages.parameters()}
            saved: dict[int, Any] = {}

            def pack(tensor: torch.Tensor, own: set[int] = own, saved: dict[int, Any] = saved) -> torch.Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in own:
                    saved[storage.data_ptr()] = storage  # keep it alive, so that its address is not reused
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                engine.train_step(micro_batches(1, engine.shard, task), 0.001)
            measured = sum(storage.nbytes() for storage in saved.values())
            if mesh.pipeline_rank == pipeline - 1:  # the engine keeps the logits; autograd does not
                vocabulary = config.model.padded_vocab_size // tensor
                measured += 4 * config.train.micro_batch_size * config.data.decoder_length * vocabulary
            stage = make_plan(config, data, gpu("h100")).stages[mesh.pipeline_rank]
            records: list[Any] = [None] * mesh.world_size
            torch.distributed.all_gather_object(records, [measured, stage.activation_bytes])
            results[f"activations_{shape}_{tensor}_{pipeline}"] = records


def main() -> None:
    output = Path(sys.argv[1])
    torch.set_num_threads(1)
    share_groups()
    world_size = int(os.environ["WORLD_SIZE"])
    results: dict[str, Any] = {}
    if sys.argv[2] == "reshard":
        resharding(output, world_size, results)
    else:
        guarding(results)
        checking_consistency(results)
        dropping(results)
        measuring(results)
        saving(results)
        sending(results)
    if torch.distributed.get_rank() == 0:
        (output / f"{sys.argv[2]}_{world_size}.json").write_text(json.dumps(results))
    torch.distributed.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
