"""The planner compared with published sizes, arithmetic by hand, and the bytes that autograd saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.architectures.pieces import Inputs, forward_flops
from models.architectures.seq2seq import Seq2Seq
from models.config import ModelConfig, expand_size
from models.cost.flops import Lengths
from models.cost.parameters import num_parameters as num_parameters_of
from models.layers.factory import TorchLayers
from models.layers.initialization import initialize
from pipeline.config import RunConfig
from pipeline.planner.footprint import footprints
from pipeline.planner.hardware import gpu
from pipeline.planner.memory import num_parameters
from pipeline.planner.plan import fits, make_plan, propose


def config(size: str, architecture: str = "t5", vocab: int = 32128, mesh: tuple[int, int] = (1, 1), **train: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": expand_size({"size": size, "architecture": architecture, "vocab_size": vocab}),
            "data": {"path": "unused", "encoder_length": 512, "decoder_length": 128},
            "mesh": {"tensor_parallel": mesh[0], "pipeline_parallel": mesh[1]},
            "train": {"steps": 10, "global_batch_size": 128, "micro_batch_size": 8, **train},
        }
    )


def test_parameter_counts_equal_published_counts() -> None:
    """transformers' counts of the released checkpoints."""
    assert num_parameters(config("t5-small")) == 60_506_624
    assert num_parameters(config("t5-base")) == 222_903_552
    assert num_parameters(config("t5-v1.1-base")) == 247_577_856
    assert num_parameters(config("t5-11b")) == 11_307_321_344


@pytest.mark.parametrize("mesh", [(1, 1), (2, 1), (1, 2), (4, 2)])
def test_states_take_eighteen_bytes_per_parameter_in_bf16(mesh: tuple[int, int]) -> None:
    """2 bytes for weights and 4 for gradients on every replica; 12 for the optimizer, sharded over the replicas."""
    plan = make_plan(config("t5-small", mesh=mesh), 4, gpu("h100"))
    for stage in plan.stages:
        expected = (2 + 4 + 12 / 4) * stage.num_parameters
        assert stage.weight_bytes + stage.gradient_bytes + stage.optimizer_bytes == pytest.approx(expected, rel=1e-6)
    tp, pp = mesh
    tied = 32128 * 512 // tp if pp > 1 else 0  # the last stage's replica
    replicated = 512 * (6 * 2 + 6 * 3 + 2)  # norms are replicated on every tensor rank
    held = sum(stage.num_parameters for stage in plan.stages)
    assert held == (60_506_624 - replicated) // tp + replicated + tied


def test_one_process_in_fp32_holds_weights_gradients_and_two_moments() -> None:
    """Without ZeRO nothing is copied or padded: exactly 16 bytes per parameter."""
    (stage,) = make_plan(config("t5-small", precision="fp32"), 1, gpu("h100")).stages
    assert (stage.weight_bytes, stage.gradient_bytes, stage.optimizer_bytes) == tuple(60_506_624 * n for n in (4, 4, 8))


@pytest.mark.parametrize("architecture", ["fnet_t5", "t5"])
@pytest.mark.parametrize(("micro_batch", "encoder", "decoder"), [(2, 64, 32), (3, 128, 16), (1, 96, 96)])
def test_activations_are_within_fifteen_percent_of_autograd(
    architecture: str, micro_batch: int, encoder: int, decoder: int
) -> None:
    run = config("demo", architecture, 1000, precision="fp32", micro_batch_size=micro_batch, global_batch_size=micro_batch)
    values = run.model_dump()
    values["data"].update(encoder_length=encoder, decoder_length=decoder)
    run = RunConfig.model_validate(values)
    (stage,) = make_plan(run, 1, gpu("h100")).stages
    model = Seq2Seq(run.model)
    initialize(model, 0)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held.append(storage)
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 1000, (micro_batch, encoder + decoder))
    inputs = Inputs(ids[:, :encoder], torch.ones(micro_batch, encoder, dtype=torch.long), ids[:, encoder:])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(inputs)
        model.factory.cross_entropy(logits, ids[:, encoder:]).sum()
    saved.setdefault(logits.untyped_storage().data_ptr(), logits.untyped_storage().nbytes())  # the engine keeps them
    assert stage.activation_bytes == pytest.approx(sum(saved.values()), rel=0.15)


def test_learnt_encoder_positions_are_on_every_tensor_rank_of_the_first_stage_alone() -> None:
    plain = config("t5-small", "fnet_t5", mesh=(2, 2))
    values = plain.model_dump()
    values["model"]["encoder_positions"] = "learned"
    without, with_table = (make_plan(run, 4, gpu("h100")).stages for run in (plain, RunConfig.model_validate(values)))
    more = [b.num_parameters - a.num_parameters for a, b in zip(without, with_table, strict=True)]
    assert more == [512 * 512, 0]  # max_length 512 of width 512, not halved


