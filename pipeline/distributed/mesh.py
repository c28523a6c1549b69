"""Joins the processes of a run into a mesh of pipeline, data and tensor ranks (tensor fastest).

DeepSpeed and Megatron-core each build their own process groups over the same order. Their coordinates are compared once, here,
so that no later collective can mix them up.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from datetime import timedelta

import deepspeed
import deepspeed.comm.torch
import torch
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from megatron.core import parallel_state

from pipeline.config import MeshConfig


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """The shape of the mesh and the coordinates of this process. `topology` is DeepSpeed's map from rank to coordinates."""

    topology: PipeModelDataParallelTopology
    rank: int
    world_size: int
    pipeline_rank: int
    data_rank: int
    tensor_rank: int
    pipeline_parallel: int
    data_parallel: int
    tensor_parallel: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes metrics, tracks the run and names checkpoints."""
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is set on any rank: a collective."""
        values = torch.tensor([int(flag) for flag in flags], device=self.device)
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
        return tuple(bool(value) for value in values.tolist())


def join(config: MeshConfig, timeout: timedelta = timedelta(minutes=30)) -> Mesh:
    """Join the process group given by torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).

    A later call in the same process changes the mesh. Raises ValueError if the number of processes does not fit it.
    """
    missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name not in os.environ]
    if missing:
        raise ValueError(f"{', '.join(missing)} not set: start training by `fnet-t5 train` or under torchrun")
    data_parallel = config.data_parallel(int(os.environ["WORLD_SIZE"]))
    device = _start_distributed(timeout)

    world_size = torch.distributed.get_world_size()
    rank = torch.distributed.get_rank()
    topology = PipeModelDataParallelTopology(
        num_pp=config.pipeline_parallel, num_mp=config.tensor_parallel, num_dp=data_parallel
    )
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.tensor_parallel, pipeline_model_parallel_size=config.pipeline_parallel
    )
    coordinates = topology.get_coord(rank)
    ours = (coordinates.pipe, coordinates.data, coordinates.model)
    megatron = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
    )
    assert ours == megatron, f"rank {rank}: DeepSpeed has (pipe, data, model) {ours}, Megatron {megatron}"
    assert deepspeed.comm.get_rank() == rank
    return Mesh(
        topology=topology,
        rank=rank,
        world_size=world_size,
        pipeline_rank=coordinates.pipe,
        data_rank=coordinates.data,
        tensor_rank=coordinates.model,
        pipeline_parallel=config.pipeline_parallel,
        data_parallel=data_parallel,
        tensor_parallel=config.tensor_parallel,
        device=device,
    )


def set_timeouts(timeout: timedelta = timedelta(minutes=30)) -> None:
    """Give every process group of this process the same limit: DeepSpeed and Megatron make groups with torch's own default."""
    for group in list(torch.distributed.distributed_c10d._world.pg_map):
        torch.distributed.distributed_c10d._set_pg_timeout(timeout, group)


def leave() -> None:
    """Destroy the process group, so that the interpreter exits without waiting for other ranks."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _start_distributed(timeout: timedelta) -> torch.device:
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        backend = "nccl"
    else:
        device = torch.device("cpu")
        backend = "gloo"
        _skip_shared_memory_op()
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False, auto_mpi_discovery=False)
    return device


def _skip_shared_memory_op() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce on CPU; gloo works without it.

    The first start would compile for a minute and a half, and a start that is killed meanwhile leaves a lock file, on which
    every later start waits silently.
    """
    # `deepspeed.comm.torch` the attribute is PyTorch itself, which that module imports
    setattr(sys.modules["deepspeed.comm.torch"], "build_shm_op", lambda: None)  # noqa: B010
