"""The partition of a model into pipeline stages: the contiguous one whose most expensive stage costs the fewest FLOPs.

The planner, the engine and resharding all call this, so they agree. It needs no GPU and no distributed library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from models.architectures.pieces import pieces
from models.layers.factory import TorchLayers
from pipeline.config import RunConfig
from pipeline.planner.memory import memory_check, recipe_footprints


class Partitionable(Protocol):
    """What the partition reads of a piece of the model, or of its footprint."""

    @property
    def flops(self) -> float: ...

    @property
    def starts_stage(self) -> bool: ...


def partition_stages(
    model: Sequence[Partitionable], num_stages: int, fits: Callable[[int, int, int], bool] = lambda *_: True
) -> list[int]:
    """Bounds [0, …, len(model)] of the contiguous partition whose most expensive stage costs the fewest FLOPs.

    A stage starts only at a piece that allows it; `fits(stage, begin, end)` says whether it may hold these pieces. Raises
    ValueError if the model has too few places to start a stage, or no partition fits.
    """
    starts = [0] + [index for index, piece in enumerate(model) if piece.starts_stage and index > 0]
    if len(starts) < num_stages:
        raise ValueError(
            f"mesh.pipeline_parallel {num_stages} exceeds the {len(starts)} pieces of this model that can start a stage: "
            "lower it"
        )
    cost = [0.0]
    for piece in model:
        cost.append(cost[-1] + piece.flops)
    ends = [*starts[1:], len(model)]
    # best[k][j]: (largest stage cost, bounds) of the pieces before ends[j] in k + 1 stages
    best: list[dict[int, tuple[float, list[int]]]] = [
        {j: (cost[end], [0, end]) for j, end in enumerate(ends) if fits(0, 0, end)}
    ]
    for stage in range(1, num_stages):
        row: dict[int, tuple[float, list[int]]] = {}
        for j, end in enumerate(ends):
            options = [
                (max(largest, cost[end] - cost[bounds[-1]]), [*bounds, end])
                for i, (largest, bounds) in best[-1].items()
                if i < j and fits(stage, bounds[-1], end)
            ]
            if options:
                row[j] = min(options)
        best.append(row)
    if len(ends) - 1 not in best[-1]:
        raise ValueError(
            f"no partition into mesh.pipeline_parallel {num_stages} stages keeps each within mesh.stage_memory_gb: raise "
            "either, or lower train.micro_batch_size"
        )
    return best[-1][len(ends) - 1][1]


def stage_bounds(config: RunConfig, data_parallel: int) -> list[int]:
    """The stage bounds of a recipe's model on its mesh. Raises ValueError if there is no such partition."""
    if config.mesh.stage_memory_gb is None:  # FLOPs are known without running the model on shapes
        return partition_stages(pieces(config.model, TorchLayers(), config.data.lengths), config.mesh.pipeline_parallel)
    model = recipe_footprints(config)
    return partition_stages(model, config.mesh.pipeline_parallel, memory_check(config, model, data_parallel))