def test_bubble_and_flops_of_the_1f1b_schedule() -> None:
    plan = make_plan(config("t5-v1.1-base", "fnet_t5", mesh=(1, 4)), 1, gpu("h100"))
    balanced = 3 / (16 + 3)  # (P - 1) / (A + P - 1); uneven stages only make the bubble longer
    assert balanced <= plan.bubble < 0.5
    assert sum(stage.flops_share for stage in plan.stages) == pytest.approx(1)
    whole = make_plan(config("t5-v1.1-base", "fnet_t5"), 1, gpu("h100"))
    assert plan.flops_per_step == pytest.approx(whole.flops_per_step)


def test_the_proposal_fits_where_the_plain_mesh_does_not() -> None:
    run = config("t5-11b", "fnet_t5", micro_batch_size=8)
    device = gpu("h100")
    assert not fits(make_plan(run, 64, device) if 128 % (8 * 64) == 0 else make_plan(run, 16, device), device)
    proposal = propose(run, 16, device)
    assert fits(proposal, device)
    assert proposal.num_gpus == 16
    with pytest.raises(ValueError, match="does not fit on 1 A100 40GB"):
        propose(run, 1, gpu("a100-40g"))
    with pytest.raises(ValueError, match="choose one of a100"):
        gpu("b52")


def test_a_model_larger_than_memory_is_planned_without_allocation(tmp_path: Path) -> None:
    lengths = Lengths(2048, 512)
    run = config("t5-11b", "fnet_t5", mesh=(8, 2), micro_batch_size=8)
    values = run.model_dump()
    values["data"].update(encoder_length=lengths.encoder, decoder_length=lengths.decoder)
    plan = make_plan(RunConfig.model_validate(values), 2, gpu("h200"))
    assert plan.tensor_bytes > 0
    assert plan.num_gpus == 32
    recomputed = make_plan(
        RunConfig.model_validate({**values, "train": {**values["train"], "recompute": True}}), 2, gpu("h200")
    )
    assert recomputed.stages[0].activation_bytes < plan.stages[0].activation_bytes / 2


def test_a_memory_limit_changes_the_partition() -> None:
    """The stage with the most micro-batches in flight passes layers on until it fits, and the plan reports the cost."""
    free = make_plan(config("t5-v1.1-base", "t5", mesh=(1, 2), micro_batch_size=16), 1, gpu("h100"))
    largest = max(stage.total_bytes for stage in free.stages) / 1e9
    values = config("t5-v1.1-base", "t5", mesh=(1, 2), micro_batch_size=16).model_dump()
    values["mesh"]["stage_memory_gb"] = 0.93 * largest
    limited = make_plan(RunConfig.model_validate(values), 1, gpu("h100"))
    assert max(stage.total_bytes for stage in limited.stages) / 1e9 <= 0.93 * largest
    assert max(stage.flops_share for stage in limited.stages) > max(stage.flops_share for stage in free.stages)
    values["mesh"]["stage_memory_gb"] = 0.3 * largest
    with pytest.raises(ValueError, match=r"no partition into mesh\.pipeline_parallel 2 stages"):
        make_plan(RunConfig.model_validate(values), 1, gpu("h100"))


@pytest.mark.parametrize(
    ("size", "architecture", "objective"),
    [("gpt2", "gpt2", "causal_lm"), ("t5-base", "prefix_decoder", "prefix_lm"), ("fnet-base", "fnet", "masked_lm")],
)
def test_models_of_one_stack_are_planned(size: str, architecture: str, objective: str) -> None:
    values = {
        "model": expand_size({"size": size, "architecture": architecture, "vocab_size": 50257, "max_length": 1024}),
        "data": {"path": "unused", "encoder_length": 512, "decoder_length": 128, "objective": objective},
        "mesh": {"tensor_parallel": 2, "pipeline_parallel": 2},
        "train": {"steps": 10, "global_batch_size": 128, "micro_batch_size": 8},
    }
    run = RunConfig.model_validate(values)
    plan = make_plan(run, 2, gpu("h100"))
    assert plan.num_parameters == num_parameters_of(run.model)
    assert plan.flops_per_step == pytest.approx(3 * 128 * forward_flops(run.model, TorchLayers(), run.data.lengths))
    assert all(stage.activation_bytes > 0 for stage in plan.stages)
    assert plan.tensor_bytes > 0


def test_only_encoder_layers_without_attention_count_as_transforms() -> None:
    """The planner counts the memory traffic of transforms, and the communication of attention between tensor ranks."""
    for architecture, attention_layers, transforming in (("fnet_t5", 0, 2), ("fnet_t5", 1, 1), ("t5", 0, 0)):
        model = expand_size({"size": "demo", "architecture": architecture, "vocab_size": 1000})
        if attention_layers:
            model |= {"num_attention_layers": attention_layers}
        found = footprints(ModelConfig(**model), Lengths(16, 8), 1, 1, torch.float32)
        assert sum(piece.transforms for piece in found) == transforming, architecture
