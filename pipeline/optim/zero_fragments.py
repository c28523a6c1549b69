"""Where each fragment of each parameter is in the flat partitions of the optimizer on this rank.

ZeRO-1 and BF16_Optimizer flatten each parameter group and give each replica one contiguous partition of it. The inner optimizer
therefore sees one tensor that holds fragments of several parameters; the first and the last are often cut. Per-tensor update
rules and checkpoints that are independent of the mesh both need the fragments by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from pipeline.distributed.pipeline_stages import CanonicalParameter, Stages

STATE_NAMES = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """Elements `start` to `start + numel` of the flattened shard of a parameter, held in `flat[flat_slice]`."""

    entry: CanonicalParameter
    group: int
    flat: Tensor
    """The fp32 tensor that the inner optimizer updates."""
    flat_slice: slice
    start: int
    numel: int

    @property
    def master(self) -> Tensor:
        """The fp32 values, (numel,): a view."""
        return self.flat.detach().view(-1)[self.flat_slice]


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer that we built: inside ZeRO's wrapper, or without ZeRO the attribute itself."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def fragments(engine: Any, stages: Stages) -> list[Fragment]:
    """Every fragment that the optimizer of this rank updates."""
    groups = inner_optimizer(engine).param_groups
    sharded = inner_optimizer(engine) is not engine.optimizer
    whole = {parameter: number for number, group in enumerate(groups) for parameter in group["params"]}
    result = []
    for entry in stages.canonical_parameters():
        if not sharded:
            numel = entry.parameter.numel()
            result.append(
                Fragment(
                    entry=entry,
                    group=whole[entry.parameter],
                    flat=entry.parameter,
                    flat_slice=slice(0, numel),
                    start=0,
                    numel=numel,
                )
            )
            continue
        mapping = entry.parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:  # it is in the partitions of other replicas
            continue
        (flat,) = groups[mapping.param_group_index]["params"]
        there, here = mapping.lp_fragment_address, mapping.hp_fragment_address
        segment = slice(here.start, here.start + here.numel)
        result.append(
            Fragment(
                entry=entry,
                group=mapping.param_group_index,
                flat=flat,
                flat_slice=segment,
                start=there.start,
                numel=there.numel,
            )
        )
    return result


def optimizer_states(engine: Any, held: Sequence[Fragment]) -> Iterator[tuple[Fragment, dict[str, Tensor]]]:
    """Each fragment with views of its optimizer state, which is created as zeros where the optimizer has none yet."""
    inner = inner_optimizer(engine)
    for fragment in held:
        state = inner.state[fragment.flat]
        if not state:
            state["step"] = torch.tensor(0.0)
            state.update({name: torch.zeros_like(fragment.flat) for name in STATE_NAMES})
        yield fragment, {name: state[name].view(-1)[fragment.flat_slice] for name in STATE_NAMES}


def mean_squares(engine: Any, stages: Stages, held: Sequence[Fragment]) -> tuple[Callable[[int], Tensor], dict[str, int]]:
    """A function from a parameter group to the mean square of each of its full parameters, and their indices by name.

    The function is a collective over replicas, tensor ranks and the stages that share a tied weight. Sums are in fp64. A tied
    weight takes the sum of its owner: the stages partition it differently, and copies that round differently would drift apart.
    """
    entries = list(stages.canonical_parameters())
    indices = {entry.name: index for index, entry in enumerate(entries)}
    numels = torch.tensor([float(torch.Size(entry.full_shape).numel()) for entry in entries], dtype=torch.float64)
    data, tensor = parallel_state.get_data_parallel_group(), parallel_state.get_tensor_model_parallel_group()
    sharded = inner_optimizer(engine) is not engine.optimizer
    tied = {id(weight): group for weight, group in stages.get_tied_weights_and_groups()}

    def of_group(number: int) -> Tensor:
        device = entries[0].parameter.device
        sums = torch.zeros(len(entries), dtype=torch.float64, device=device)
        for fragment in held:
            counts = fragment.entry.shard_dim is not None or tensor.rank() == 0
            if fragment.group == number and counts:
                sums[indices[fragment.entry.name]] += fragment.master.double().square().sum()
        if sharded:
            torch.distributed.all_reduce(sums, group=data)
        torch.distributed.all_reduce(sums, group=tensor)
        for index, entry in enumerate(entries):
            if id(entry.parameter) in tied and _group_number(engine, entry) == number:
                owned = sums[index] * (not entry.is_copy)
                torch.distributed.all_reduce(owned, group=tied[id(entry.parameter)])
                sums[index] = owned
        return sums / numels.to(device)

    return of_group, indices


def _group_number(engine: Any, entry: CanonicalParameter) -> int:
    """The group of a parameter, also on replicas that hold no fragment of it."""
    groups = getattr(engine.optimizer, "bit16_groups", None) or getattr(engine.optimizer, "bf16_groups", None)
    if groups is None:
        groups = [group["params"] for group in engine.optimizer.param_groups]
    return next(number for number, group in enumerate(groups) if any(entry.parameter is parameter for parameter in group))
